"""`neurtx export`: a run becomes a netlist."""

from pathlib import Path
from typing import Literal

import click

from .output import answer, json_option, teacher_option


@click.command()
@click.argument("run", required=False)
@click.option("--target", type=click.Choice(["loihi2", "nir"]), required=True)
@click.option(
    "--spikes",
    type=click.Choice(["binary", "graded", "rate"]),
    # the word of old, which also names a code, is still taken
    callback=lambda ctx, option, word: "binary" if word == "rate" else word,
    metavar="[binary|graded]",
    default="binary",
    show_default=True,
    help="A count as T binary spikes, or as one graded spike (Loihi 2).",
)
@click.option("--text", help="Text to measure the integers on: a file, - or a hub data set.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the netlist.")
@click.option("--force", is_flag=True, help="Replace a netlist that stands at --out.")
@teacher_option
@json_option
def command(
    run: str | None,
    target: Literal["loihi2", "nir"],
    spikes: Literal["binary", "graded"],
    text: str | None,
    out: Path | None,
    force: bool,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Write RUN as a netlist for Loihi 2, or what NIR can hold of it as NIR graphs.

    Weights become 8-bit integers, states 24-bit ones. For Loihi 2 each projection becomes a netx
    file that stock Lava loads; what the integers cost is measured on a little held-out text, and
    `neurtx simulate` runs the netlist and checks it. NIR holds the feed-forward chains, but no
    product of two signals: no attention, no LayerNorm. For Loihi 2 RUN may also be a plastic
    transformer, such as omniglot-plastic. A model that does not read English wants --text, or
    nothing is measured.
    """
    from neurtransformer import api, runs

    from . import progress

    values = api.export(
        run,
        out,
        target=target,
        spikes=spikes,
        text=text,
        teacher=teacher,
        force=force,
        progress=progress,
    )
    if target == "loihi2":  # `simulate` and `place` read no others
        runs.remember("netlist", values["netlist"])
    answer(values, as_json=as_json, title="exported")
