"""`neurtx simulate`: a prompt through a netlist, checked integer for integer."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import answer, json_option

if TYPE_CHECKING:
    from neurtransformer.loihi.simulate import Backend


@click.command()
@click.argument("netlist", required=False)
@click.option("--prompt", required=True, help="The text to run.")
@click.option(
    "--backend",
    type=click.Choice(["lava", "integer"]),
    default="lava",
    show_default=True,
    help="lava: Lava against the integer model. integer: its time steps against its counts.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many tokens to write behind the prompt.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    netlist: str | None,
    prompt: str,
    backend: "Backend",
    tokens: int,
    as_json: bool,
) -> None:
    """Run a prompt through NETLIST in Lava, in fixed point, and through the integer model.

    All of the network runs, from the token's spike to the logits. Every spike and state of every
    time step is compared, and the text that follows. Exit code 1 if any differs.
    """
    from neurtransformer import runs

    folder = runs.resolve("netlist", netlist)

    from neurtransformer.loihi.netlist import read
    from neurtransformer.loihi.simulate import prompt_ids, simulate

    if backend == "lava":
        import neurtransformer.loihi.lava_compat  # noqa: F401  (says so if Lava is missing)

    from .progress import bar

    loaded = read(folder)
    ids = prompt_ids(loaded, prompt, tokens)
    networks = len(loaded.manifest.networks)
    with bar(f"simulating ({backend})", networks, "networks") as advance:
        values = simulate(
            loaded, ids, backend, tokens=tokens, on_network=lambda name: advance(1, name)
        )
    if backend == "lava" and loaded.manifest.run is not None:
        run = Path(loaded.manifest.run)
        if runs.is_one("run", run):
            runs.update_report(run, "simulate", values)
    values = {"netlist": folder, **values}
    titles = {"lava": "Lava beside the integer model", "integer": "time steps beside counts"}
    answer(values, as_json=as_json, title=titles[backend])
    if values["mismatches"] or not values["same_text"]:
        ctx.exit(1)
