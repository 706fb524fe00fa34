"""What goes to standard output, what to standard error, and how quiet the libraries are."""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

_ANSWER = "neurtx.answer"
_silent = False

_QUIET = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "LOGURU_LEVEL": "ERROR",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet() -> None:
    """Silence the libraries' progress bars and warnings (what the caller's environment says wins)
    and let our own library's log speak on standard error. To be called before they are imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # it says at length that there is no home directory to keep its cache in
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("neurtx: %(message)s"))
    ours = logging.getLogger("neurtransformer")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    ours.propagate = False


@contextlib.contextmanager
def _reserved_stdout() -> Iterator[TextIO]:
    """Send whatever anyone prints to standard error, compiled code and child processes included;
    what is yielded still writes to standard output."""
    with contextlib.ExitStack() as undo:
        try:
            number = sys.stdout.fileno()
        except (AttributeError, OSError):  # no real file, as under a test runner
            kept_stream = sys.stdout
            undo.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield kept_stream
            return
        kept = os.dup(number)
        answer = undo.enter_context(os.fdopen(kept, "w", encoding="utf-8"))
        os.dup2(sys.stderr.fileno(), number)
        undo.callback(os.dup2, kept, number)
        undo.callback(sys.stdout.flush)
        yield answer


def reserve(ctx: click.Context) -> None:
    """From here to the end of the command only `answer` writes to standard output."""
    ctx.meta[_ANSWER] = ctx.with_resource(_reserved_stdout())


# --- how much is said on standard error ---


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Inside, nothing is told but answers and errors."""
    global _silent
    with _log_level(logging.ERROR):
        _silent = True
        try:
            yield
        finally:
            _silent = False


def is_silent() -> bool:
    """Whether progress and remarks are to be kept back."""
    return _silent


@contextlib.contextmanager
def talkative() -> Iterator[None]:
    """Inside, the libraries tell what they do: to be called before they are imported."""
    for name, value in _QUIET.items():
        if name.endswith("_VERBOSITY") and os.environ.get(name) == value:
            os.environ[name] = "info"
    with _log_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@contextlib.contextmanager
def _log_level(level: int) -> Iterator[None]:
    ours = logging.getLogger("neurtransformer")
    before = ours.level
    ours.setLevel(level)
    try:
        yield
    finally:
        ours.setLevel(before)


# --- answers ---


def free_file(path: Path, option: str, *, force: bool, kinds: Sequence[str] = ()) -> Path:
    """The absolute path of a file that is to be written: said before anything is measured.

    option: what named it. force: whether a file that stands there may be replaced. kinds: the
    suffixes that it may have, if not any.
    Raises UserError for another suffix, a folder, what is no ordinary file, a folder that is not
    there, and without `force` for a file that is.
    """
    from neurtransformer.errors import UserError

    path = path.expanduser()
    special = path.exists() and not path.is_file()  # as /dev/stdout is, until it is resolved
    path = path.resolve()
    if path.is_dir():
        raise UserError(f"{path} is a folder: {option} names a file")
    if special:
        raise UserError(f"{path} is no ordinary file: {option} names one")
    if kinds and path.suffix.lower() not in kinds:
        raise UserError(f"{option} must end in {' or '.join(kinds)}, not '{path.name}'")
    if not path.parent.is_dir():
        raise UserError(f"folder {path.parent} does not exist: create it or choose another")
    if path.exists() and not force:
        raise UserError(f"{path} exists already: name another file or add --force")
    return path


def answer(
    values: Mapping[str, Any],
    *,
    as_json: bool,
    table: Callable[[], Any] | None = None,
    title: str | None = None,
    command: str = "",
) -> None:
    """Print the answer of a command: one JSON object (NaN and infinities as null), else the rich
    renderable that `table` makes, else a table of keys, values and what the keys mean in the answer
    of `command`."""
    if as_json:
        from neurtransformer.runs import plain

        stream = click.get_current_context().meta[_ANSWER]
        print(json.dumps(plain(values), allow_nan=False), file=stream, flush=True)
        return
    from rich.console import Console

    if table is None:
        shown: Any = meant_table(_flat(values), command, title=title)
    else:
        shown = table()
    # a file or a pipe has no edge to wrap at
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def rows_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None
) -> Any:
    """A rich table; numbers stand to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(
            isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in rows
        )
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(readable(cell)) for cell in row))
    return table


def meant_table(rows: Iterable[tuple[str, Any]], command: str, *, title: str | None = None) -> Any:
    """A rich table of keys, values and what the keys mean in the answer of `command`. In a terminal
    that is too narrow for it, the meanings stand below the table."""
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.measure import Measurement

    from neurtransformer.measure.meanings import meaning

    told = [(key, value, meaning(key.partition(", ")[0], command)) for key, value in rows]
    brief = rows_table(("", ""), [row[:2] for row in told], title=title)
    if not any(what for _, _, what in told):
        return brief
    wide = rows_table(("", "", "meaning"), told, title=title)
    meant = [(key.partition(", ")[0], what) for key, _, what in told if what]
    legend = rows_table(("", "meaning"), meant)

    class Fitting:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            needs = Measurement.get(console, options.update(max_width=1000), wide).maximum
            fits = needs <= options.max_width
            yield wide if fits else Group(brief, legend)

    return Fitting()


def readable(value: Any) -> str:
    """A number, a truth value or anything else as a person would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
