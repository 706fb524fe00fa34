"""Folders are found again, and what is noted in them is what was measured."""

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_folders import make

from neurtransformer import runs
from neurtransformer.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


@pytest.mark.parametrize(("own", "typed"), [("some-run", "./some-run"), ("runs/some-run",) * 2])
def test_a_run_that_ships_and_ones_own_are_told_apart(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    own: str,
    typed: str,
) -> None:
    """A bare name that ships is always that one, a path is one's own, and who has both is told."""
    shipped = here / "package"
    make(shipped / "some-run")
    monkeypatch.setattr(runs, "BUNDLED", shipped)
    monkeypatch.setattr(runs.log, "propagate", True)
    assert runs.resolve("run", "some-run") == shipped / "some-run" and caplog.text == ""
    make(here / own)
    assert runs.resolve("run", "some-run") == shipped / "some-run"
    assert f"some-run is the run that ships with neurtx; yours is {typed}" in caplog.text
    assert runs.resolve("run", typed) == here / own
    assert runs.is_read_only(shipped / "some-run") and not runs.is_read_only(here / own)


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


def test_a_variable_names_the_home_of_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runs.HOME_VARIABLE, "elsewhere/deep")
    folder = runs.default_folder("run", "gpt2-nano")
    assert folder == here / "elsewhere" / "deep" / "runs" / "gpt2-nano-spiking"
    make(folder)
    runs.remember("run", folder)
    assert runs.latest("run") == folder
    assert [path.name for path in here.iterdir()] == ["elsewhere"]
    monkeypatch.delenv(runs.HOME_VARIABLE)
    with pytest.raises(UserError, match="no run here"):
        runs.latest("run")
