"""How long work tells how far it is, without knowing whom it tells.

The command line passes its own module of this shape, which draws bars; a Python caller who passes
nothing hears nothing.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

log = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Called with the amount of work that was done, and a short note on how it goes."""

Note = Callable[[str], None]
"""Called with what is being done now."""


class Progress(Protocol):
    """Where work reports to."""

    def bar(
        self, title: str, total: int, unit: str, *, quiet: bool = False, brief: bool = False
    ) -> AbstractContextManager[Advance]:
        """For work of known length. quiet: another process tells it. brief: it is short enough that
        a log needs no lines of it."""

    def status(self, title: str) -> AbstractContextManager[Note]:
        """For work of unknown length."""

    def remark(self, text: str) -> None:
        """What the caller should know although the work goes on."""


class Silent:
    """Tells nobody, but for remarks, which the log gets."""

    def bar(
        self, title: str, total: int, unit: str, *, quiet: bool = False, brief: bool = False
    ) -> AbstractContextManager[Advance]:
        """Ignores what it is told."""
        return nullcontext(lambda _amount, _note: None)

    def status(self, title: str) -> AbstractContextManager[Note]:
        """Ignores what it is told."""
        return nullcontext(lambda _text: None)

    def remark(self, text: str) -> None:
        """Logs it as a warning."""
        log.warning("%s", text)


SILENT = Silent()
