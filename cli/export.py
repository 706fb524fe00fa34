"""`neurtx export`: a run becomes a netlist."""

from pathlib import Path
from typing import Literal

import click

from .options import device_option, reporting, teacher_option, text_option
from .output import answer


@click.command()
@click.argument("run", required=False)
@click.option(
    "--target",
    type=click.Choice(["loihi2", "nir"]),
    required=True,
    help="loihi2: a netlist for Lava. nir: the parts that NIR can hold.",
)
@click.option(
    "--spikes",
    type=click.Choice(["binary", "graded", "rate"]),
    # the word of old, which also names a code, is still taken
    callback=lambda ctx, option, word: "binary" if word == "rate" else word,
    metavar="[binary|graded]",
    default="binary",
    show_default=True,
    help="binary: a number is sent as T spikes of one bit. graded: as one spike that carries it.",
)
@text_option("Text to measure the integers on")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder to write.  [default: a free one in ./netlists]",
)
@click.option("--force", is_flag=True, help="Replace a netlist that stands at --out.")
@device_option
@teacher_option
@reporting
def command(
    run: str | None,
    target: Literal["loihi2", "nir"],
    spikes: Literal["binary", "graded"],
    text: str | None,
    out: Path | None,
    force: bool,
    device: str,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Write RUN as a netlist for Loihi 2, or what NIR can hold of it as NIR graphs.

    A netlist is a folder with the network in integers: weights of 8 bits, and states of at most 24.
    Each projection becomes a file in netx, Lava's format, which stock Lava loads. The command
    measures on a little held-out text what the integers cost; for a model that does not read
    English give some with --text. `neurtx simulate` runs the netlist and checks it. RUN may also be
    a plastic transformer, such as omniglot-plastic.

    `--target nir` writes the parts that NIR, an exchange format, can hold: the chains of linear
    layers and neurons. It has no product of two signals, so attention and LayerNorm are left out.
    """
    from neurtransformer import api, runs

    from . import progress

    values = api.export(
        run,
        out,
        target=target,
        spikes=spikes,
        text=text,
        device=device,
        teacher=teacher,
        force=force,
        progress=progress,
    )
    if target == "loihi2":  # `simulate` and `place` read no others
        runs.remember("netlist", values["netlist"])
    answer(values, as_json=as_json, title="exported", command="export")
