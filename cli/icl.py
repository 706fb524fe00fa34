"""`neurtx icl`: what is learnt in context, and what of it survives."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .output import json_option, teacher_option

# which options each task has; its function in the file of its name takes just these
TASKS: dict[str, set[str]] = {
    "induction": {"run", "text", "limit", "picture", "teacher"},
    "regression": {"picture"},
    "omniglot": {"run", "data", "ways", "shots", "episodes"},
}
_ALL = {"task", "force", "as_json"}


@click.command()
@click.argument("task", type=click.Choice(list(TASKS)))
@click.argument("run", required=False)
@click.option("--text", help="induction: held-out text, a file, - or a hub data set.")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="induction: tokens of it.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="induction, regression: an SVG to write.",
)
@click.option("--force", is_flag=True, help="Replace a file that stands at --picture.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="omniglot: the folder of its archives."
)
@click.option("--ways", type=click.IntRange(min=2), help="omniglot: characters of an episode.")
@click.option("--shots", type=click.IntRange(min=1), help="omniglot: drawings of each in context.")
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="omniglot: how many of each setting.",
)
@teacher_option
@json_option
@click.pass_context
def command(ctx: click.Context, task: str, force: bool, as_json: bool, **options: Any) -> None:
    """Measure in-context learning. TASK is one of three.

    induction: attention heads of RUN that find what followed an earlier occurrence of a token, and
    how much the loss falls along the context, for the dense teacher, the naive conversion, RUN and
    its integer network.

    regression: attention as a step of gradient descent on examples, in floats, in integers and in
    Lava's learning engine, and what trained attention layers do instead. It needs no RUN.

    omniglot: characters of unseen alphabets told from a few drawings in the context, by a small
    transformer whose attention is a plastic connection, in float, in integers and in the learning
    engine, and by controls. RUN is a folder of your own training, left out omniglot-plastic.
    Without --ways and --shots in three settings, and in the official one-shot runs where
    all_runs.zip is in the folder.
    """
    import importlib

    for name in ctx.params.keys() - TASKS[task] - _ALL:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            shown = "RUN" if name == "run" else f"--{name}"
            raise click.UsageError(f"icl {task} takes no {shown}", ctx)
    if options["picture"] is not None:
        options["picture"] = _free(options["picture"].expanduser(), force)
    measure = getattr(importlib.import_module(f".icl_{task}", __package__), task)
    measure(**{name: options[name] for name in TASKS[task]}, as_json=as_json)


def _free(picture: Path, force: bool) -> Path:
    """`picture`, if a file may be written there: said before anything is measured."""
    special = picture.exists() and not picture.is_file()  # a folder, or as /dev/stdout is
    picture = picture.resolve()
    if special or not picture.parent.is_dir():
        raise click.UsageError(f"{picture} cannot be a file: name one in a folder that exists")
    if picture.exists() and not force:
        raise click.UsageError(f"{picture} exists already: name another file or add --force")
    return picture
