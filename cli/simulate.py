"""`neurtx simulate`: a prompt through a netlist, checked integer for integer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .output import answer, json_option, utf8

if TYPE_CHECKING:
    from neurtransformer.loihi.simulate import Backend


@click.command()
@click.argument("netlist", required=False)
@click.option("--prompt", help="The text to run.", callback=utf8)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="For a plastic transformer: the folder of Omniglot's archives.",
)
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
    prompt: str | None,
    data: Path | None,
    backend: "Backend",
    tokens: int,
    as_json: bool,
) -> None:
    """Run a prompt or drawings through NETLIST in Lava, in fixed point, and the integer model.

    All of the network runs, from the token's spike to the logits. Every spike and state of every
    time step is compared, and the text that follows. Exit code 1 if any differs.

    A plastic transformer reads drawings: of one character each, with labels, and one more drawing
    without. Its synapses learn the labels in Lava's learning engine while it runs.
    """
    from neurtransformer import runs

    if (prompt is None) == (data is None):
        raise click.UsageError(
            "give --prompt TEXT, or --data FOLDER for a netlist that reads drawings", ctx
        )
    if data and ctx.get_parameter_source("tokens") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--tokens is for --prompt: drawings have one answer", ctx)
    folder = runs.resolve("netlist", netlist)
    if backend == "lava":
        import neurtransformer.loihi.lava_compat  # noqa: F401  (says so if Lava is missing)
    if prompt is not None:
        values = _prompt(folder, prompt, backend, tokens)
    elif data is not None:
        values = _drawings(folder, data, backend)
    titles = {"lava": "Lava beside the integer model", "integer": "time steps beside counts"}
    answer({"netlist": folder, **values}, as_json=as_json, title=titles[backend])
    if values["mismatches"] or not values.get("same_text", True):
        ctx.exit(1)


def _prompt(folder: Path, prompt: str, backend: "Backend", tokens: int) -> dict[str, Any]:
    from neurtransformer import runs
    from neurtransformer.loihi.netlist import read_text
    from neurtransformer.loihi.simulate import prompt_ids, simulate
    from neurtransformer.provenance import stamp

    from .progress import bar

    loaded = read_text(folder)
    ids = prompt_ids(loaded, prompt, tokens)
    exported = loaded.manifest.run_sha256
    networks = len(loaded.manifest.networks)
    with bar(f"simulating ({backend})", networks, "networks") as advance:
        values = simulate(
            loaded, ids, backend, tokens=tokens, on_network=lambda name: advance(1, name)
        )
    if backend == "lava" and loaded.manifest.run is not None:
        run = Path(loaded.manifest.run)
        if runs.is_one("run", run):
            runs.update_report(run, "simulate", values, stamp(weights_sha256=exported))
    return values


def _drawings(folder: Path, data: Path, backend: "Backend") -> dict[str, Any]:
    """One episode of as many characters as the netlist has labels, or as there are."""
    from neurtransformer.errors import UserError
    from neurtransformer.icl import omniglot, plastic
    from neurtransformer.loihi.episode import simulate_episode
    from neurtransformer.loihi.netlist import read_plastic

    from .progress import status

    config = (loaded := read_plastic(folder)).model.config
    if config.side != omniglot.SIDE:
        raise UserError(f"{folder} reads drawings of other sides than {omniglot.SIDE}")
    with status(f"simulating ({backend})") as note:
        note("reading drawings")
        # no matter which: what is asked here is whether both do the same
        drawings = omniglot.load_drawings(data)
        ways = min(config.ways, drawings.size[0])
        episode = omniglot.draw_episodes(*drawings.size, ways, 1, 1, seed=0)
        shown, labels = (x[0] for x in plastic.tokens(episode))
        ink = drawings.ink.reshape(-1, omniglot.SIDE, omniglot.SIDE)[shown]
        note(f"{len(ink)} drawings")
        values = simulate_episode(
            loaded, plastic.ink_counts(ink, config.timesteps), labels, backend
        )
    return {**values, "answer": str(episode.answer[0]), "ways": ways, "shots": 1}
