"""The race in Lava's learning engine: every head of every layer, beside the integer model.

    python scripts/race_engine.py [RUN] [--prompt TEXT]

RUN is one with `ttfs` attention, by default the last one made. A residual stream of the prompt goes
through each layer's attention, whose key and value synapses are written by the engine's own rule.
Each read and each synapse after each token is compared. The table goes to standard error, the JSON
to standard output.
"""

import json
import time
from typing import Any

import click
import numpy as np
from plasticity import PROMPT

from neurtransformer.errors import UserError
from neurtransformer.integer.attention.ttfs import RaceAttention
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.runs import resolve
from neurtransformer.spiking.load import load_run


@click.command()
@click.argument("run", required=False)
@click.option("--prompt", default=PROMPT, help="The text to run.")
def main(run: str | None, prompt: str) -> None:
    """Compare the race of RUN in Lava's learning engine with the integer model's."""
    from neurtransformer.loihi.race_engine import PHASE, compare

    folder = resolve("run", run)
    spiking, tokenizer = load_run(folder)
    model = IntegerGPT2.from_spiking(spiking)
    ids = np.array(tokenizer.encode(prompt))
    if model.begins(ids[None])[0]:
        ids = ids[1:]
    x = model.embedding.counts(ids)
    sizes = {"tokens": len(x), "steps": PHASE * len(x)}
    report: dict[str, Any] = {"run": str(folder), **sizes, "layers": []}
    for layer, attention in enumerate(model.attention):
        if not isinstance(attention, RaceAttention):
            raise UserError(f"{folder} has another attention than ttfs")
        began = time.monotonic()
        tally = compare(attention, x, range(attention.heads))
        seconds = time.monotonic() - began
        report["layers"].append({**vars(tally), "seconds": seconds})
        click.echo(
            f"layer {layer}: {tally.mismatches} of {tally.compared} integers differ, "
            f"{seconds:.0f} s",
            err=True,
        )
        x = attention.counts(x[None], attention.new_state(1))[0][0]
        x = model.feedforward[layer].counts(x)
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
