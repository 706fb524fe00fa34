"""Folders are written whole or not at all, and found again."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurtransformer import runs
from neurtransformer.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, text: str = "new", *, force: bool = False) -> None:
    with runs.new_folder(folder, force=force) as fresh:
        (fresh / "config.json").write_text("{}")
        (fresh / "report.json").write_text("{}")
        (fresh / "text").write_text(text)


def test_a_folder_appears_only_when_complete(here: Path) -> None:
    target = here / "deep" / "run"
    with runs.new_folder(target) as fresh:
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
    with pytest.raises(error), runs.new_folder(target, force=force) as fresh:
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
    with pytest.raises(UserError, match="exists already"), runs.new_folder(here / "run"):
        make(here / "run", "quicker")
    assert (here / "run" / "text").read_text() == "quicker"
    assert list(here.iterdir()) == [here / "run"]


HANGS = """
import signal, sys, time
from pathlib import Path
from neurtransformer.runs import new_folder
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
    living.wait(20)
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
        monkeypatch.setattr(runs, "_put_back", lambda old, target: None)
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


def test_a_file_that_is_mounted_is_written_in_its_place(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Path, to: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (here / "file").write_text("old")
    monkeypatch.setattr(Path, "replace", busy)
    runs.write_text(here / "file", "new")
    assert (here / "file").read_text() == "new"
    assert list(here.iterdir()) == [here / "file"]


def test_what_is_no_file_is_not_replaced(here: Path) -> None:
    """The administrator may rename a file to /dev/null, and then there is none."""
    os.mkfifo(here / "pipe")
    with pytest.raises(UserError, match="no ordinary file"):
        runs.write_text(here / "pipe", "new")
    assert (here / "pipe").is_fifo()
    assert list(here.iterdir()) == [here / "pipe"]


def test_there_need_be_no_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    make(here / "run")
    make(here / "run", force=True)


def test_what_cannot_be_noted_is_a_warning(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(path: Path, values: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    make(here / "run")
    monkeypatch.setattr(runs, "write_json", read_only)
    monkeypatch.setattr(runs.log, "propagate", True)
    runs.update_report(here / "run", "eval", {"ppl": 3.0})
    assert "eval is not noted" in caplog.text


def test_names_are_numbered_when_taken(here: Path) -> None:
    first = runs.default_folder("run", "owner/some model")
    assert first == here / "runs" / "some-model-spiking"
    make(first)
    assert runs.default_folder("run", "./some model/").name == "some-model-spiking-2"
    assert runs.default_folder("netlist", "gpt2-nano") == here / "netlists" / "gpt2-nano"


def test_the_last_one_is_found_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="neurtx convert"):
        runs.resolve("run", None)
    with pytest.raises(UserError, match="neurtx export"):
        runs.latest("netlist")
    for name in ("a", "b", "c"):
        make(here / "runs" / name)
        os.utime(here / "runs" / name, (time.time(), {"a": 100, "b": 300, "c": 200}[name]))
    assert runs.latest("run") == here / "runs" / "b"
    runs.remember("run", here / "runs" / "c")
    assert runs.latest("run") == here / "runs" / "c"
    (here / "runs" / "c" / "report.json").unlink()
    assert runs.latest("run") == here / "runs" / "b"


def test_resolve_says_what_is_wrong(here: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        runs.resolve("run", "nowhere")
    (here / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        runs.resolve("run", "file")
    (here / "folder").mkdir()
    with pytest.raises(UserError, match=r"not a netlist \(no manifest.json"):
        runs.resolve("netlist", "folder")
    make(here / "run")
    assert runs.resolve("run", "run") == here / "run"


def test_a_run_of_the_package_has_a_name_and_stays_as_it_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = here / "package"
    make(shipped / "some-run")
    (shipped / "a-dense-model").mkdir()
    monkeypatch.setattr(runs, "BUNDLED", shipped)
    assert runs.bundled("run") == ["some-run"]
    assert runs.resolve("run", "some-run") == shipped / "some-run"
    before = (shipped / "some-run" / "report.json").read_text()
    runs.update_report(shipped / "some-run", "eval", {"ppl": 1.0})
    assert (shipped / "some-run" / "report.json").read_text() == before
    with pytest.raises(UserError, match="does not exist"):
        runs.resolve("run", "a-dense-model")
    make(here / "some-run")
    assert runs.resolve("run", "some-run") == here / "some-run"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "\ud800', "\0" * 9, "[" * 10**5])
def test_json_that_is_none_is_refused(here: Path, content: str) -> None:
    (here / "x.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"x\.json"):
        runs.read_json(here / "x.json")


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('aé\n"', max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from("abc"), values))
def test_json_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, sent: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "sent.json"
    runs.write_json(path, sent)
    assert runs.read_json(path) == without_nan(sent)


def test_plain_takes_numpy_and_torch() -> None:
    import numpy as np
    import torch

    sent = {"a": np.float32(1.5), "b": torch.tensor([1.0, math.nan]), 3: Path("x"), "d": (1, 2)}
    assert runs.plain(sent) == {"a": 1.5, "b": [1.0, None], "3": "x", "d": [1, 2]}


def test_sections_of_a_report_are_merged(here: Path) -> None:
    make(here / "run")
    runs.update_report(here / "run", "eval", {"ppl": 3.0, "tokens": 5})
    runs.update_report(here / "run", "energy", {"joule": math.inf})
    runs.update_report(here / "run", "eval", {"ppl": 2.0})
    assert json.loads((here / "run" / "report.json").read_text()) == {
        "eval": {"ppl": 2.0, "tokens": 5},
        "energy": {"joule": None},
    }
