"""`neurtx energy`: an estimate of a run's energy beside the dense model's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .bill import bill_tables
from .options import device_option, dtype_option, force_option, reporting, text_option
from .output import answer, free_file, rows_table

_PARTS = {
    "attention": "attention blocks",
    "feed_forward": "feed-forward blocks",
    "model": "whole model",
}
_ARITHMETIC = (
    " A MAC is a product and its addition, which a dense model does; an AC adds the weight of one "
    "spike. Negative savings are losses. the paper %: what NeurTransformer (arXiv:2510.00133) "
    "reports.\n"
)
_FORMS = ("dense", "spiking", "graded")


@click.command()
@click.argument("run", required=False)
@text_option("Text to count spikes on")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="Tokens to count spikes on.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Draw where the energy goes into this file (.png or .svg).",
)
@force_option("--picture")
@device_option
@dtype_option
@reporting
def command(
    run: str | None,
    text: str | None,
    limit: int,
    picture: Path | None,
    force: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Estimate the energy per token of RUN beside the dense model it was made from.

    This is an estimate: nothing is measured on a chip. The operations of both networks are counted,
    those of RUN with the spikes that it sends on held-out text, and multiplied by published
    energies. The first table counts arithmetic, as papers on spiking networks do. The full bill
    below it counts everything that is done and moved, and says at what spike rate a dense model in
    8-bit integers would need as much. docs/energy.md explains the tables.
    """
    from neurtransformer import runs
    from neurtransformer.device import device_of, placed

    device_of(device)
    if picture is not None:
        picture = free_file(picture, "--picture", force=force, kinds=(".png", ".svg"))
    folder = runs.resolve("run", run)

    from neurtransformer.measure.energy import estimate, measure_spikes
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run
    from neurtransformer.text import BLOCK, load_blocks

    from .progress import bar

    model, tokenizer = load_run(folder)
    blocks = load_blocks(
        text, tokenizer, min(BLOCK, model.config.context), split="heldout", limit_tokens=limit
    )
    provenance = stamp(weights_sha256=model_sha256(model), text_sha256=text_sha256(blocks))
    placed(model, device, dtype)
    blocks = blocks.to(model.device)
    with bar("counting spikes", blocks.numel(), "tokens") as advance:
        counter = measure_spikes(model, blocks, on_tokens=lambda tokens: advance(tokens, ""))
    values = {"text": text, "tokens": blocks.numel(), **estimate(model, counter)}
    runs.update_report(folder, "energy", values, provenance)
    values = {"run": folder, **values}
    if picture is not None:
        from neurtransformer.measure.figures import energy_bill

        runs.write_bytes(picture, energy_bill(values["bill"], picture.suffix.lower()[1:]))
        values["picture"] = picture
    answer(values, as_json=as_json, table=lambda: _tables(values))


def _tables(values: Mapping[str, Any]) -> Any:
    """The estimate for a person: arithmetic, other prices, the full bill."""
    from rich.console import Group

    from neurtransformer.measure.summary import thinned_line

    low, high = values["paper_reduction_percent"]
    used = values["constants"]
    paper = {"attention": f"{low} to {high}"}
    rows = [
        (
            title,
            *(values[part][f"{form}_j"] * 1e6 for form in _FORMS),
            values[part]["reduction_percent"],
            paper.get(part, ""),
        )
        for part, title in _PARTS.items()
    ]
    return Group(
        rows_table(
            (
                "per token, microjoules",
                *("dense", "spiking", "graded spikes", "spiking saves %", "the paper %"),
            ),
            rows,
            title=f"ESTIMATED energy of arithmetic alone: T = {values['timesteps']}, context "
            f"{values['context']}, {used['mac_pj']} pJ a MAC, {used['ac_pj']} pJ an AC",
        ),
        _ARITHMETIC,
        *([f" {thinned_line(values['thinned'])}\n"] if values["thinned"] else []),
        rows_table(
            (
                "number format",
                "pJ a MAC",
                "pJ an AC",
                "attention %",
                "feed-fwd %",
                "model %",
            ),
            [tuple(row.values()) for row in values["alternatives"]],
            title="what spikes save with other energies per operation from the same source",
        ),
        *bill_tables(values["bill"]),
        f" {values['run']}\n {used['source']}.\n"
        f" Spikes counted on {values['tokens']:,} tokens of text. Graded spikes"
        " carry a count: fewer weights read, but each one multiplied.\n",
    )
