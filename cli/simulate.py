"""`neurtx simulate`: a prompt through a netlist, checked integer for integer."""

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from .options import reporting, utf8
from .output import answer


@click.command()
@click.argument("netlist", required=False)
@click.option("--prompt", help="The text to run.", callback=utf8)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The folder of Omniglot's archives, for a netlist that reads drawings.",
)
@click.option(
    "--backend",
    type=click.Choice(["lava", "integer"]),
    default="lava",
    show_default=True,
    help="Compare Lava with the integer model, or that model's time steps with its counts.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many tokens to write behind the prompt.",
)
@reporting
@click.pass_context
def command(
    ctx: click.Context,
    netlist: str | None,
    prompt: str | None,
    data: Path | None,
    backend: Literal["lava", "integer"],
    tokens: int,
    as_json: bool,
) -> None:
    """Run a prompt through NETLIST in Lava, and compare every spike and state.

    The whole network runs in Lava's fixed-point simulation, from the spike of a token to the
    logits. Every spike and state of every time step is compared with the integer model, and so is
    the text that follows the prompt. The exit code is 1 if anything differs.

    A plastic transformer (such as omniglot-plastic) reads drawings in place of a prompt: some
    characters with labels, and one more drawing without. Its synapses learn the labels in Lava's
    learning engine while it runs.
    """
    from neurtransformer import api

    from . import progress

    if (prompt is None) == (data is None):
        raise click.UsageError(
            "give --prompt TEXT, or --data FOLDER for a netlist that reads drawings", ctx
        )
    if data and ctx.get_parameter_source("tokens") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--tokens is for --prompt: drawings have one answer", ctx)
    values = api.simulate(
        netlist, prompt, data=data, backend=backend, tokens=tokens, progress=progress
    )
    titles = {
        "lava": "Lava compared with the integer model",
        "integer": "time steps of the integer model compared with its counts",
    }
    answer(values, as_json=as_json, title=titles[backend], command="simulate")
    if values["mismatches"] or not values.get("same_text", True):
        ctx.exit(1)
