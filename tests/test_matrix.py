"""Every command and every kind of broken input: one line and exit code 2, or an answer.

An input that a command does not need may be broken; then the command answers as if it were not.
Nothing may be left half-written, no code may be run, and nothing outside be read or written.
"""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import test_gguf
import torch
from breaking import (
    ANY_FILE,
    ARRAYS,
    HEADERS,
    JSON,
    LABELS,
    OPTIMIZER,
    STEPS,
    WEIGHTS,
    YAML,
    ZIP,
    Way,
)
from conftest import commands
from test_omniglot import archive, png, strokes

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
READING_CHECKPOINTS = {"finetune --resume": "finetune begun --resume --steps 2 --text text"}
READING_GGUF = {"convert GGUF": "convert tiny.gguf --out made --timesteps 4 --text text"}
OMNIGLOT = "icl omniglot plastic --ways 3 --shots 1 --episodes 2 --data"
READING_PLASTIC = {
    "omniglot": f"{OMNIGLOT} drawings",
    "export plastic": "export plastic --target loihi2 --out made",
}
READING_DRAWINGS = {
    "omniglot --data": f"{OMNIGLOT} drawings",
    "simulate --data": "simulate plastic-netlist --backend integer --data drawings",
}
READING_ARRAYS = {name: f"{words[:-8]}arrays" for name, words in READING_DRAWINGS.items()}
READING_PLASTIC_NETLISTS = {"simulate --data": READING_DRAWINGS["simulate --data"]}
PLANNING = {"run --dry-run": "run planned.yaml --dry-run"}
IN_BATCHES = {"run": "run batch.yaml"}
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


def never(command: str, way: str) -> bool:
    return False


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
PLASTIC_FILES = {
    "plastic/config.json": ANY_FILE | JSON,
    "plastic/model.safetensors": ANY_FILE | WEIGHTS | HEADERS,
    "plastic/report.json": ANY_FILE | JSON,
}
PLASTIC_NETLIST_FILES = {
    "plastic-netlist/manifest.json": ANY_FILE | JSON,
    "plastic-netlist/chip.safetensors": ANY_FILE | HEADERS,
    "plastic-netlist/netx/decoder.conv0.net": ANY_FILE,
}
DRAWINGS_FILES = {"drawings/images_evaluation.zip": ANY_FILE | ZIP}
RUNS_FILES = {"drawings/all_runs.zip": ANY_FILE | ZIP | LABELS}
ARRAYS_FILES = {"arrays/omniglot_small_105.npz": ANY_FILE | ARRAYS}
CHECKPOINT_FILES = {
    "begun/checkpoint/report.json": ANY_FILE | JSON | STEPS,
    "begun/checkpoint/checkpoint.safetensors": ANY_FILE | WEIGHTS | HEADERS | OPTIMIZER,
    "begun/checkpoint/config.json": ANY_FILE | JSON,
}
GGUF_FILES = {
    "tiny.gguf": ANY_FILE
    | {"cut in the header": test_gguf.cut, "another magic": test_gguf.no_gguf}
    | test_gguf.HOSTILE
}
# text and settings may come from a pipe, as in `--text <(zcat text.gz)`, and are waited for
WITHOUT_PIPE = {name: way for name, way in ANY_FILE.items() if name != "a pipe"}
CASES = [
    *cases(READING_RUNS, RUN_FILES, quick=alternating),
    *cases(READING_DENSE, DENSE_FILES, quick=alternating),
    *cases(READING_NETLISTS, NETLIST_FILES, quick=alternating),
    *cases(READING_TEXT, {"broken": WITHOUT_PIPE}, quick=alternating),
    *cases(READING_YAML, {"broken.yaml": WITHOUT_PIPE | YAML}, quick=alternating),
    *cases(READING_CHECKPOINTS, CHECKPOINT_FILES, quick=alternating),
    *cases(READING_GGUF, GGUF_FILES, quick=alternating),
    *cases(READING_PLASTIC, PLASTIC_FILES, quick=alternating),
    *cases(READING_DRAWINGS, DRAWINGS_FILES, quick=alternating),
    *cases({"omniglot": READING_DRAWINGS["omniglot --data"]}, RUNS_FILES, quick=alternating),
    *cases(READING_ARRAYS, ARRAYS_FILES, quick=alternating),
    *cases(READING_PLASTIC_NETLISTS, PLASTIC_NETLIST_FILES, quick=alternating),
    *cases(PLANNING, DENSE_FILES, quick=alternating),
    *cases(PLANNING, {"broken": WITHOUT_PIPE}, quick=alternating),
    *cases(PLANNING, {"recipe.yaml": ANY_FILE | YAML, "chip.yaml": ANY_FILE}, quick=alternating),
    # what is planned is done by `convert`, in a process of its own that loads all libraries
    *cases(IN_BATCHES, {"dense/config.json": ANY_FILE}, quick=never),
    *cases(IN_BATCHES, {"dense/model.safetensors": ANY_FILE}, quick=never),
    *cases(IN_BATCHES, {"broken": WITHOUT_PIPE}, quick=never),
]


TEXT = "The quick brown fox jumps over the lazy dog. " * 60  # as `one_of_each` has it
BATCH = """
models: [dense]
recipes: [recipe.yaml]
texts: [broken]
convert: {text: broken}
"""


@pytest.fixture(scope="session")
def more(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """What few commands read: a training that was stopped, a GGUF file, drawings, and a small
    plastic transformer with its netlist. For reading only."""
    from neurtransformer import api
    from neurtransformer.icl import omniglot, plastic
    from neurtransformer.integer.plastic import ConvolutionSizes, PlasticConfig
    from neurtransformer.loihi import netlist
    from neurtransformer.progress import Silent
    from neurtransformer.spiking import finetune

    folder = tmp_path_factory.mktemp("more")
    test_gguf.written(folder / "tiny.gguf")

    steps = 0

    class Stopping(Silent):
        """Ctrl-C in the second step; the first has left a checkpoint."""

        def bar(self, *_: Any, **__: Any) -> Any:
            def advance(_amount: int, _note: str) -> None:
                nonlocal steps
                steps += 1
                if steps == 2:
                    raise KeyboardInterrupt

            return contextlib.nullcontext(advance)

    (folder / "text").write_text(TEXT)
    shutil.copytree(tiny_run, folder / "begun")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "CHECKPOINT_EVERY", 1)
        api.finetune(folder / "begun", text=folder / "text", steps=2, progress=Stopping())
    assert (folder / "begun" / "checkpoint").is_dir()

    (folder / "plastic").mkdir()
    (folder / "plastic" / "report.json").write_text("{}")
    torch.manual_seed(0)
    layers = ((1, 2, 5), (2, 4, 3))
    convolutions = tuple(ConvolutionSizes(inputs=i, outputs=o, kernel=k) for i, o, k in layers)
    config = PlasticConfig(side=omniglot.SIDE, ways=3, convolutions=convolutions)
    encoders = {name: plastic.Encoder(name, config).eval() for name in plastic.NAMES}
    plastic.save(folder / "plastic", encoders, ("Greek",))
    (folder / "plastic-netlist").mkdir()
    netlist.write(folder / "plastic-netlist", plastic.quantised(encoders["float"]), None, "binary")

    for name in ("drawings", "arrays"):
        (folder / name).mkdir()
    drawn = np.array([[strokes(10 * c + d) for d in range(3)] for c in range(4)])
    pictures = {
        f"images_evaluation/Made_up/character{c + 1:02}/{c:04}_{d + 1:02}.png": png(drawn[c, d])
        for c, d in np.ndindex(4, 3)
    }
    archive(folder / "drawings" / "images_evaluation.zip", pictures)
    np.savez_compressed(
        folder / "arrays" / omniglot.ARRAYS, images=drawn.astype(np.uint8), alphabet=["Made_up"] * 4
    )
    runs: dict[str, bytes] = {}
    for run in ("run01", "run02"):
        lines = []
        for i in range(3):
            shot, query = f"{run}/training/class{i + 1:02}.png", f"{run}/test/item{i + 1:02}.png"
            runs |= {shot: png(drawn[i, 0]), query: png(drawn[i, 1])}
            lines.append(f"{query} {shot}")
        runs[f"{run}/class_labels.txt"] = "\n".join(lines).encode()
    archive(folder / "drawings" / "all_runs.zip", runs)
    return folder


@pytest.fixture
def here(one_of_each: Path, more: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one whole input of each kind, and no hub."""
    shutil.copytree(more, one_of_each, dirs_exist_ok=True)
    config = one_of_each / "run" / "config.json"
    told = json.loads(config.read_text()) | {"dense": str(one_of_each / "dense")}
    config.write_text(json.dumps(told))
    shutil.copy(one_of_each / "text", one_of_each / "broken")
    (one_of_each / "broken.yaml").write_text("timesteps: 4\n")
    shutil.copy(one_of_each / "broken.yaml", one_of_each / "recipe.yaml")
    (one_of_each / "chip.yaml").write_text("core:\n  synaptic_bytes: 65536\n")
    (one_of_each / "batch.yaml").write_text(f"{BATCH}steps: [convert]\n")
    (one_of_each / "planned.yaml").write_text(f"{BATCH}place: {{chip: chip.yaml}}\n")
    # some seconds of an episode in Lava, which reads nothing more
    monkeypatch.setattr("neurtx.icl_omniglot._has_lava", lambda: False)
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
MADE |= {"begun/README.md"}


@pytest.mark.parametrize("case", CASES)
def test_one_line_or_an_answer(neurtx: Any, here: Path, case: Case) -> None:
    case.way(here / case.file)
    before = listing(here)
    done = neurtx(*case.words.split(), "--json")
    new = listing(here) - before
    assert "Traceback" not in done.stderr
    assert not [path for path in new if Path(path).name.startswith(".neurtx-")]
    if done.returncode == 0 or (case.words in IN_BATCHES.values() and done.returncode == 1):
        told = json.loads(done.stdout)
        assert all(any(path == m or path.startswith(f"{m}/") for m in MADE) for path in new), new
        if case.words in IN_BATCHES.values():
            failed = [why for entry in told["entries"] for why in entry["failed"].values()]
            assert bool(failed) == bool(done.returncode) and "\n" not in "".join(failed)
            logs = [path.read_text() for path in here.glob("batches/*/steps/*/log.txt")]
            assert logs and "Traceback" not in "".join(logs)
        return
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    assert told["exit_code"] == 2 and "\n" not in told["error"]
    last = done.stderr.splitlines()[-1]
    assert last == f"neurtx: error: {told['error']}"
    # which run is in training is noted before its checkpoint is read
    assert new <= ({".neurtx", ".neurtx/last-run"} if "--resume" in case.words else set())


def test_all_commands_are_in_the_matrix() -> None:
    known = commands()

    def path_of(words: list[str]) -> str:
        return next(path for n in (2, 1) if (path := " ".join(words[:n])) in known)

    typed = {path_of(case.values[0].words.split()) for case in CASES}
    # what these read is not there to be broken
    assert set(known) - {"models", "doctor", "install", "icl regression"} == typed
    quick = [case for case in CASES if not case.marks]
    assert len(CASES) > 1400 and len(CASES) / 30 < len(quick) < len(CASES) / 10


def test_what_is_broken_was_whole(neurtx: Any, here: Path) -> None:
    """Else it would be refused whatever was done to it."""
    groups = (READING_CHECKPOINTS, READING_GGUF, READING_DRAWINGS, READING_ARRAYS, PLANNING)
    for words in {words for group in groups for words in group.values()}:
        done = neurtx(*words.split(), "--json")
        assert done.returncode == 0, (words, done.stderr)
        told = json.loads(done.stdout)
        if "omniglot" in words:
            assert bool(told["official_runs"]) == words.endswith("drawings")
