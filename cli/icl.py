"""`neurtx icl`: what is learnt in context, and what of it survives."""

import importlib
from pathlib import Path
from typing import Any

import click

from .options import device_option, force_option, reporting, teacher_option, text_option
from .output import free_file

_TASKS = ("induction", "regression", "omniglot")


class _Tasks(click.Group):
    """A group of the three tasks, in this order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_TASKS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # options used to be taken before the task as well as behind it, and still are
        at = next((i for i, word in enumerate(args) if word in _TASKS), 0)
        if args:
            args = [args[at], *args[:at], *args[at + 1 :]]
        return super().parse_args(ctx, args)


@click.group(cls=_Tasks, no_args_is_help=False, subcommand_metavar="TASK [ARGS]...")
def command() -> None:
    """Measure what networks learn from their context, in floats, spikes, integers and Lava.

    A language model predicts later tokens of a text better than earlier ones, although its weights
    stay as they are: it learns from the context. Each task measures that in another way, and how
    much of it is left in spikes, in integers and in Lava.
    """


_picture = click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw the result into this .svg file."
)


@command.command()
@click.argument("run", required=False)
@text_option("Held-out text")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="Tokens to measure on.",
)
@_picture
@force_option("--picture")
@device_option
@teacher_option
@reporting
@click.pass_context
def induction(ctx: click.Context, **options: Any) -> None:
    """Measure induction heads of RUN, and its gain from the context.

    An induction head attends to the token that followed an earlier occurrence of the present one.
    The first measure is the share of attention that the best head puts there, on random tokens that
    repeat. The second is how much the loss falls from token 50 to token 500 of a text. Both are
    measured for the dense teacher, the network as it was converted, RUN and its integer network,
    which computes on the CPU.
    """
    _measure(ctx, options)


@command.command()
@_picture
@force_option("--picture")
@reporting
@click.pass_context
def regression(ctx: click.Context, **options: Any) -> None:
    """Compare attention with a step of gradient descent.

    One layer of attention without softmax, given examples of a linear function in its context,
    predicts what one step of gradient descent on them would. The command measures how far the two
    are apart in floats, in integers and in Lava's learning engine. It also says which algorithm
    trained attention layers are closest to. It needs no run.
    """
    _measure(ctx, options)


@command.command()
@click.argument("run", required=False)
@click.option(
    "--data", type=click.Path(path_type=Path), help="The folder with Omniglot's archives."
)
@click.option(
    "--ways", type=click.IntRange(min=2), help="How many characters the network chooses between."
)
@click.option(
    "--shots", type=click.IntRange(min=1), help="How many labelled drawings it sees of each."
)
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="How many trials per setting.",
)
@device_option
@reporting
@click.pass_context
def omniglot(ctx: click.Context, **options: Any) -> None:
    """Tell characters apart that the network has never seen.

    A small transformer, whose attention is a plastic connection, reads a few drawings with labels
    and says what one more drawing is. The command measures its accuracy in floats, in integers and
    in the arithmetic of Loihi 2's learning engine, and that of three controls. RUN is a folder of
    your own training; left out, it is omniglot-plastic, which ships with the package.

    Without --ways and --shots three settings are measured, and the official one-shot runs too if
    all_runs.zip is in the folder. Without --data the drawings are fetched from the hub.
    """
    _measure(ctx, options)


def _measure(ctx: click.Context, options: dict[str, Any]) -> None:
    """Call the function of the task's own file, which loads what it needs."""
    force = options.pop("force", False)
    if options.get("picture") is not None:
        options["picture"] = free_file(
            options["picture"], "--picture", force=force, kinds=(".svg",)
        )
    task = str(ctx.command.name)
    getattr(importlib.import_module(f".icl_{task}", __package__), task)(**options)
