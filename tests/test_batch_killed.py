"""A batch that is killed again and again comes to the results of one that nobody disturbed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pretending
import pytest
import yaml

from neurtransformer.batch import results

# Forks a batch after the other, each of which kills itself at a random one of the moments at which
# it asks something of the system, waiting included; so libraries are loaded once. A batch that is
# done is put aside, and the next begins from nothing.
KILLER = """
import os, random, signal, sys
root, kills, most, program = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:7]
words = sys.argv[7:]
import yaml, pydantic, rich.table, rich.console
from neurtransformer.batch import work
from neurtx import main, run
if program[0]:
    work.PROGRAM = [sys.executable, *program]
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copytree",
          "shutil.copyfile", "shutil.rmtree", "subprocess.Popen", "time.sleep", "os.scandir"}
left = process = None

def kill(event, args):
    global left
    if process == os.getpid() and event in EVENTS:
        left -= 1
        if left == 0:
            os.kill(process, signal.SIGKILL)

sys.addaudithook(kill)
drawn = random.Random(0)
killed = whole = 0
while True:
    moment = drawn.randint(1, most) if killed < kills else -1
    child = os.fork()
    if child == 0:
        process, left = os.getpid(), moment
        sys.argv = ["neurtx", "run", *words, "--root", root]
        main.main()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        killed += 1
        continue
    if status:
        sys.exit(f"a batch ended in {status}")
    whole += 1
    os.rename(root, f"{root}-{whole}")
    if killed == kills:
        break
print(whole)
"""


def killed_often(
    folder: Path, config: dict[str, Any], kills: int, most: int, program: list[str], *words: str
) -> None:
    """Compare an undisturbed batch with one that is killed so many times, each time after at most
    so many moments; with all, where it was done in between and began anew."""
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    three = [*program, *[""] * (3 - len(program))]

    def run(root: str, kills: int) -> int:
        script = [sys.executable, "-c", KILLER, root, str(kills), str(most), *three]
        done = subprocess.run(
            [*script, "c.yaml", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "FAILED" not in done.stderr, done.stderr
        return int(done.stdout.splitlines()[-1])

    assert run("undisturbed", 0) == 1
    rounds = run("killed", kills)
    expected = _said(folder / "undisturbed-1")
    assert expected[1] and all(row["status"] == "done" for row in expected[0])
    for number in range(1, rounds + 1):
        root = folder / f"killed-{number}"
        assert _said(root) == expected
        assert not list(root.rglob(".neurtx-*")) and not list(root.rglob("checkpoint"))


def _said(root: Path) -> tuple[list[dict[str, Any]], bytes, dict[str, bytes]]:
    """The tables without seconds, and the weights of all runs."""
    lines = (root / results.TABLES[0]).read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    weights = {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.glob("steps/*/run/model.safetensors"))
    }
    return rows, (root / results.TABLES[1]).read_bytes(), weights


@pytest.mark.parametrize(
    "kills", [8, pytest.param(200, marks=pytest.mark.slow, id="200, which is slow")]
)
def test_killed_at_any_moment(tmp_path: Path, kills: int) -> None:
    """With commands that pretend: the moments of the batch itself are many."""
    config = {"models": ["gpt2-nano"], "seeds": [0, 1], "steps": ["convert", "finetune", "eval"]}
    program = ["-S", "-E", pretending.__file__]
    killed_often(tmp_path, config, kills, 120, program, "--jobs", "2")


@pytest.mark.slow
def test_killed_while_it_works(tmp_path: Path, tiny_dense_folder: Path) -> None:
    """With the real commands, two seeds of which are trained past their checkpoints."""
    text = "The quick brown fox jumps over the lazy dog, which does not mind.\n" * 200
    (tmp_path / "text.txt").write_text(text)
    config = {
        "models": [str(tiny_dense_folder)],
        "recipes": [{"name": "short", "timesteps": 4, "config": "recipe.yaml"}],
        "seeds": [0, 1],
        "texts": ["text.txt"],
        "convert": {"text": "text.txt"},
        "finetune": {"text": "text.txt", "steps": 120},
        "eval": {"limit": 128},
        "energy": {"limit": 128},
        "simulate": {"prompt": "The quick", "tokens": 1, "backend": "integer"},
    }
    (tmp_path / "recipe.yaml").write_text("calibration: {tokens: 256, block: 64}")
    # as long as four steps take here, a wait having 20 moments a second
    words = [sys.executable, "-m", "neurtx.main", "convert", str(tiny_dense_folder), "--json"]
    began = time.monotonic()
    subprocess.run(
        [*words, "--text", "text.txt", "--config", "recipe.yaml", "--out", "first"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    most = round(20 * 4 * (time.monotonic() - began))
    killed_often(tmp_path, config, 50, most, [], "--jobs", "2")
