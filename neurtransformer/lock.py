"""One training of a run at a time: a lock that dies with its process, however that dies.

The lock is on a file in the run that is there while a training goes on; one that a killed process
left is nobody's. On a file system without locks every training is let through.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from neurtransformer.errors import UserError

_NAME = ".training"


@contextlib.contextmanager
def training(run: Path) -> Iterator[None]:
    """Hold `run` for one training. Raises UserError, at once, if another process holds it."""
    path = run / _NAME
    lock = None
    while lock is None:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"{run} is being trained by another process: wait until it is done, or train a "
                "copy of the folder"
            ) from None
        except OSError:
            break  # no locks here
        if not _is_file(lock, path):
            os.close(lock)  # the one who held it has just removed it
            lock = None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def in_training(run: Path) -> bool:
    """Whether a process holds `run` for a training now."""
    try:
        lock = os.open(run / _NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(lock)
    return False
