"""How much memory `neurtx convert`, `eval` and `export` need, beside the checkpoint they read.

    python scripts/bench_memory.py OUT [--layers N]... [--width N] [--heads N] [--limit TOKENS]

For each number of layers it writes a GPT-2 of that geometry with random weights, in shards of at
most 500 MB, with GPT-2's 50,257 tokens, of which the tokenizer of gpt2-nano knows the first 4,096.
`--layers 48` is GPT-2 XL. It runs the three commands on it, each in a process of its own. Reported
are, in MiB and as a share of the float32 checkpoint,

own: the most memory of the process's own at any time (RssAnon), looked at five times a second;
all: the most that it had in memory, with the pages of files that it reads (VmHWM), which the system
takes back where it needs the room.

Two numbers of layers give a line, memory = fixed + layers x slope, and with it an estimate for
GPT-2 XL's 48. Linux only. Everything goes to OUT/memory.json.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from neurtransformer.dense import load_dense

XL, WORDS = 48, 50257
MIB = 2**20


def write_model(folder: Path, layers: int, width: int, heads: int) -> int:
    """A model with random weights and a tokenizer; returns the bytes of its weights."""
    nano, tokenizer = load_dense("gpt2-nano")[:2]
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=WORDS,
        bos_token_id=nano.config.bos_token_id, eos_token_id=nano.config.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder, max_shard_size="500MB")
    tokenizer.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def peaks(*command: Any) -> dict[str, float]:
    """Run `neurtx` with these arguments; what it needed at most, and how long it took."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "neurtx", *map(str, command)], stdout=subprocess.DEVNULL
    )
    status = Path(f"/proc/{process.pid}/status")
    found = {"own": 0.0, "all": 0.0}
    while process.poll() is None:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            for name, key in (("own", "RssAnon"), ("all", "VmHWM")):
                found[name] = max(found[name], int(lines[key].split()[0]) / 1024)
        except (OSError, KeyError):  # it has just ended
            break
        time.sleep(0.2)
    if process.wait():
        raise click.ClickException(f"neurtx {command[0]} failed")
    return {**found, "seconds": time.monotonic() - began}


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--layers", multiple=True, type=click.IntRange(1), default=(4, 8))
@click.option("--width", type=click.IntRange(1), default=1600)
@click.option("--heads", type=click.IntRange(1), default=25)
@click.option("--limit", type=click.IntRange(2), default=1024, help="Tokens that eval reads.")
@click.option("--text", type=click.Path(exists=True, path_type=Path),
              help="To fit thresholds to; without it the model writes one, slowly.")  # fmt: skip
def main(
    out: Path, layers: tuple[int, ...], width: int, heads: int, limit: int, text: Path | None
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in layers:
        model, run, netlist = (out / f"{kind}-{number}" for kind in ("model", "run", "netlist"))
        weights = write_model(model, number, width, heads) / MIB
        given = [] if text is None else ["--text", text]
        for name, command in {
            "convert": ["convert", model, "--out", run, "--coding", "phase", "--force", *given],
            "eval": ["eval", run, "--limit", limit],
            "export": ["export", run, "--target", "loihi2", "--out", netlist, "--force"],
        }.items():
            row = {"layers": number, "command": name, "weights": weights, **peaks(*command)}
            rows.append(row)
            click.echo(
                f"{number} layers, {name}: own {row['own']:,.0f} MiB, {row['own'] / weights:.2f} "
                f"of the checkpoint; all {row['all']:,.0f} MiB; {row['seconds']:,.0f} s"
            )
            (out / "memory.json").write_text(json.dumps(rows, indent=1) + "\n")
    for name in ("convert", "eval", "export") if len({*layers}) > 1 else ():
        few, many = (
            next(row for row in rows if row["command"] == name and row["layers"] == number)
            for number in (min(layers), max(layers))
        )

        def line(key: str, few: dict[str, Any] = few, many: dict[str, Any] = many) -> float:
            slope = (many[key] - few[key]) / (many["layers"] - few["layers"])
            return float(few[key] + (XL - few["layers"]) * slope)

        click.echo(
            f"{XL} layers, {name}, estimate: own {line('own'):,.0f} MiB, "
            f"{line('own') / line('weights'):.2f} of the checkpoint"
        )


if __name__ == "__main__":
    main()
