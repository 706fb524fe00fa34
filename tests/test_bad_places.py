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
        pytest.skip("a batch keeps what it has begun, empty files that it goes on with")
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
@pytest.mark.parametrize("named", [True, False])
def test_two_writers_of_one_place(here: Path, named: bool) -> None:
    """Of two that are given one name one is told so; without a name each finds one of its own."""
    words = ["convert", "dense", "--timesteps", "4", "--text", "text", "--json"]
    words += ["--out", "made"] if named else []
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "neurtx", *words],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == ([0, 2] if named else [0, 0]), told
    made = {json.loads(out).get("run") for out, _ in told}
    assert len(made) == 2
    for run in made - {None}:
        load = [sys.executable, "-c", f"import neurtransformer; neurtransformer.load({run!r})"]
        subprocess.run(load, check=True)
    assert not list(here.rglob(".neurtx-new*"))
