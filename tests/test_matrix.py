"""Every command and every kind of broken input: one line and exit code 2, or an answer.

An input that a command does not need may be broken; then the command answers as if it were not.
Nothing may be left half-written, no code may be run, and nothing outside be read or written.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
from breaking import ANY_FILE, HEADERS, JSON, WEIGHTS, YAML, Way

SECONDS = 60
"""More than any of these commands takes, and less than a hang."""

# command -> what is typed; `text` is a whole text
READING_RUNS = {
    "finetune": "finetune run --steps 1 --text text",
    "finetune --out": "finetune run --out made --steps 1 --text text",
    "eval": "eval run --limit 64 --text text",
    "generate": "generate run --prompt The --tokens 2",
    "energy": "energy run --limit 64 --text text",
    "export": "export run --target loihi2 --out made --text text",
    "export nir": "export run --target nir --out made",
    "induction": "icl induction run --limit 64 --text text",
    "report": "report run",
}
READING_DENSE = {
    "convert": "convert dense --out made --timesteps 4 --text text",
    "eval --teacher": "eval run --limit 64 --text text --teacher dense",
}
READING_NETLISTS = {
    "simulate": "simulate netlist --prompt of --tokens 1 --backend integer",
    "place": "place netlist",
}
READING_TEXT = {
    "convert": "convert dense --out made --timesteps 4 --text FILE",
    "finetune": "finetune run --steps 1 --text FILE",
    "eval": "eval run --limit 64 --text FILE",
    "energy": "energy run --limit 64 --text FILE",
    "export": "export run --target loihi2 --out made --text FILE",
    "induction": "icl induction run --limit 64 --text FILE",
    "generate": "generate run --prompt-file FILE --tokens 2",
}
READING_YAML = {
    "convert": "convert dense --out made --timesteps 4 --text text --config FILE",
    "run": "run FILE",
    "place": "place netlist --chip FILE",
}


class Case(NamedTuple):
    """file: what is broken, below the folder of the test."""

    words: str
    file: str
    way: Way


def cases(
    commands: dict[str, str], files: dict[str, dict[str, Way]], *, quick: Callable[[str, str], bool]
) -> list[Any]:
    """A case for each command, file and way, those that are not quick marked as slow."""
    found = []
    for command, words in commands.items():
        for file, ways in files.items():
            for way in ways:
                name = f"{command}: {file}, {way}"
                marks = () if quick(command, way) else (pytest.mark.slow,)
                case = Case(words.replace("FILE", file), file, ways[way])
                found.append(pytest.param(case, id=name, marks=marks))
    return found


def alternating(command: str, way: str) -> bool:
    """A twentieth of the matrix."""
    return (len(command) + len(way)) % 20 == 0


RUN_FILES = {
    "run/config.json": ANY_FILE | JSON,
    "run/model.safetensors": ANY_FILE | WEIGHTS | HEADERS,
    "run/tokenizer.json": ANY_FILE | JSON,
    "run/tokenizer_config.json": ANY_FILE | JSON,
    "run/report.json": ANY_FILE | JSON,
    "run/generation_config.json": ANY_FILE | JSON,
}
DENSE_FILES = {name.replace("run/", "dense/"): ways for name, ways in RUN_FILES.items()}
del DENSE_FILES["dense/report.json"]
NETLIST_FILES = {
    "netlist/manifest.json": ANY_FILE | JSON,
    "netlist/chip.safetensors": ANY_FILE | HEADERS,
    "netlist/netx/h.0.mlp.c_fc.net": ANY_FILE,
    "netlist/tokenizer/tokenizer.json": ANY_FILE | JSON,
}
# text and settings may come from a pipe, as in `--text <(zcat text.gz)`, and are waited for
WITHOUT_PIPE = {name: way for name, way in ANY_FILE.items() if name != "a pipe"}
CASES = [
    *cases(READING_RUNS, RUN_FILES, quick=alternating),
    *cases(READING_DENSE, DENSE_FILES, quick=alternating),
    *cases(READING_NETLISTS, NETLIST_FILES, quick=alternating),
    *cases(READING_TEXT, {"broken": WITHOUT_PIPE}, quick=alternating),
    *cases(READING_YAML, {"broken.yaml": WITHOUT_PIPE | YAML}, quick=alternating),
]


@pytest.fixture
def here(one_of_each: Path) -> Path:
    """A folder with one whole input of each kind, and no hub."""
    config = one_of_each / "run" / "config.json"
    told = json.loads(config.read_text()) | {"dense": str(one_of_each / "dense")}
    config.write_text(json.dumps(told))
    shutil.copy(one_of_each / "text", one_of_each / "broken")
    (one_of_each / "broken.yaml").write_text("timesteps: 4\n")
    return one_of_each


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A command that waits for a pipe fails in place of hanging."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"no answer in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def listing(folder: Path) -> set[str]:
    """What stands in a folder, hidden things too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# what a command that answers may make
MADE = {".neurtx", "made", "batches", "run/report.html", "run/README.md", "run/checkpoint"}


@pytest.mark.parametrize("case", CASES)
def test_one_line_or_an_answer(neurtx: Any, here: Path, case: Case) -> None:
    case.way(here / case.file)
    before = listing(here)
    done = neurtx(*case.words.split(), "--json")
    new = listing(here) - before
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        json.loads(done.stdout)
        assert all(any(path == m or path.startswith(f"{m}/") for m in MADE) for path in new), new
        return
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    assert told["exit_code"] == 2 and "\n" not in told["error"]
    last = done.stderr.splitlines()[-1]
    assert last == f"neurtx: error: {told['error']}"
    assert new == set()


def test_all_commands_are_in_the_matrix() -> None:
    from neurtx.main import COMMANDS

    typed = " ".join(case.values[0].words.split()[0] for case in CASES)
    # what these read is not there to be broken
    assert set(COMMANDS) - {"models", "doctor", "install"} == set(typed.split())
    assert len(CASES) > 1000
