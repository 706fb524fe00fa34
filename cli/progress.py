"""Progress on standard error: a bar with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yields `advance(amount, note)`; the note stands behind the title."""
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
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)

        def advance(amount: int, note: str = "") -> None:
            progress.update(task, advance=amount, description=f"{title} {note}".rstrip())

        yield advance


@contextmanager
def status(title: str) -> Iterator[Callable[[str], None]]:
    """Yields `note(text)` for work whose length is not known; the note stands behind the title."""
    from rich.console import Console

    with Console(stderr=True).status(title) as shown:
        yield lambda text: shown.update(f"{title}: {text}")
