"""What a caller may give to a public function, and the checks of it."""

from collections.abc import Sequence
from pathlib import Path

Named = str | Path | None
"""A folder, or the name of one that ships with the package; None is the last one made here."""


def name_of(name: Named) -> str | None:
    """A folder as a name."""
    return None if name is None else str(name)


def path_of(name: str | Path | None) -> Path | None:
    """A name as a path."""
    return None if name is None else Path(name)


def check_choice(name: str, given: str, choices: Sequence[str]) -> None:
    """Raise UserError unless `given` is one of `choices`; the command line has checked its own."""
    from neurtransformer.errors import UserError

    if given not in choices:
        raise UserError(f"{name} must be {' or '.join(choices)}, not {given!r}")


def check_least(name: str, given: int | None, least: int) -> None:
    """Raise UserError if a number is given that is below `least`."""
    from neurtransformer.errors import UserError

    if given is not None and given < least:
        raise UserError(f"{name} must be {least} or more, not {given}")
