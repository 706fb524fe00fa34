"""Folders are written whole or not at all."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neurtransformer import folders
from neurtransformer.errors import UserError
from neurtransformer.folders import new_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, text: str = "new", *, force: bool = False) -> None:
    with new_folder(folder, force=force) as fresh:
        (fresh / "config.json").write_text("{}")
        (fresh / "report.json").write_text("{}")
        (fresh / "text").write_text(text)


def test_a_folder_appears_only_when_complete(here: Path) -> None:
    target = here / "deep" / "run"
    with new_folder(target) as fresh:
        (fresh / "text").write_text("hello")
        assert not target.exists()
        assert fresh.parent == target.parent
    assert (target / "text").read_text() == "hello"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("force", [False, True])
def test_failure_leaves_everything_as_it_was(
    here: Path, error: type[BaseException], force: bool
) -> None:
    target = here / "deep" / "run"
    if force:
        make(target, "old")
    with pytest.raises(error), new_folder(target, force=force) as fresh:
        (fresh / "text").write_text("half")
        raise error
    if force:
        assert (target / "text").read_text() == "old"
        assert list(target.parent.iterdir()) == [target]
    else:
        assert list(here.iterdir()) == []


def test_force_replaces_and_nothing_else_does(here: Path) -> None:
    target = here / "run"
    make(target, "old")
    with pytest.raises(UserError, match="--force"):
        make(target)
    assert (target / "text").read_text() == "old"
    make(target, force=True)
    assert (target / "text").read_text() == "new"
    assert list(here.iterdir()) == [target]


def test_force_replaces_only_folders_of_ours(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = here / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="neither a run nor a netlist"):
        make(home, force=True)
    # even if it looks like a run
    (home / "config.json").write_text("{}")
    (home / "report.json").write_text("{}")
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(UserError, match="holds"):
        make(home, force=True)
    (here / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        make(here / "file", force=True)
    make(here / "run")
    (here / "run" / "below").mkdir()
    monkeypatch.chdir(here / "run" / "below")
    with pytest.raises(UserError, match="holds"):
        make(here / "run", force=True)
    assert (home / "thesis.txt").exists()


def test_an_old_folder_stays_where_the_new_one_cannot_be_put(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here / "run", "old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.startswith(".neurtx-new-"):
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        make(here / "run", force=True)
    assert (here / "run" / "text").read_text() == "old"
    assert list(here.iterdir()) == [here / "run"]


def test_a_link_to_a_run_stays_a_link(here: Path) -> None:
    make(here / "real", "old")
    (here / "link").symlink_to(here / "real")
    make(here / "link", force=True)
    assert (here / "link").is_symlink()
    assert (here / "real" / "text").read_text() == "new"


def test_someone_else_may_take_the_name_meanwhile(here: Path) -> None:
    with pytest.raises(UserError, match="exists already"), new_folder(here / "run"):
        make(here / "run", "quicker")
    assert (here / "run" / "text").read_text() == "quicker"
    assert list(here.iterdir()) == [here / "run"]


HANGS = """
import signal, sys, time
from pathlib import Path
from neurtransformer.folders import new_folder
# a shell's background job starts with SIGINT ignored, one of nohup's with SIGHUP
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with new_folder(Path("run")) as fresh:
    (fresh / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def hanging() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_leave_nothing(here: Path, number: signal.Signals) -> None:
    process = hanging()
    process.send_signal(number)
    assert process.wait(20) != 0
    assert list(here.iterdir()) == []


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(here: Path) -> None:
    dead, living = hanging(), hanging()
    dead.kill()
    dead.wait(20)
    assert len(list(here.iterdir())) == 2
    make(here / "other")
    assert len(list(here.glob(".neurtx-new-*"))) == 1
    living.terminate()
    living.wait(60)
    assert list(here.iterdir()) == [here / "other"]


def test_an_old_folder_comes_back_after_a_kill_between_the_renames(here: Path) -> None:
    make(here / "my-run", "old")
    (here / "my-run").rename(here / ".neurtx-old-0123abcd-my-run")
    make(here / "other")
    assert (here / "my-run" / "text").read_text() == "old"


def immovable(monkeypatch: pytest.MonkeyPatch, target: Path, number: int) -> None:
    """`target` cannot be renamed: it is of a lower layer of an overlay, or a disk of its own."""
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self == target:
            raise OSError(number, os.strerror(number), str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_a_folder_that_cannot_be_renamed_is_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = here / "run"
    make(target, "old")
    (target / "deep").mkdir()
    (target / "deep" / "old").write_text("old")
    immovable(monkeypatch, target, number)
    make(target, "new", force=True)
    assert (target / "text").read_text() == "new"
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "report.json", "text"]
    assert list(here.iterdir()) == [target]


@pytest.mark.parametrize("copies", [0, 1])
@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_that_cannot_be_renamed_is_whole_or_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch, copies: int, killed: bool
) -> None:
    """The disk is full at the backup or at the new files; or we are killed there."""
    target = here / "run"
    make(target, "old")
    immovable(monkeypatch, target, errno.EXDEV)
    copytree, left = shutil.copytree, [copies]

    def full(source: Path, to: Path, **options: Any) -> Any:
        if left[0] == 0:
            left[0] = -1
            Path(to).mkdir(exist_ok=True)
            (Path(to) / "config.json").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return copytree(source, to, **options)

    monkeypatch.setattr(shutil, "copytree", full)
    if killed:  # then nothing is undone at once
        monkeypatch.setattr(folders, "_put_back", lambda old, target: None)
        monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    with pytest.raises(OSError, match="No space"):
        make(target, "new", force=True)
    if killed:
        assert len(list(here.iterdir())) == 3
        monkeypatch.undo()
        make(here / "other")
        shutil.rmtree(here / "other")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "report.json", "text"]
    assert (target / "text").read_text() == "old"
    assert (target / "config.json").read_text() == "{}"
    assert list(here.iterdir()) == [target]


def test_there_need_be_no_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    make(here / "run")
    make(here / "run", force=True)
