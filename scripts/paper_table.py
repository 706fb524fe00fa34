"""The paper's table: each model as a dense and as a spiking network, on the same text.

    python scripts/paper_table.py [MODEL ...] [--out FOLDER] [--text FILE] [--limit TOKENS]
      [--steps N] [--train-text TEXT] [--stride S] [--device D]

MODEL is whatever `neurtx convert` takes; default are the small, medium and large GPT-2, fetched
from the hub. Each is converted, fine-tuned if --steps says so, and measured: perplexity by a
sliding window (paper_window.py), and by `neurtx eval` and `neurtx energy`. docs/gpt2.md says what
to expect, and how long it takes. A call that was stopped, in whatever way, goes on where it was
when the same command is given again, for what is done is kept, under names that hold the settings:

    paper/table.md, table.json              the answer
    paper/wikitext-2-raw-test.txt           the text, if none was given
    paper/gpt2-small-KEY/converted/         a run; there only when complete
    paper/gpt2-small-KEY/finetuned-KEY/     the same
    paper/gpt2-small-KEY/*.json             what was measured; perplexity after every window
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from neurtransformer import hub
from neurtransformer.checkpoint import check_folder
from neurtransformer.dense import load_dense, locate
from neurtransformer.errors import UserError, shortened
from neurtransformer.measure.energy import PAPER_REDUCTION_PERCENT
from neurtransformer.provenance import versions
from neurtransformer.runs import read_json, write_json, write_text
from neurtransformer.spiking.innate import dense_output
from neurtransformer.spiking.load import load_run, source_name
from neurtx import output
from neurtx.main import explain
from neurtx.progress import bar
from paper_window import Logits, figures, score, windows

MODELS = "gpt2-small", "gpt2-medium", "gpt2-large"
WIKITEXT = "Salesforce/wikitext", "wikitext-2-raw-v1"
COMPARED = 8192
"""Tokens of the text that `neurtx eval` and `neurtx energy` read, at most."""
PAPER = {
    "source": "NeurTransformer, arXiv 2510.00133",
    "cosine_similarity": "5 to 12 % lower (GPT-2 small)",
    "attention_reduction_percent": list(PAPER_REDUCTION_PERCENT),
}
"""What we know that the paper reports; the rest of its row stays empty."""

Values = dict[str, Any]


# --- the steps ---


@dataclass(frozen=True)
class Settings:
    """What figures depend on, beside the model; and where they are computed."""

    text: Path
    text_sha256: str
    limit: int | None
    stride: int
    steps: int
    train_text: str | None
    device: str


def row(model: str, folder: Path, settings: Settings) -> Values:
    """A line of the table: every step, or what `folder` keeps of it."""
    folder.mkdir(exist_ok=True)
    run = folder / "converted"
    if not run.exists():
        neurtx("convert", source_name(model), "--out", run)
    if settings.steps:
        run = trained(run, settings)
    report, few = read_json(run / "report.json"), min(settings.limit or COMPARED, COMPARED)
    found = {name: asked(name, run, settings, few) for name in ("eval", "energy")}
    sliding = slid(model, run, settings)
    return {
        "model": model,
        "parameters": sliding["parameters"],
        "trained_steps": settings.steps,
        **{name: sliding[name] for name in ("context", "stride", "tokens")},
        **sliding["figures"],
        "cosine_similarity": found["eval"]["cosine_similarity"],
        "spikes_per_token": found["eval"]["spikes_per_token"],
        "attention_reduction_percent": found["energy"]["attention"]["reduction_percent"],
        "model_reduction_percent": found["energy"]["model"]["reduction_percent"],
        "tokens_of_these": found["eval"]["tokens"],
        "seconds": {
            "convert": report["convert"]["seconds"],
            "finetune": report.get("finetune", {}).get("seconds"),
            "perplexity": sliding["seconds"],
            **{name: values["seconds"] for name, values in found.items()},
        },
        "run": run,
        "versions": versions(),
    }


def trained(run: Path, settings: Settings) -> Path:
    """A copy of `run`, trained. It gets its name when all is done."""
    name = key(settings.steps, settings.train_text)
    done, training = (run.with_name(f"{x}-{name}") for x in ("finetuned", "training"))
    if done.exists():
        return done
    resume = (training / "checkpoint").is_dir()
    if not resume:
        # whatever stands there cannot be gone on from
        shutil.rmtree(training, ignore_errors=True)
        shutil.copytree(run, training)
    text = ["--text", settings.train_text] if settings.train_text else []
    words = "finetune", training, "--steps", settings.steps, "--device", settings.device
    neurtx(*words, *text, *(["--resume"] if resume else []))
    return training.rename(done)


def asked(command: str, run: Path, settings: Settings, limit: int) -> Values:
    """The answer of a command that measures a run."""
    file = run.with_name(f"{command}-{key(run.name, settings.text_sha256, limit)}.json")
    if not file.exists():
        started = time.monotonic()
        answer = neurtx(command, run, "--text", settings.text, "--limit", limit)
        write_json(file, {**answer, "seconds": time.monotonic() - started})
    return read_json(file)


def slid(model: str, run: Path, settings: Settings) -> Values:
    """All windows over the text; their sums are kept after each."""
    asked_for = run.name, settings.text_sha256, settings.limit, settings.stride
    file = run.with_name(f"perplexity-{key(*asked_for)}.json")
    kept: Values = {"sums": {}, "windows": 0, "seconds": 0.0}
    if file.exists():
        kept = read_json(file)
    if "figures" in kept:
        return kept
    dense, tokenizer = load_dense(model)
    spiking, _ = load_run(run)
    text = settings.text.read_text(encoding="utf-8")
    numbers = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    ids, context = torch.tensor(numbers[: settings.limit]), spiking.config.context
    first, stride = spiking.config.first_token, min(settings.stride, context)
    if len(ids) < 2:
        raise UserError(f"{settings.text} is too short: 2 tokens are the least")

    for network in (dense, spiking):
        network.to(settings.device)
    forms: tuple[Logits, Logits] = (
        lambda tokens: dense_output(dense, tokens.to(settings.device), first)[0],
        lambda tokens: spiking(tokens.to(settings.device)).logits,
    )
    every = windows(len(ids), context, stride)
    started = time.monotonic() - kept["seconds"]
    with bar(f"perplexity of {model}", len(every), "windows") as advance:
        advance(kept["windows"], "")
        for number, window in enumerate(every[kept["windows"] :], kept["windows"] + 1):
            new = score(*forms, ids, window)
            sums = {name: kept["sums"].get(name, 0) + value for name, value in new.items()}
            kept = {"sums": sums, "windows": number, "seconds": time.monotonic() - started}
            if number == len(every):
                kept |= {"figures": figures(sums), "parameters": dense.num_parameters()}
                kept |= {"context": context, "stride": stride, "tokens": sums["tokens"]}
            write_json(file, kept)
            advance(1, f"ratio {figures(sums)['ppl_ratio']:.3f}")
    return kept


def neurtx(*words: object) -> Values:
    """The answer of a command of neurtx, in a process of its own, which gives its memory back."""
    line = [str(word) for word in words]
    click.echo(shlex.join(["neurtx", *line]), err=True)
    command = [sys.executable, "-m", "neurtx.main", *line, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, close_fds=False)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise click.ClickException(f"`neurtx {line[0]}` was ended by {name}: is memory short?")
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    answer: Values = json.loads(done.stdout)
    return answer


def key(*settings: object) -> str:
    """A short name of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def hold(folder: Path) -> None:
    """Hold `folder` until this process and the commands that it starts have ended, so that of two
    calls at once the second is refused."""
    lock = os.open(folder, os.O_RDONLY)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another call is at work in {folder}: wait until it is done") from None
    except OSError:
        pass  # a file system without locks


# --- what is measured, and the table ---


def wikitext(file: Path) -> Path:
    """WikiText-2's test part, its lines joined as in the recipe; fetched if it is not there."""
    if not file.exists():
        if not hub.reachable():
            raise UserError(f"no network to {hub.endpoint()} to fetch WikiText-2: give --text FILE")
        import datasets

        try:
            rows = datasets.load_dataset(*WIKITEXT, split="test")["text"]
        except Exception as error:  # the library raises dozens of kinds
            raise UserError(f"WikiText-2 is not to be had: {shortened(error)}") from error
        write_text(file, "\n\n".join(rows))
    return file


def sha256(*files: Path) -> str:
    """Of the names and contents of files."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return whole.hexdigest()


def stride_for(model: str, folder: Path, stride: int | None) -> int:
    """512, or half the context of a model that has less than twice that, if none is given."""
    context = AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings
    if stride is not None and stride > context:
        raise UserError(f"a stride of {stride} leaves out tokens: {model} reads {context} at most")
    return stride or min(512, context // 2)


def table(rows: Sequence[Values]) -> str:
    """The rows in Markdown, and the paper's."""
    low, high = PAPER_REDUCTION_PERCENT
    columns = {
        "perplexity, dense": ("ppl_dense", "{:.2f}", "-"),
        "spiking": ("ppl_spiking", "{:.2f}", "-"),
        "ratio": ("ppl_ratio", "{:.3f}", "-"),
        "next token right, dense": ("accuracy_dense", "{:.1%}", "-"),
        "next token right, spiking": ("accuracy_spiking", "{:.1%}", "-"),
        "agreement": ("token_agreement", "{:.1%}", "-"),
        "cosine similarity": ("cosine_similarity", "{:.3f}", PAPER["cosine_similarity"]),
        "attention energy saved, estimate": (
            "attention_reduction_percent",
            "{:.1f} %",
            f"{low} to {high} %",
        ),
        "whole model, estimate": ("model_reduction_percent", "{:.1f} %", "-"),
    }
    lines = [["model", *columns], ["---"] * (len(columns) + 1)]
    for row in rows:
        cells = (form.format(row[name]) for name, form, _ in columns.values())
        lines.append([Path(row["model"]).name, *cells])
    lines.append(
        ["NeurTransformer, as reported", *(str(theirs) for *_, theirs in columns.values())]
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--out", type=click.Path(path_type=Path), default="paper", show_default=True)
@click.option("--text", type=click.Path(path_type=Path), help="Default: WikiText-2 test, raw.")
@click.option("--limit", type=click.IntRange(min=2), help="Tokens of the text; default all.")
@click.option("--steps", type=click.IntRange(min=0), default=0, help="Of fine-tuning; default 0.")
@click.option("--train-text", help="Text to train on; default what `neurtx finetune` takes.")
@click.option("--stride", type=click.IntRange(min=1), help="Default 512, or half the context.")
@click.option("--device", default="cpu", help="Of training and perplexity: cpu or cuda.")
def main(
    models: tuple[str, ...],
    out: Path,
    text: Path | None,
    limit: int | None,
    steps: int,
    train_text: str | None,
    stride: int | None,
    device: str,
) -> None:
    """Measure every MODEL, and write OUT/table.md and OUT/table.json."""
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"there is no {device} device here: leave --device out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder")
    if text is not None and not text.is_file():
        raise UserError(f"there is no text file '{text}'")
    # all is fetched, and found to be whole, before the first hour of work
    found = {model: locate(model) for model in dict.fromkeys(models or MODELS)}
    strides = {}
    for model, folder in found.items():
        check_folder(folder)
        strides[model] = stride_for(model, folder, stride)
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    hold(out)
    text = text.resolve() if text else wikitext(out / "wikitext-2-raw-test.txt")
    rows: list[Values] = []
    for model, folder in found.items():
        files = sorted({path for pattern in hub.FILES for path in folder.glob(pattern)})
        short = re.sub(r"[^\w.-]+", "-", folder.name if Path(model).is_dir() else model)
        place = out / f"{short}-{key(source_name(model), sha256(*files))}"
        settings = Settings(text, sha256(text), limit, strides[model], steps, train_text, device)
        rows.append(row(model, place, settings))
        write_json(out / "table.json", {"text": text, "rows": rows, "paper": PAPER})
        write_text(out / "table.md", table(rows))
    click.echo(table(rows), nl=False)


def run(arguments: Sequence[str]) -> int:
    """`main`, with one line for what went wrong; returns the exit code."""
    try:
        main.main(list(arguments), prog_name="paper_table.py", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("NEURTX_TRACEBACK"):
            raise
        message, code = explain(error)
        click.echo(f"paper_table: {message}", err=True)
        return int(code)
    return 0


if __name__ == "__main__":
    output.quiet()
    disable_progress_bar()
    # as an exception, so that a command at work is ended too
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(run(sys.argv[1:]))
