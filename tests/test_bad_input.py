"""Bad input of every kind: one line, exit code 2, nothing printed and nothing left behind."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurtransformer import runs

Spoil = Callable[[Path], object]

CONVERT = "convert dense --out made/run --timesteps 4"
SIMULATE = "simulate netlist --prompt of --backend integer"


def json_with(file: str, *keys: str, value: object) -> Spoil:
    """Sets the value at `keys` of a JSON file."""

    def spoil(here: Path) -> None:
        values = at = json.loads((here / file).read_text())
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        (here / file).write_text(json.dumps(values))

    return spoil


def cut(file: str) -> Spoil:
    """Leaves the first half of a file."""
    return lambda here: os.truncate(here / file, (here / file).stat().st_size // 2)


def pickled(here: Path) -> None:
    (here / "dense/model.safetensors").rename(here / "dense/pytorch_model.bin")


def taken(here: Path) -> None:
    (here / "made/run").mkdir(parents=True)
    (here / "made/run/precious").write_text("x")


def file_of(data: bytes) -> Spoil:
    return lambda here: (here / "text").write_bytes(data)


def untouched(_here: Path) -> None:
    pass


# what is spoilt, what is typed then, what the line says
CASES: dict[str, tuple[Spoil, str, str]] = {
    "unknown model": (untouched, "convert gpt3", "unknown model 'gpt3'"),
    "no config": (lambda here: (here / "dense/config.json").unlink(), CONVERT, "no config.json"),
    "other type": (json_with("dense/config.json", "model_type", value="mamba"), CONVERT, "'mamba'"),
    "cut weights": (cut("dense/model.safetensors"), CONVERT, "cut short"),
    "pickle": (pickled, CONVERT, "pickle"),
    "no text file": (untouched, f"{CONVERT} --text text.txt", "no text file 'text.txt'"),
    "empty text": (file_of(b""), f"{CONVERT} --text text", "text is empty"),
    "binary text": (file_of(bytes(range(256))), f"{CONVERT} --text text", "text is not"),
    "T = 0": (untouched, f"{CONVERT} --timesteps 0", "timesteps"),
    "T < 0": (untouched, f"{CONVERT} --timesteps -3", "timesteps"),
    "T = 1000": (untouched, f"{CONVERT} --timesteps 1000", "timesteps"),
    "unknown attention": (
        untouched,
        f"{CONVERT} --attention nonsense",
        "attention must be ttfs or linear, not 'nonsense'",
    ),
    "taken": (taken, CONVERT, "--force"),
    "taken by a stranger": (taken, f"{CONVERT} --force", "neither a run nor a netlist"),
    "other hash": (
        json_with("netlist/manifest.json", "files", "chip.safetensors", "sha256", value="0" * 64),
        SIMULATE,
        "not as it was written",
    ),
    "other shape": (
        json_with("netlist/manifest.json", "config", "vocabulary", value=5000),
        SIMULATE,
        "not as it was written",
    ),
    "unknown attention of a netlist": (
        json_with("netlist/manifest.json", "config", "attention", value="nonsense"),
        SIMULATE,
        "attention must be ttfs or linear, not nonsense",
    ),
    "cut netlist": (cut("netlist/netx/h.1.mlp.c_fc.net"), SIMULATE, "bytes"),
    "cut manifest": (cut("netlist/manifest.json"), SIMULATE, "not valid JSON"),
}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`, hidden ones too."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(params=["neurtx", pytest.param("neurtx_process", marks=pytest.mark.slow)])
def command(request: pytest.FixtureRequest) -> Any:
    """Runs a command: in this process, and among the slow tests in one of its own."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    command: Any, tmp_path: Path, tiny_dense_folder: Path, tiny_netlist: Path, name: str
) -> None:
    spoil, words, complaint = CASES[name]
    shutil.copytree(tiny_dense_folder, tmp_path / "dense")
    shutil.copytree(tiny_netlist, tmp_path / "netlist")
    spoil(tmp_path)
    before = contents(tmp_path)
    for options in ([], ["--json"]):
        assert complaint in command(*words.split(), *options).mistake()
        assert contents(tmp_path) == before


# --- a full disk ---


# no folder can be made; the weights do not fit; the tokenizer does not fit behind them
@pytest.mark.parametrize("options", ["nr_inodes=1", "size=200k", "size=1600k"])
def test_a_disk_that_is_full(
    command: Any, disk: Any, tiny_dense_folder: Path, options: str
) -> None:
    place = disk(options)
    words = ("convert", str(tiny_dense_folder), "--timesteps", "4", "--json")
    done = command(*words, "--out", str(place / "deep" / "run"))
    assert "no space left" in done.mistake()
    assert contents(place) == {}


# no folder can be made; the netx files do not fit; the tensors do not fit behind them
@pytest.mark.slow
@pytest.mark.parametrize("options", ["nr_inodes=1", "size=100k", "size=400k"])
def test_a_disk_that_is_full_of_netlist(
    neurtx_process: Any, disk: Any, tiny_run: Path, options: str
) -> None:
    place = disk(options)
    words = ("export", str(tiny_run), "--target", "loihi2", "--json")
    done = neurtx_process(*words, "--out", str(place / "deep" / "netlist"))
    assert "no space left" in done.mistake()
    assert contents(place) == {}


def test_a_disk_that_fills_up_at_the_end(
    neurtx: Any, tmp_path: Path, tiny_dense_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where nothing can be mounted: all is written but the report."""

    def full(path: Path, _values: object) -> None:
        assert (path.parent / "model.safetensors").is_file()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(runs, "write_json", full)
    assert "no space left" in neurtx("convert", str(tiny_dense_folder), "--json").mistake()
    assert contents(tmp_path) == {}


def test_training_for_which_there_is_no_room(
    neurtx: Any, disk: Any, tmp_path: Path, tiny_run: Path
) -> None:
    """The run stays as it was. Progress stands above the one line, for there was some."""
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    size = sum(path.stat().st_size // 4096 + 1 for path in tiny_run.iterdir()) * 4
    run = shutil.copytree(tiny_run, disk(f"size={size + 100}k") / "run")
    before = contents(run)
    done = neurtx("finetune", str(run), "--text", str(text), "--steps", "2", "--json")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (2, 2), done.stderr
    assert done.stderr.splitlines()[-1].startswith("neurtx: error: no space left")
    assert contents(run) == before
