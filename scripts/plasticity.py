"""The SSA in Lava's learning engine: how far from the exact one, and which limit of it costs what.

    python scripts/plasticity.py [RUN] [--prompt TEXT] [--perplexity TOKENS]

RUN is one with `linear` attention. All heads of all blocks read and write the counts that they have
on the prompt, each time with another shift of forgetting, the last time with their own. The
exponent of a head's weights is calibrated on another text of the same length. One block of each
line runs in Lava too, and all do in the last. The table goes to standard error, the JSON to
standard output.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

from neurtransformer.codes import NO_FORGETTING
from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.attention.base import Innate
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import learning
from neurtransformer.loihi.learning import FORMS, SHIFTS, Form, PlasticHeads
from neurtransformer.loss import perplexity
from neurtransformer.runs import resolve
from neurtransformer.spiking.load import load_run
from neurtransformer.text import load_blocks

PROMPT = (
    "The old man walked down to the river every morning. He carried a small wooden box, and in the "
    "box there was a letter that he had never opened. One morning the river had risen, and the old "
    "man stood on the bank and looked at the box for a long time before he opened the letter."
)
Counts = tuple[Integers, Integers, Integers]
Forgetting = tuple[Integers, Integers]


def behind(first: Innate | None, counts: Counts) -> Counts:
    """Counts (tokens, ..., heads, dim), with the innate token, where there is one, before them: it
    asks nothing, and its read is 0."""
    if first is None:
        return counts
    query, key, value = counts
    before = (
        np.broadcast_to(x[:, 0], (1, *like.shape[1:]))
        for x, like in zip(first, (key, value), strict=True)
    )
    parts = zip((np.zeros_like(query[:1]), *before), counts, strict=True)
    query, key, value = (np.concatenate(part) for part in parts)
    return query, key, value


def counts_of(model: IntegerGPT2, ids: torch.Tensor) -> tuple[list[Counts], list[Forgetting]]:
    """Query, key and value counts (tokens, heads, dim) and the forgetting of each block, those of
    the innate token first."""
    counts: list[Counts] = []
    forgetting: list[Forgetting] = []
    exact = arithmetic.ssa_recurrent

    def listen(*arguments: Any) -> Any:
        query, key, value = (np.moveaxis(x[0], -2, 0) for x in arguments[:3])
        counts.append(behind(model.attention[len(counts)].first, (query, key, value)))
        forgetting.append(arguments[3])
        return exact(*arguments)

    with mock.patch.object(arithmetic, "ssa_recurrent", listen):
        model(ids)
    return counts, forgetting


@contextlib.contextmanager
def in_plastic_synapses(
    model: IntegerGPT2, exponents: list[Integers], form: Form
) -> Iterator[None]:
    """While open, the SSA of `model` is that of the learning engine, from empty weights."""
    calls = 0

    def ssa_recurrent(
        query: Integers,
        key: Integers,
        value: Integers,
        forgetting: Forgetting,
        timesteps: int,
        state: Integers,
    ) -> tuple[Integers, Integers]:
        nonlocal calls
        layer = calls % len(exponents)
        calls += 1
        heads = PlasticHeads(forgetting, exponents[layer], timesteps, form)
        query, key, value = (np.moveaxis(x, -2, 0) for x in (query, key, value))
        counts = behind(model.attention[layer].first, (query, key, value))
        draws = learning.lava_draws(len(counts[0]))
        tokens = [heads.token(*token)[0] for token in zip(*counts, draws, strict=True)]
        reads = np.stack(tokens)[-len(query) :]
        # weights that are not rounded are read as if they had 8 fraction bits
        reads = np.rint(reads * (256 if form.rounding == "none" else 1)).astype(np.int64)
        reads[..., -1] = np.maximum(reads[..., -1], 0)
        return np.moveaxis(reads, 0, -2), state

    with mock.patch.object(arithmetic, "ssa_recurrent", ssa_recurrent):
        yield


def measure(
    counts: list[Counts],
    calibration: list[Counts],
    forgetting: list[Forgetting],
    timesteps: int,
    in_lava: range,
) -> dict[str, Any]:
    """One line: errors of each form, means over heads, and the comparison with Lava itself."""
    from neurtransformer.loihi.plasticity import run_plastic_ssa

    errors: dict[str, list[float]] = {name: [] for name in FORMS}
    correlations: list[float] = []
    compared = mismatches = 0
    for block, (sequence, other, (shift, present)) in enumerate(
        zip(counts, calibration, forgetting, strict=True)
    ):
        exponent = learning.fitting_exponent(*other[1:], shift, timesteps)
        exact = learning.exact_reads(*sequence, (shift, present), timesteps)
        setting = (shift, present), exponent, timesteps
        for name, form in FORMS.items():
            reads, weights = learning.plastic_ssa(*sequence, *setting, form)
            error, correlation = learning.compare(reads, exact, timesteps)
            errors[name] += error.tolist()
            if name == "lava":
                correlations += correlation.tolist()
                if block in in_lava:
                    for ours, theirs in zip(
                        (reads, weights), run_plastic_ssa(*sequence, *setting), strict=True
                    ):
                        compared += theirs.size
                        mismatches += int(np.count_nonzero(ours != theirs))
    return {
        "relative_error": {name: float(np.mean(error)) for name, error in errors.items()},
        "lava_heads": errors["lava"],
        "correlation": float(np.mean(correlations)),
        "compared": compared,
        "mismatches": mismatches,
    }


def line(name: str, values: dict[str, float], last: str = "") -> None:
    """One line of a table."""
    numbers = "".join(f"{value:11.4f}" for value in values.values())
    click.echo(f"{name:>10}{numbers} {last}", err=True)


@click.command()
@click.argument("run", default="gpt2-nano-linear")
@click.option("--prompt", default=PROMPT, help="The text to measure on.")
@click.option("--perplexity", "tokens", default=0, help="Also on this many held-out tokens.")
def main(run: str, prompt: str, tokens: int) -> None:
    """Compare the SSA of RUN in Lava's learning engine with the exact one."""
    spiking, tokenizer = load_run(resolve("run", run))
    model = IntegerGPT2.from_spiking(spiking)
    if model.config.attention != "linear":
        raise UserError(f"{run} has another attention than linear: see scripts/race_engine.py")
    timesteps, layers = model.config.timesteps, model.config.layers
    ids = torch.tensor([tokenizer.encode(prompt)])
    length = ids.shape[1]
    train = load_blocks(None, tokenizer, model.config.context, split="train")[:1]
    counts, trained = counts_of(model, ids)
    calibration, _ = counts_of(model, train[:, :length])
    click.echo(f"{length} tokens, relative error of o / d:", err=True)
    click.echo(" " * 10 + "".join(f"{name:>11}" for name in FORMS) + "  correlation", err=True)
    report: dict[str, Any] = {"run": run, "tokens": length, "shifts": {}}
    for i, shift in enumerate((*SHIFTS, NO_FORGETTING)):
        forgetting = [(np.full_like(s, shift), present) for s, present in trained]
        in_lava = range(i % layers, i % layers + 1)
        found = measure(counts, calibration, forgetting, timesteps, in_lava)
        name = "never" if shift == NO_FORGETTING else str(shift)
        report["shifts"][name] = found
        line(name, found["relative_error"], f"{found['correlation']:12.4f}")
    found = measure(counts, calibration, trained, timesteps, range(layers))
    report["trained"] = found
    line("trained", found["relative_error"], f"{found['correlation']:12.4f}")
    lines = [*report["shifts"].values(), found]
    compared, mismatches = (sum(x[key] for x in lines) for key in ("compared", "mismatches"))
    click.echo(f"{mismatches} of {compared} integers differ between NumPy and Lava", err=True)
    if tokens:
        blocks = load_blocks(
            None, tokenizer, model.config.context, split="heldout", limit_tokens=tokens
        )
        whole, _ = counts_of(model, train)
        exponents = [
            learning.fitting_exponent(*c[1:], shift, timesteps)
            for c, (shift, _) in zip(whole, trained, strict=True)
        ]
        report["perplexity"] = {"exact": perplexity(model, blocks)}
        for name, form in FORMS.items():
            with in_plastic_synapses(model, exponents, form):
                report["perplexity"][name] = perplexity(model, blocks)
            click.echo(f"perplexity, {name}: {report['perplexity'][name]:.3f}", err=True)
        report["perplexity_tokens"] = blocks.numel()
        report["exponents"] = [exponent.tolist() for exponent in exponents]
        click.echo(f"perplexity, exact: {report['perplexity']['exact']:.3f}", err=True)
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
