"""A stand-in for the commands that a batch calls: as many files, in a moment and without a model.

Run as a program. It writes its folders bit by bit, so that one that is killed leaves half of them,
and its answers depend on all that went in before.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

TRAINING = 6
"""Steps of a training."""

CALLS = "PRETENDING_CALLS"
"""The variable that names a file for a line of each call."""

FAILS = "PRETENDING_FAILS"
"""The variable that holds words of a call that is to fail."""


def digest(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def write(folder: Path, weights: str) -> None:
    folder.mkdir()
    for name in ("config.json", "report.json", "manifest.json"):
        (folder / name).write_text("{}")
        time.sleep(0.002)
    (folder / "model.safetensors").write_text(weights)


def train(run: Path, weights: str, seed: str, resume: bool) -> str:
    checkpoint = run / "checkpoint"
    if checkpoint.exists() != resume or (resume and not (checkpoint / "state").exists()):
        print("neurtx: error: the checkpoint is damaged, or --resume is missing", file=sys.stderr)
        sys.exit(2)
    done, at = (checkpoint / "state").read_text().split() if resume else ("0", weights)
    for number in range(int(done), TRAINING):
        at = digest(at, seed)
        fresh = run / ".neurtx-new-checkpoint"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        (fresh / "state").write_text(f"{number + 1} {at}")
        shutil.rmtree(checkpoint, ignore_errors=True)
        fresh.rename(checkpoint)
        time.sleep(0.005)
    # from the weights that were there too: to train twice is noticed
    at = digest(at, weights)
    (run / "model.safetensors").write_text(at)
    time.sleep(0.005)
    shutil.rmtree(checkpoint)
    return at


def main() -> None:
    step, where, *words = sys.argv[1:]
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    with open(os.environ.get(CALLS, os.devnull), "a") as calls:
        calls.write(f"{step} {' '.join(words)}\n")
    fails = os.environ.get(FAILS)
    if fails and all(word in [step, where, *words] for word in fails.split()):
        print("a warning\nneurtx: error: it was told to fail", file=sys.stderr)
        sys.exit(1)
    out = options.pop("out", None)
    text = Path(options["text"]).read_text() if "text" in options else "none"
    resume = options.pop("resume", None) is not None
    if step == "convert":
        weights = digest(where if not os.path.isdir(where) else "folder", *sorted(options))
    else:
        weights = (Path(where) / "model.safetensors").read_text()
    if step == "finetune":
        weights = train(Path(where), weights, options["seed"], resume)
    if out:
        write(Path(out), weights)
    told = {"figure": digest(step, weights, text)[:8], "parts": {"share": 0.5, "list": [1, 2]}}
    print(json.dumps({"run": where, "seconds": time.monotonic(), "lost": None, **told}))


if __name__ == "__main__":
    main()
