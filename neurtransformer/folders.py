"""Run and netlist folders, written whole or not at all.

What a killed process left goes when the next folder is written beside it. On a file system without
locks it stays; all else works.
"""

import contextlib
import errno
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from neurtransformer import stop
from neurtransformer.errors import UserError
from neurtransformer.lock import in_training, locked, try_lock
from neurtransformer.runs import MARKS, Kind, check_name, default_folder, is_one

_NEW = ".neurtx-new-"
_OLD = ".neurtx-old-"
_UNDONE = ".neurtx-undone"


@dataclass
class Place:
    """Where a new folder is to stand: at `folder`, or where that is None at the default for `name`
    (`default_folder`) that is free when the folder is done. `new_folder` notes where that was."""

    kind: Kind
    name: str
    folder: Path | None = None

    @property
    def made(self) -> Path:
        """Where the folder stands, once it is made."""
        assert self.folder is not None
        return self.folder


@contextlib.contextmanager
def new_folder(target: Path | Place, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends well.

    On an exception, Ctrl-C or SIGTERM it is removed and whatever stood at `target` stays.
    With `force` a run or netlist (nothing else) at `target` is replaced.

    Raises UserError if `target` exists and may not be replaced, or its name is not UTF-8.
    """
    place = target if isinstance(target, Place) else Place("run", "", target)
    named = place.folder is not None
    # a link to a folder stays a link: the folder behind it is the one that is written
    target = (place.folder or default_folder(place.kind, place.name)).expanduser().resolve()
    check_name(target)
    check_free(target, force)
    parent = target.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    fresh = parent / f"{_NEW}{secrets.token_hex(4)}-{target.name}"
    lock = None

    def remove() -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # goes only if nothing was put in it

    # around everything: whenever a signal comes, what was made is removed
    with _terminated_is_raised(), stop.tidied_by(remove):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent):
                _clean(parent)
                # whoever made the parent and failed may just have taken it away
                fresh.mkdir(parents=True)
                lock = try_lock(fresh, wait=False)
            yield fresh
            if named:
                _put_in_place(fresh, target, force)
                place.folder = target
            else:
                place.folder = _put_where_free(fresh, place)
        finally:
            remove()
            if lock is not None:
                os.close(lock)


def check_free(target: Path, force: bool) -> None:
    """Raise UserError unless a new folder may stand at `target`, or replace what stands there."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file: name a folder that does not exist yet")
    if not force:
        raise UserError(f"{target} exists already: name another folder or add --force")
    if not any(is_one(kind, target) for kind in MARKS):
        raise UserError(
            f"{target} is neither a run nor a netlist, so --force does not replace it: "
            "name another folder"
        )
    if in_training(target):
        raise UserError(f"{target} is being trained: name another folder, or wait until it is done")
    for place in (Path.cwd, Path.home):
        with contextlib.suppress(FileNotFoundError, RuntimeError):  # not everybody has one
            if (keep := place()).resolve().is_relative_to(target):
                raise UserError(f"{target} holds {keep}: name another folder")


def _put_in_place(fresh: Path, target: Path, force: bool) -> None:
    with locked(target.parent):
        check_free(target, force)
        if not target.exists():
            fresh.rename(target)
            return
        old = fresh.with_name(_OLD + fresh.name.removeprefix(_NEW))
        with stop.held():
            try:
                target.rename(old)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EBUSY):
                    raise
                _replace_files(fresh, target, old)
                return
            try:
                fresh.rename(target)
            except BaseException:
                old.rename(target)
                raise
        shutil.rmtree(old, ignore_errors=True)


def _replace_files(fresh: Path, target: Path, old: Path) -> None:
    """Put what is in `fresh` into `target`, a folder that cannot be renamed: it came with a layer
    of a container, or a disk is mounted there. `old` holds what it held, until all is done."""
    mark = target / _UNDONE  # while it is there, `old` is whole and `target` is not
    try:
        shutil.copytree(target, old, symlinks=True)
        mark.touch()
        _empty(target)
        shutil.copytree(fresh, target, symlinks=True, dirs_exist_ok=True)
        mark.unlink()
    except BaseException:
        if mark.exists():
            _put_back(old, target)
        raise
    finally:
        if not mark.exists():
            shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    """Undo `_replace_files`, wherever it stopped."""
    _empty(target)
    shutil.copytree(old, target, symlinks=True, dirs_exist_ok=True)
    (target / _UNDONE).unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _UNDONE:
            path.unlink()


def _put_where_free(fresh: Path, place: Place) -> Path:
    """Put a folder under its default name, or the next if somebody was quicker; returns that."""
    with locked(fresh.parent):
        while True:
            target = default_folder(place.kind, place.name).resolve()
            try:
                return fresh.rename(target)
            except OSError as error:
                # without locks, or by somebody who asks for none, it was taken just now
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise


def _clean(parent: Path) -> None:
    """Remove what killed processes left in `parent`. The caller holds the lock on `parent`."""
    for leftover in parent.glob(f"{_NEW}*"):
        lock = try_lock(leftover, wait=False)
        if lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)
    for old in parent.glob(f"{_OLD}*"):
        # killed in the middle of _put_in_place: the old folder goes back
        target = parent / old.name.removeprefix(_OLD).split("-", 1)[1]
        if not target.exists():
            old.rename(target)
            continue
        if (target / _UNDONE).exists():
            _put_back(old, target)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _terminated_is_raised() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP, which would end the process at once, into SystemExit."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # a handler that someone set, or `nohup`, has its say
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
