"""Places that take nothing: every command that writes, on a full disk and on one for reading only;
and two commands that want one place."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import neurtransformer
from neurtransformer.loihi import netlist

# what each is typed with; PLACE is a folder on the disk, which holds a run and a netlist
WRITING = {
    "convert": "convert dense --out PLACE/made --timesteps 4 --text text",
    "finetune": "finetune PLACE/run --steps 1 --text text",
    "finetune --out": "finetune run --out PLACE/made --steps 1 --text text",
    "export": "export run --target loihi2 --out PLACE/made --text text",
    "export nir": "export run --target nir --out PLACE/made",
    "report": "report run --out PLACE/page.html",
    "report of it": "report PLACE/run",
    "place": "place netlist --out PLACE/cores.png",
    "induction": "icl induction run --limit 64 --text text --picture PLACE/heads.svg",
    "run": "run batch.yaml --root PLACE/batch",
}
# these note what they measured in the run; where they cannot, they say so and answer
NOTING = {
    "eval": "eval PLACE/run --limit 64 --text text",
    "energy": "energy PLACE/run --limit 64 --text text",
    "generate": "generate PLACE/run --prompt The --tokens 2",
}


@pytest.fixture
def here(one_of_each: Path) -> Path:
    (one_of_each / "batch.yaml").write_text("models: [dense]\nsteps: [convert]\n")
    return one_of_each


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`, hidden ones too."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def filled(disk: Callable[[str], Path], run: Path, *, read_only: bool) -> Path:
    """A small disk with a run on it, and then no room, or nothing that may be written."""
    place = disk("size=16m")
    shutil.copytree(run, place / "run")
    if read_only:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    else:
        filler = os.open(place / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
    return place


@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
@pytest.mark.parametrize("words", WRITING.values(), ids=WRITING)
def test_nothing_is_left_where_nothing_can_be_written(
    neurtx: Any, disk: Callable[[str], Path], here: Path, words: str, read_only: bool
) -> None:
    if words.startswith("run") and not read_only:
        pytest.skip("see test_a_batch_goes_on_when_there_is_room")
    place = filled(disk, here / "run", read_only=read_only)
    before = contents(place)
    done = neurtx(*words.replace("PLACE", str(place)).split(), "--json", "-q")
    assert done.returncode == 2, (done.stdout, done.stderr)
    told = json.loads(done.stdout)
    assert told["exit_code"] == 2 and "Traceback" not in done.stderr
    assert done.stderr == f"neurtx: error: {told['error']}\n"
    assert contents(place) == before


@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
@pytest.mark.parametrize("words", NOTING.values(), ids=NOTING)
def test_what_cannot_be_noted_is_still_answered(
    neurtx: Any, disk: Callable[[str], Path], here: Path, words: str, read_only: bool
) -> None:
    place = filled(disk, here / "run", read_only=read_only)
    before = contents(place)
    done = neurtx(*words.replace("PLACE", str(place)).split(), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(place / "run")
    assert contents(place) == before


@pytest.mark.slow
def test_a_batch_goes_on_when_there_is_room(
    neurtx_process: Any, disk: Callable[[str], Path], here: Path
) -> None:
    """It keeps what it has begun, empty files; nothing of what it says is cut short."""
    place = filled(disk, here / "run", read_only=False)
    words = WRITING["run"].replace("PLACE", str(place)).split()
    done = neurtx_process(*words, "--json", "-q")
    assert done.returncode == 2, (done.stdout, done.stderr)
    told = json.loads(done.stdout)
    assert told["exit_code"] == 2 and "no space left" in told["error"]
    assert done.stderr == f"neurtx: error: {told['error']}\n"
    left = [path for path in (place / "batch").rglob("*") if path.is_file()]
    assert not any(path.stat().st_size for path in left), left
    assert not list(place.rglob(".neurtx-new*"))
    (place / "filler").unlink()
    done = neurtx_process(*words, "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 1


def at_once(here: Path, typed: str) -> list[tuple[int, dict[str, Any], str]]:
    """What two processes of one command come to: exit code, answer and standard error, those that
    ended well first."""
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "neurtx", *typed.split(), "--json", "-q"],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate() for process in both]
    assert not list(here.rglob(".neurtx-new*")) and not list(here.rglob(".neurtx-old*"))
    found = [
        (process.returncode, json.loads(out), err)
        for process, (out, err) in zip(both, told, strict=True)
    ]
    return sorted(found, key=lambda each: each[0])


def load_run(folder: Path) -> None:
    neurtransformer.load(folder)


def load_netlist(folder: Path) -> None:
    netlist.read_text(folder)


def load_graphs(folder: Path) -> None:
    import nir

    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    for graph in graphs:
        nir.read(folder / graph["file"])


# what both are typed with, beside --out; the key of the folder in an answer; how it is read
MAKING: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "convert": ("convert dense --timesteps 4 --text text", "run", load_run),
    "finetune": ("finetune run --steps 1 --text text", "run", load_run),
    "export": ("export run --target loihi2 --text text", "netlist", load_netlist),
    "export nir": ("export run --target nir", "netlist", load_graphs),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", MAKING)
def test_two_writers_of_one_place(here: Path, command: str) -> None:
    """Of two that are given one name one is told so."""
    words, key, load = MAKING[command]
    (good, made, _), (code, told, err) = at_once(here, f"{words} --out made")
    assert (good, code) == (0, 2), err
    assert err == f"neurtx: error: {told['error']}\n" and str(here / "made") in err
    assert made[key] == str(here / "made")
    load(here / "made")
    # what is noted in the run is whole too
    json.loads((here / "run" / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in MAKING if name != "finetune"])
def test_two_writers_without_a_name(here: Path, command: str) -> None:
    """Each finds a place of its own."""
    words, key, load = MAKING[command]
    both = at_once(here, words)
    assert [code for code, _, _ in both] == [0, 0], both
    places = {Path(told[key]) for _, told, _ in both}
    assert len(places) == 2
    for place in places:
        load(place)


@pytest.mark.slow
def test_two_batches_in_one_place(here: Path) -> None:
    """Each step is done by one of them, and both tell all of it."""
    both = at_once(here, "run batch.yaml --root batch")
    assert [code for code, _, _ in both] == [0, 0], both
    assert both[0][1] == both[1][1] and both[0][1]["done"] == 1
    (step,) = (here / "batch" / "steps").iterdir()
    load_run(step / "run")
    rows = (here / "batch" / "results.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == both[0][1]["entries"]
