"""A temporary folder and forked processes of which nothing stays, however this process ends.

A *janitor* is a process that sleeps on a pipe whose other end this process holds. When that end
closes, by the end of a block, an exit or SIGKILL, the janitor removes the folder and kills the
processes that were forked meanwhile: they are in its process group. So Ctrl-C in a terminal
reaches neither them nor it.

Nothing here is Linux's alone.
"""

import contextlib
import errno
import mmap
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from neurtransformer import stop
from neurtransformer.errors import UserError

_PREFIX = "neurtx-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder. When the block ends, or this process does, the folder goes, and with
    it all processes that were forked in the block.

    Raises UserError if there is no place for temporary files.
    """
    try:
        place = Path(tempfile.gettempdir()).resolve()
    except FileNotFoundError as error:
        raise UserError(
            "no folder for temporary files can be written to: name one in TMPDIR"
        ) from error
    folder = place / f"{_PREFIX}{secrets.token_hex(4)}"
    with stop.held():
        janitor = _Janitor(folder)
    with stop.tidied_by(janitor.dismiss):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            with stop.held():
                janitor.dismiss()


def group() -> int:
    """The process group that ends with the block of `temporary_folder` that we are in: for programs
    that are started there, which do not pass through a fork of ours."""
    return _janitors[-1].process


def reserve(file: Path) -> None:
    """Take the room on the disk that `file` says it has, for a process that writes to a mapped
    file that has no room is killed. Raises UserError if there is too little."""
    size = file.stat().st_size
    try:
        with file.open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):
                try:
                    return os.posix_fallocate(stream.fileno(), 0, size)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise
            # a system or a disk that cannot: everything is written once, holes and all
            start = 0
            while part := stream.read(2**20):
                stream.seek(start)
                start += stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(
            f"no room for {size:,} bytes of temporary files in {tempfile.gettempdir()} "
            f"({error.strerror}): free some, or name a larger place in TMPDIR"
        ) from error


class _Janitor:
    """One janitor. `folder` must not be there yet: it could not be removed if we were killed."""

    def __init__(self, folder: Path) -> None:
        self.parent = os.getpid()
        read, self.alive = os.pipe()
        others = _janitors.copy()
        # a janitor must not be in another's group for a moment: who is forked in that moment finds
        # no group of this one's
        _janitors.clear()
        try:
            self.process = os.fork()
        finally:
            _janitors.extend(others)
        if self.process == 0:
            _wait_and_clean(read, [self.alive, *(other.alive for other in others)], folder)
        os.close(read)
        with contextlib.suppress(OSError):  # the janitor does the same; who is first is not known
            os.setpgid(self.process, self.process)
        _janitors.append(self)

    def dismiss(self) -> None:
        """Let it clean up, and wait until it has."""
        if self not in _janitors:
            return
        _janitors.remove(self)
        os.close(self.alive)
        with contextlib.suppress(OSError):
            os.waitpid(self.process, 0)


_janitors: list[_Janitor] = []


def _wait_and_clean(read: int, alive: list[int], folder: Path) -> None:
    """The life of a janitor. alive: ends of pipes that its parent alone is to hold. Does not
    return."""
    try:
        for ignored in (*stop.SIGNALS, signal.SIGQUIT):
            signal.signal(ignored, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        for end in alive:
            os.close(end)
        # whoever reads what the parent writes must not wait for the janitor too
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        while os.read(read, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        # the group has our number only if we have made it; we go with it
        os.killpg(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(0)


def _in_child() -> None:
    """The first thing that a forked process does while there is a janitor."""
    if not _janitors:
        return
    # whoever is in the background is stopped when it writes to some terminals
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        os.setpgid(0, _janitors[-1].process)
    if os.getppid() != _janitors[-1].parent:
        os._exit(1)  # it died, and if somebody killed the janitor, nobody will end us
    # only now may the pipe end: the janitor must not kill its group before we are in it
    for other in _janitors:
        os.close(other.alive)
    _janitors.clear()


os.register_at_fork(after_in_child=_in_child)


class Memory:
    """Shared memory without a name, for processes that are forked: it goes with the last of them.

    Lava's own has a name in /dev/shm, which stays when it is killed, and is bounded by its size.
    """

    def __init__(self, size: int) -> None:
        self.buf = memoryview(mmap.mmap(-1, max(size, 1)))


class MemoryManager:
    """Stands in the place of Lava's SharedMemoryManager, which is a process of its own."""

    def start(self) -> None:
        """Nothing to start."""

    def shutdown(self) -> None:
        """Nothing to end: memory goes when nobody has it any more."""

    def create_shared_memory(self, size: int) -> Memory:
        """Memory of `size` bytes."""
        return Memory(size)
