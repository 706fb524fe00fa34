"""Progress on standard error: a bar with the time left, or lines where there is no terminal.

This module has the shape of `neurtransformer.progress.Progress`: commands pass it to the library.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import click

from .output import is_silent

Advance = Callable[[int, str], None]


@contextmanager
def bar(
    title: str, total: int, unit: str, *, quiet: bool = False, brief: bool = False
) -> Iterator[Advance]:
    """Yields `advance(amount, note)`; the note says how it goes.

    In a log or a batch job it is a line for every tenth of the way, and nothing if `brief`. With
    `quiet`, or where the caller has typed `--quiet`, it is nothing anywhere.
    """
    if quiet or is_silent() or (brief and not sys.stderr.isatty()):
        yield lambda _amount, _note: None
        return
    if not sys.stderr.isatty():
        yield _lines(title, total, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)

        def advance(amount: int, note: str) -> None:
            progress.update(task, advance=amount, description=f"{title} {note}".rstrip())

        yield advance


def _lines(title: str, total: int, unit: str) -> Advance:
    done = 0
    # what a resumed training brings along comes at once: it says nothing of the pace
    first: tuple[int, float] | None = None

    def advance(amount: int, note: str) -> None:
        nonlocal done, first
        before, done = done, done + amount
        first = first or (done, time.monotonic())
        if 10 * done // total == 10 * before // total:
            return
        parts = [f"{title}: {done:,} of {total:,} {unit}"]
        if note:
            parts.append(note)
        if first[0] < done < total:
            pace = (time.monotonic() - first[1]) / (done - first[0])
            parts.append(f"{timedelta(seconds=round(pace * (total - done)))} left")
        click.echo(", ".join(parts), err=True)

    return advance


@contextmanager
def status(title: str) -> Iterator[Callable[[str], None]]:
    """Yields `note(text)` for work whose length is not known; the note stands behind the title."""
    if is_silent():
        yield lambda _text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as shown:
        yield lambda text: shown.update(f"{title}: {text}")


def remark(text: str) -> None:
    """A line for what the caller should know although the work goes on."""
    if not is_silent():
        click.echo(f"neurtx: {text}", err=True)
