"""How fast the networks are beside the dense model that they come from, on this machine.

    python scripts/bench.py OUT [--model MODEL]... [--network NETWORK]... [--case CASE]...
      [--batch N]... [--context N]... [--new N] [--repeats N] [--products float32|bfloat16]

In every case the dense model and the networks take turns in one process, so that whatever else the
machine does slows all of them down: what is reported are medians of ratios, the reference's time
over a network's in the same repeat, with the smallest and the largest. Above 1 a network is faster.
Times are CPU seconds of the process, in which waiting for a core does not count; with several
threads that overstates what a run costs by what its threads wait for each other.

MODEL: `small` is GPT-2 small's geometry with random weights; others are what `neurtx convert`
takes. NETWORK: `ttfs`, `linear`: the default recipe with this attention, in counts; `steps`: `ttfs`
step by step; `integer`: `ttfs` in integers, batch 1 alone. Thresholds are fitted to random tokens,
which decides nothing about speed but how long races last.

CASE: `evaluate`: logits of all tokens of a context. `prefill`: the state and the last logits.
`generate`: --new tokens behind a prompt that fills the rest of the context, greedy, by
transformers' `generate`, where the dense model has its key-value cache. `train`: a step of training
(`bench_networks.training`). `feedforward`: the network's first feed-forward block beside
SpikingJelly's simulation of one. `lava`: the integer model beside Lava, which takes minutes and is
left out unless it is asked for.

Memory is what a call needs at its peak beyond what was there before, in MiB, where the system tells
(Linux), and what a text keeps, its cache or state, in bytes a token.
Everything goes to OUT/bench.json and a picture of it to OUT/bench.png.
"""

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from bench_networks import CASES, NETWORKS, dense_model, networks_of, works
from bench_peers import feedforward, lava
from bench_timing import rows_of

from neurtransformer.provenance import versions
from neurtransformer.recipe import load_recipe

GOAL = 0.8


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| work | network | times as fast as | ratio (least, largest) | tokens a second | "
        "peak MiB | kept bytes a token |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kept, memory = (
            "-" if row[key] is None else f"{row[key]:,.0f}"
            for key in ("kept_bytes_a_token", "peak_mib")
        )
        lines.append(
            f"| {row['work']} | {row['network']} | {row['reference']} | {row['ratio']:.2f} "
            f"({row['least']:.2f}, {row['largest']:.2f}) | {row['tokens_per_second']:,.1f} | "
            f"{memory} | {kept} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios as bars, from the least to the largest a line, and the goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["network"] != row["reference"]][::-1]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    names = [f"{row['work']}: {row['network']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    spread = [
        [row["ratio"] - row["least"] for row in rows],
        [row["largest"] - row["ratio"] for row in rows],
    ]
    axes.barh(names, ratios, xerr=spread)
    axes.axvline(1, color="black")
    axes.axvline(GOAL, color="black", linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as the dense model, SpikingJelly or Lava")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    processor = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        lines = told.read_text().splitlines()
        named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        processor = next(named, processor)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
        "system": platform.platform(),
        **versions(),
    }


def all_rows(
    models: tuple[str, ...],
    chosen: tuple[str, ...],
    cases: tuple[str, ...],
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    new: int,
    repeats: int,
    out: Path,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each piece of work as it is done."""
    for model in models:
        with torch.no_grad():
            networks = networks_of(dense_model(model), chosen)
        for case in cases:
            if case == "lava":
                if model != "small":  # which has no tokenizer
                    yield [lava(model, out / f"lava-{model}")]
            elif case == "feedforward":
                if "ttfs" in networks:
                    timesteps = load_recipe().timesteps
                    work = feedforward(networks["ttfs"], timesteps, max(contexts))
                    yield rows_of(work, repeats)
            else:
                for work in works(model, networks, case, batches, contexts, new):
                    yield rows_of(work, repeats)


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", "models", multiple=True, default=("gpt2-nano", "small"))
@click.option("--network", "chosen", multiple=True, type=click.Choice(NETWORKS),
              default=("ttfs", "linear"))  # fmt: skip
@click.option("--case", "cases", multiple=True, default=(*CASES, "feedforward"),
              type=click.Choice((*CASES, "feedforward", "lava")))  # fmt: skip
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=(1, 8))
@click.option("--context", "contexts", multiple=True, type=click.IntRange(2), default=(512, 1024))
@click.option("--new", type=click.IntRange(1), default=64)
@click.option("--repeats", type=click.IntRange(1), default=5)
@click.option("--products", type=click.Choice(["float32", "bfloat16"]), default="float32")
def main(out: Path, products: str, **sizes: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("medium" if products == "bfloat16" else "highest")
    result: dict[str, Any] = {"machine": machine(), "products": products, "rows": []}
    for key, value in result["machine"].items():
        click.echo(f"{key}: {value}")
    for rows in all_rows(out=out, **sizes):
        click.echo(table(rows).split("\n", 2)[2], err=True)
        result["rows"] += rows
        (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    click.echo(table(result["rows"]))
    draw(result["rows"], out / "bench.png")


if __name__ == "__main__":
    main()
