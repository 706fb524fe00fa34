"""Options that several commands have: each stands here once, and means the same everywhere.

`reporting` gives a command `--quiet`, `--verbose` and `--json`; every command has these three.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from . import output

F = TypeVar("F", bound=Callable[..., Any])

# as neurtransformer.device has them, which is not imported for the help
_DTYPES = ("float32", "bfloat16", "float16")


_LOUDNESS = "neurtx.loudness"


def _on_quiet(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        _not_both(ctx, "quiet")
        ctx.with_resource(output.silenced())


def _on_verbose(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        _not_both(ctx, "verbose")
        ctx.with_resource(output.talkative())


def _not_both(ctx: click.Context, loudness: str) -> None:
    if ctx.meta.setdefault(_LOUDNESS, loudness) != loudness:
        ctx.close()  # click does that only for what could be parsed
        raise click.UsageError("--quiet and --verbose exclude each other: leave one out", ctx)


def _on_json(ctx: click.Context, _option: click.Parameter, value: bool) -> bool:
    if value and not ctx.resilient_parsing:
        output.reserve(ctx)
    return value


def reporting(command: F) -> F:
    """Give a command `--quiet`, `--verbose` and `--json`, the last as its argument `as_json`."""
    options = (
        click.option(
            "--quiet",
            "-q",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_on_quiet,
            help="Print only the answer and errors.",
        ),
        click.option(
            "--verbose",
            "-v",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_on_verbose,
            help="Show what the libraries report too, and the traceback of a failure.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            is_eager=True,
            callback=_on_json,
            help="Print one JSON object on standard output and nothing else.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def force_option(option: str) -> Callable[[F], F]:
    """`--force` of a command that writes one file. option: what names this file."""
    return click.option("--force", is_flag=True, help=f"Replace a file that stands at {option}.")


teacher_option = click.option(
    "--teacher",
    metavar="NAME_OR_FOLDER",
    help="Use this dense model as the teacher, if the original has moved or you want another.",
)


def text_option(use: str) -> Callable[[F], F]:
    """`--text`, the same kinds of text everywhere. use: what the command does with it."""
    return click.option(
        "--text",
        help=f"{use}: a file, - for standard input, or a data set on the Hugging Face hub "
        "(owner/name).",
    )


device_option = click.option(
    "--device",
    metavar="[cpu|cuda|cuda:N]",
    default="cpu",
    show_default=True,
    help="Device that computes.",
)

dtype_option = click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    default=_DTYPES[0],
    show_default=True,
    help="Number format of the weights; spikes and states are always float32.",
)


def utf8(_ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """A click callback: text that a tokenizer will read has to be text."""
    if value and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise click.BadParameter("this is not UTF-8 text")
    return value
