"""What `neurtx` does with its process: signals end it at once, and its streams are always there.

Nothing but the standard library is imported here, for it comes before all else.
"""

import codecs
import contextlib
import io
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn, TextIO

KEPT = "nothing half-written was left"


def farewell(number: int) -> str:
    """What is said when a signal has ended the program."""
    name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    hints = {
        "finetune": "; `neurtx finetune --resume` goes on from the last checkpoint",
        "run": "; the same command again goes on",
    }
    hint = hints.get(sys.argv[1], "") if len(sys.argv) > 1 else ""
    return f"{name}: {KEPT}{hint}"


# --- signals ---


def catch_signals() -> None:
    """From here on Ctrl-C, SIGTERM and SIGHUP end the program at once, with one line and what has
    been begun removed. Those that are ignored (`nohup`, `&` in a script) stay so."""
    if sys.platform == "win32":
        return  # `main` refuses it in a moment
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # not by an exception: see neurtransformer/stop.py, which is there if anything has been begun
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    try:
        if os.environ.get("NEURTX_TRACEBACK"):
            traceback.print_stack(frame)
        if tidy := getattr(sys.modules.get("neurtransformer.stop"), "tidy", None):
            tidy()
    finally:
        line = f"neurtx: {farewell(number)}\n"
        with contextlib.suppress(OSError, ValueError):
            # a bar has hidden the cursor, and the line belongs below it and below ^C
            start = "\033[?25h\n" if "rich.live" in sys.modules and os.isatty(2) else ""
            os.write(2, (start + line).encode())
        os._exit(128 + number)


# --- streams ---


class _Forgiving(io.TextIOWrapper):
    """Standard error: that nobody reads what is said, or that it has no room, ends no work."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def open_streams() -> None:
    """Make sure that there are standard streams, and that any text can be written to them.

    One that was closed (`>&-`) leads nowhere: else the next file that is opened would get its
    number, and whatever C code prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
                os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    said = sys.stderr
    if said and not hasattr(said, "buffer"):
        return  # somebody reads it in this process
    sys.stderr = _Forgiving(
        said.buffer if said else os.fdopen(2, "wb", closefd=False),
        encoding=said.encoding if said else "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    codecs.register_error("neurtx", _as_bytes_or_escaped)
    _reconfigure(sys.stdout)


def _reconfigure(stream: TextIO) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="neurtx")


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """What the system gave us as bytes goes out as these bytes; what a terminal cannot show is
    escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    try:
        return bad.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return bad.encode("ascii", "backslashreplace"), error.end
