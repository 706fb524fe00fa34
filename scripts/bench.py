"""How fast the networks are beside the dense model that they come from, on this machine.

    python scripts/bench.py OUT [--model MODEL]... [--network NETWORK]... [--case CASE]...
      [--batch N]... [--context N]... [--new N] [--repeats N] [--products float32|bfloat16]

In every case the dense model and the networks take turns in one process, so that whatever else the
machine does slows all of them down: what is reported are medians of ratios, dense time over a
network's in the same repeat, with the smallest and the largest. Above 1 a network is faster.
Times are CPU seconds of the process, in which waiting for a core does not count; with several
threads that overstates what a run costs by what its threads wait for each other.

MODEL: `small` is GPT-2 small's geometry with random weights; others are what `neurtx convert`
takes. NETWORK: `ttfs`, `linear`: the default recipe with this attention, in counts; `steps`: `ttfs`
step by step; `integer`: `ttfs` in integers, batch 1 alone. Thresholds are fitted to random tokens,
which decides nothing about speed but how long races last.
CASE: `evaluate`: logits of all tokens of a context. `prefill`: the state and the last logits.
`generate`: --new tokens behind a prompt that fills the rest of the context, greedy, by
transformers' `generate`, where the dense model has its key-value cache.

Memory is what a call needs at its peak beyond what was there before, in MiB, where the system tells
(Linux), and what a text keeps, its cache or state, in bytes a token.
Everything goes to OUT/bench.json and a picture of it to OUT/bench.png.
"""

import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from neurtransformer.dense import load_dense
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.provenance import versions
from neurtransformer.recipe import load_recipe
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import CACHE, SSAState

NETWORKS = ("ttfs", "linear", "steps", "integer")
CASES = ("evaluate", "prefill", "generate")
GOAL = 0.8

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """What is done, and on how much. context: tokens, the innate first one among them."""

    model: str
    name: str
    batch: int
    context: int
    new: int

    @property
    def tokens(self) -> int:
        """Tokens that a call is asked for."""
        return self.batch * (self.new if self.name == "generate" else self.context)

    def __str__(self) -> str:
        return f"{self.model}, {self.name}, {self.batch} x {self.context}"


def dense_model(name: str) -> PreTrainedModel:
    """The dense model called `name`, in float32 and eval mode."""
    if name != "small":
        return load_dense(name)[0]
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def converted(dense: PreTrainedModel, attention: str) -> Any:
    """`dense` by the default recipe with this attention."""
    recipe = load_recipe(attention=attention)
    tokens = torch.randint(1, dense.config.vocab_size, (4, 256))
    return convert(
        dense, tokens, recipe.timesteps, "", coding=recipe.coding, attention=attention,
        attention_code=recipe.attention_code, first_token=dense.config.bos_token_id,
    )  # fmt: skip


def call_of(network: Any, ids: Tensor, case: Case, steps: bool) -> Call:
    """What a network does in a case."""

    def call() -> Any:
        if isinstance(network, IntegerGPT2):
            if case.name == "generate":
                return network.generate(ids, case.new)
            return network(ids)
        network.steps = steps
        if case.name == "evaluate":
            return network(ids, use_cache=False)
        if case.name == "prefill":
            return network(ids, use_cache=True, logits_to_keep=1)
        return network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=case.new,
            min_new_tokens=case.new,
            do_sample=False,
            pad_token_id=0,
        )

    return call


def peak(call: Call) -> float | None:
    """MiB that a call needs beyond what the process has, None where the system does not tell."""

    def told(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = told("VmRSS")
        call()
        return (told("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        call()
        return None


def kept_bytes(network: Any, ids: Tensor) -> float | None:
    """Bytes that are kept of a text, for each of its tokens; None for integers."""
    if isinstance(network, IntegerGPT2):
        return None
    state = network(ids, use_cache=True, logits_to_keep=1)[CACHE]
    if isinstance(state, SSAState):
        parts = [part for block in state.states if block is not None for part in block]
    else:
        parts = [part for layer in state.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in parts) / ids.numel()


def measured(calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each call in each repeat, the first of which, to warm up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if repeat:
                seconds[name].append(time.process_time() - begin)
    return seconds


def rows_of(case: Case, networks: Mapping[str, Any], repeats: int) -> list[dict[str, Any]]:
    """What came of one case, a row for each network, the dense one first."""
    length = case.context - 1 - (case.new if case.name == "generate" else 0)
    vocabulary = networks["dense"].config.vocab_size
    ids = torch.randint(1, vocabulary, (case.batch, length))
    calls = {
        name: call_of(network, ids, case, name == "steps")
        for name, network in networks.items()
        if name != "integer" or case.batch == 1
    }
    memory = {name: peak(call) for name, call in calls.items()}
    seconds = measured(calls, repeats)
    rows = []
    for name, own in seconds.items():
        ratios = [d / s for d, s in zip(seconds["dense"], own, strict=True)]
        rows.append(
            {
                **asdict(case),
                "network": name,
                "tokens_per_second": case.tokens / statistics.median(own),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "largest": max(ratios),
                "peak_mib": memory[name],
                "kept_bytes_a_token": kept_bytes(networks[name], ids),
                "seconds": own,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| case | network | ratio to dense (least, largest) | tokens a CPU second | peak MiB | "
        "kept bytes a token |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        case = Case(**{key: row[key] for key in Case.__annotations__})
        kept, memory = (
            "-" if row[key] is None else f"{row[key]:,.0f}"
            for key in ("kept_bytes_a_token", "peak_mib")
        )
        lines.append(
            f"| {case} | {row['network']} | {row['ratio']:.2f} ({row['least']:.2f}, "
            f"{row['largest']:.2f}) | {row['tokens_per_second']:,.1f} | {memory} | {kept} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios as bars, from the least to the largest a line, and the goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["network"] != "dense"][::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    names = [
        f"{Case(**{key: row[key] for key in Case.__annotations__})}, {row['network']}"
        for row in rows
    ]
    ratios = [row["ratio"] for row in rows]
    spread = [
        [row["ratio"] - row["least"] for row in rows],
        [row["largest"] - row["ratio"] for row in rows],
    ]
    colours = [f"C{NETWORKS.index(row['network'])}" for row in rows]
    axes.barh(names, ratios, xerr=spread, color=colours)
    axes.axvline(1, color="black")
    axes.axvline(GOAL, color="black", linestyle=":")
    axes.set_xlabel("tokens a second over the dense model's")
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


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", "models", multiple=True, default=("gpt2-nano", "small"))
@click.option("--network", "chosen", multiple=True, type=click.Choice(NETWORKS),
              default=("ttfs", "linear"))  # fmt: skip
@click.option("--case", "names", multiple=True, type=click.Choice(CASES), default=CASES)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=(1, 8))
@click.option("--context", "contexts", multiple=True, type=click.IntRange(2), default=(512, 1024))
@click.option("--new", type=click.IntRange(1), default=64)
@click.option("--repeats", type=click.IntRange(1), default=5)
@click.option("--products", type=click.Choice(["float32", "bfloat16"]), default="float32")
@torch.inference_mode()
def main(
    out: Path,
    models: tuple[str, ...],
    chosen: tuple[str, ...],
    names: tuple[str, ...],
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    new: int,
    repeats: int,
    products: str,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("medium" if products == "bfloat16" else "highest")
    result: dict[str, Any] = {"machine": machine(), "products": products, "rows": []}
    for key, value in result["machine"].items():
        click.echo(f"{key}: {value}")
    for model in models:
        dense = dense_model(model)
        networks: dict[str, Any] = {"dense": dense}
        if {"ttfs", "steps", "integer"} & {*chosen}:
            race = converted(dense, "ttfs")
            networks |= {name: race for name in ("ttfs", "steps") if name in chosen}
            if "integer" in chosen:
                networks["integer"] = IntegerGPT2.from_spiking(race)
        if "linear" in chosen:
            networks["linear"] = converted(dense, "linear")
        for name in names:
            for batch in batches:
                for context in contexts:
                    if context > dense.config.max_position_embeddings:
                        continue
                    case = Case(model, name, batch, context, new)
                    rows = rows_of(case, networks, repeats)
                    click.echo(table(rows).split("\n", 2)[2], err=True)
                    result["rows"] += rows
                    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    click.echo(table(result["rows"]))
    draw(result["rows"], out / "bench.png")


if __name__ == "__main__":
    main()
