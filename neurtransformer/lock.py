"""Locks that die with their process, however that dies: on a folder, and on a run in training.

They are `flock` locks. That of a training is on a file in the run that is there while it goes on;
one that a killed process left is nobody's. On a file system without locks all are let through.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from neurtransformer.errors import NOT_ON_WINDOWS, UserError

if sys.platform == "win32":
    raise UserError(NOT_ON_WINDOWS)
import fcntl

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


def try_lock(folder: Path, *, wait: bool) -> int | None:
    """The descriptor that holds the lock on `folder`, or None when it cannot be had."""
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def claimed(file: Path) -> int | None:
    """The descriptor that holds `file`, which is made if need be; None if another process has it.
    A program that inherits the descriptor holds the file too."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # no locks here
    return descriptor


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on `folder`, where it can be had, when it is free."""
    lock = try_lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
