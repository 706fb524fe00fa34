"""`neurtx eval`: a run beside its dense teacher, on the same tokens."""

from typing import Literal

import click

from .options import device_option, dtype_option, reporting, teacher_option, text_option
from .output import answer, meant_table


@click.command()
@click.argument("run", required=False)
@text_option("Held-out text")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=8192,
    show_default=True,
    help="Tokens to measure on.",
)
@click.option(
    "--block",
    type=click.IntRange(min=2),
    help="Cut the text into pieces of this many tokens.  [default: the model's context, 1024 at "
    "most]",
)
@click.option(
    "--mode",
    type=click.Choice(["counts", "steps"]),
    default="counts",
    show_default=True,
    help="counts: fast. steps: simulate each time step with SpikingJelly.",
)
@device_option
@dtype_option
@teacher_option
@reporting
def command(
    run: str | None,
    text: str | None,
    limit: int,
    block: int | None,
    mode: Literal["counts", "steps"],
    device: str,
    dtype: str,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Compare RUN with the dense model it was made from, on the same tokens.

    ppl_ratio is the perplexity of RUN divided by that of the dense model. cosine_similarity
    compares the hidden states in front of the LM head. token_agreement is how often both predict
    the same next token.

    `--mode counts` computes the number of each neuron's spikes at once. `--mode steps` simulates
    every time step with SpikingJelly's neurons; that takes longer, and the numbers are equal. The
    loss by position, up to twice the context of the model, is measured too; `neurtx report` draws
    it.

    RUN may also be a run on the Hugging Face hub, owner/name. `--json` adds what the benchmark
    NeuroBench measures, under its names.
    """
    from neurtransformer import api

    from . import progress

    values = api.evaluate(
        run,
        text=text,
        limit=limit,
        block=block,
        mode=mode,
        device=device,
        dtype=dtype,
        teacher=teacher,
        progress=progress,
    )
    # what the report draws: rates layer by layer, losses position by position, one sentence; and
    # what other benchmarks call the rest
    drawn = (
        "spike_rate_by_layer",
        "loss_by_position",
        "race",
        "raster",
        "attention_maps",
        "neurobench",
    )
    rows = [
        (f"{name}, ESTIMATE" if "energy" in name else name, value)
        for name, value in values.items()
        if name not in drawn
    ]
    title = "the spiking network compared with the dense model"
    answer(values, as_json=as_json, table=lambda: meant_table(rows, "eval", title=title))
