"""Which bit widths of the integer network matter: one made narrower at a time.

    python scripts/widths.py [RUN] [--text FILE] [--limit TOKENS]

Prints the perplexity of the integer network over the spiking network's, for the widths that ship
and for others. Only `linear` attention has a state. docs/loihi.md has the table.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from neurtransformer import runs
from neurtransformer.integer import arithmetic, config, from_spiking, model, quantise
from neurtransformer.loss import perplexity
from neurtransformer.spiking.load import load_run
from neurtransformer.text import load_blocks

BLOCK = 256
Change = tuple[Any, dict[str, Any]]


def widths(attention: str) -> Iterator[tuple[str, str, list[Change]]]:
    """(what, width, the constants that it changes)."""
    yield "as shipped", "", []
    for bits in (7, 6, 5, 4):
        yield "weights", f"{bits} bits", [(quantise, {"WEIGHT_LIMIT": 2**bits - 2})]
    for bits in (12, 10, 8, 6):
        yield (
            "residual stream",
            f"{bits} fraction bits",
            [(from_spiking, {"MAX_STREAM_BITS": bits})],
        )
    for bits in (12, 10, 8, 6):
        yield "LayerNorm's result", f"{bits} fraction bits", [(arithmetic, {"NORM_BITS": bits})]
    for bits in (6, 4, 3):
        most = {"FINAL_MOST": 2**bits - 1}
        yield "spikes before the LM head", f"{bits} bits and sign", [(config, most)]
    # no head's write shift has more to give than 6 bits at T = 8
    for bits in (22, 20, 18) if attention == "linear" else ():
        yield "state of the SSA", f"{bits} bits", [(arithmetic, {"write_shift": lower(24 - bits)})]
    for bits in (4, 3, 2):
        table = {"GELU_INDEX_BITS": bits, "GELU_ENTRIES": 4 << bits}
        yield "GELU table", f"{4 << bits} entries", [(arithmetic, table)]


def lower(bits: int) -> Callable[..., arithmetic.Integers]:
    """`arithmetic.write_shift` for a state that has so many bits fewer, at the same headroom."""
    whole = arithmetic.write_shift
    return lambda timesteps, shift: np.maximum(whole(timesteps, shift) - bits, 0)


@click.command()
@click.argument("run", default="gpt2-nano-linear")
@click.option("--text", help="Held-out text; default CPython's.")
@click.option("--limit", type=click.IntRange(min=2), default=2048, show_default=True)
def main(run: str, text: str | None, limit: int) -> None:
    """Measure RUN's integer network at several bit widths."""
    spiking, tokenizer = load_run(runs.resolve("run", run))
    length = min(BLOCK, spiking.config.n_positions)
    ids = load_blocks(text, tokenizer, length, split="heldout", limit_tokens=limit)
    table = Table("what", "width", "perplexity over the spiking network's")
    console = Console(stderr=True)
    reference = perplexity(lambda x: spiking(x).logits, ids)
    for what, width, changes in track(
        list(widths(spiking.config.attention)), "measuring", console=console
    ):
        with ExitStack() as stack:
            for module, constants in changes:
                stack.enter_context(mock.patch.multiple(module, **constants))
            integer = model.IntegerGPT2.from_spiking(spiking)
            found = perplexity(integer, ids)
        table.add_row(what, width, f"{found / reference:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
