"""Ctrl-C, SIGTERM and SIGHUP: what has to be tidied up when they come, and when they have to wait.

The command line ends at once when such a signal comes, wherever it is, and runs `tidy` before it
does: an exception could be lost on its way up (Python drops those that are raised in the finalizer
of an object, libraries those that are raised while they import). For a program that uses the
library a signal is what it always was.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_unfinished: list[Callable[[], None]] = []


@contextlib.contextmanager
def tidied_by(tidy_up: Callable[[], None]) -> Iterator[None]:
    """While open, `tidy_up` belongs to what `tidy` does. It may be called in the middle of
    anything."""
    _unfinished.append(tidy_up)
    try:
        yield
    finally:
        _unfinished.remove(tidy_up)


def tidy() -> None:
    """Remove what is unfinished, the last begun first."""
    while _unfinished:
        _unfinished.pop()()


@contextlib.contextmanager
def held() -> Iterator[list[int]]:
    """While open, a signal waits; it takes its course when the block ends.

    Yields the signals that wait, for a long block to look at.
    """
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # None: set by something that is not Python, and not ours to put back
            if handler not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])
