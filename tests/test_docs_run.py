"""What README, docs and model cards tell people to type is run, page by page and in their order.

A page has a folder of its own, so that a command finds what those above it have made. What is
large is replaced: by `STAND_INS` in commands, and by the fixtures for what people bring along. What
is run elsewhere, or nowhere, stands in `NOT_RUN`. These are the blocks of code; a command within a
sentence is parsed, by test_docs.py.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import test_omniglot
from test_batch_clusters import NEURTX as PRETENDING
from test_docs import FOUND, PAGES, ROOT, blocks

from neurtransformer.runs import read_json

STAND_INS = (
    # trainings of two steps, also where a command leaves the number to a recipe
    (r"--steps \d+", "--steps 2"),
    (r"(neurtx finetune (?!.*--steps).*)", r"\1 --steps 2"),
    (r"(train_omniglot\.py .*)", r"\1 --steps 2"),
    (r"--seeds \d+", "--seeds 1"),
    # pretraining of seconds, without the minutes that its kernels are compiled in
    (r"(pretrain\.py --out .*)--minutes \d+", r"\1--minutes 0.05 --batch-tokens 512 --no-compile"),
    (r"--width 512 --heads 8", "--width 256 --heads 4"),
    # measurements on a few tokens; 1,022 are the least that SpikingJelly's are made on
    (r"--limit (?!1022)\d+", "--limit 64"),
    (r"\blimit=\d+", "limit=64"),
    (r"(neurtx (?:eval|energy)(?!.*--limit)[^#]*)", r"\1 --limit 64 "),
    (r"((?:widths|growth|frontier)\.py .*)", r"\1 --limit 64"),
    (r"(paper_table\.py(?!.*--limit))", r"\1 --limit 64"),
    (r"(peers_smollm2\.py .*)", r"\1 --timesteps 4"),
    (r"--perplexity \d+", "--perplexity 64"),
    (r"--episodes \d+", "--episodes 4"),
    (r"(neurtx icl omniglot (?!.*--episodes).*)", r"\1 --episodes 4"),
    # texts to write, to read in Lava, to mix
    (r"--tokens \d+", "--tokens 2"),
    (r"\btokens=\d+", "tokens=2"),
    (r"((?:plasticity|race_engine)\.py .*)", r"\1 --prompt Spikes"),
    (r"--characters \d+", "--characters 40000"),
    (r'(classic_books\.txt=\.30) \.\.\."', r'\1"'),
    # speed and memory of small networks
    (r"--layers 48", "--layers 1 --width 64 --heads 2"),
    (r"(bench\.py OUT(?!.*--model))", r"\1 --model gpt2-nano"),
    (r"(bench\.py OUT(?!.*--context))", r"\1 --context 512"),
    (r"(bench\.py OUT(?!.*--batch))", r"\1 --batch 1"),
    (r"(bench\.py OUT)", r"\1 --new 2 --repeats 1"),
    (r"--context 512", "--context 16"),
    # data sets, which are on the hub
    (r"--train-text Salesforce/\S+", "--train-text mix.txt"),
    (r"(paper_table\.py(?!.*--text))", r"\1 --text wikitext2.txt"),
)
"""What a command says, and what it says here, one after the other: all that would take long."""

NOT_RUN = {
    ("README.md", "python3.11 -m venv"): "makes an environment",
    ("README.md", "pip install"): "fetches packages",
    ("README.md", "neurtx install"): "fetches packages where one is missing",
    ("CONTRIBUTING.md", "make "): "is what runs these tests",
    ("CONTRIBUTING.md", ".venv/bin/python -m pytest"): "is what runs these tests",
    ("docs/batch.md", "# .github/workflows"): "tests/test_batch_clusters.py runs its lines",
    ("docs/batch.md", "array=$(sbatch"): "needs SLURM; tests/test_batch_clusters.py plays it",
    ("docs/batch.md", "sbatch "): "needs SLURM; tests/test_batch_clusters.py plays it",
    ("docs/gpt2.md", "hf download"): "needs the hub; what it makes is there",
    ("docs/gpt2.md", "python - <<"): "needs the hub; what it makes is there",
    ("docs/nir.md", "import torch"): "tests/test_nir.py runs it",
    ("docs/python-api.md", "hf upload"): "needs the hub and an account",
    ("docs/python-api.md", "from huggingface_hub"): "needs the hub and an account",
    ("docs/python-api.md", "pip install lm-eval"): "fetches packages",
    ("docs/python-api.md", "lm_eval run"): "tests/test_lm_eval.py runs it where lm-eval is there",
    ("docs/quality.md", "neurtx install"): "fetches 98 MB",
}
"""Page and beginning of what is not run, and why."""

# --- what a page has people do ---

_SHELL = re.compile(
    r"(neurtx|python[\d.]*|pip|make|hf|lm_eval|sbatch|torchrun|for|export|echo|\S*/bin/\w+) |\w+=\S"
)
"""How a command begins in a block that may as well be a formula or a picture."""
_ENDS = ((re.compile(r"<<'(\w+)'"), r"\1"), (re.compile(r"; do$"), "done"))
_NAMED = re.compile(r"(?:#!.*\n)?# (\S+\.\w+)\n")


class Task(NamedTuple):
    """kind: shell, python, or file: a block that begins with the name of one."""

    page: str
    kind: str
    text: str

    def reason(self) -> tuple[str, str] | None:
        """The key of NOT_RUN that says why it is not run."""
        found = [key for key in NOT_RUN if self.page == key[0] and self.text.startswith(key[1])]
        return found[0] if found else None


def tasks(path: Path) -> Iterator[Task]:
    page = str(path.relative_to(ROOT))
    for language, block in blocks(path.read_text(encoding="utf-8")):
        if language == "python" or block.startswith(("import ", "from ")):
            yield Task(page, "python", block)
        elif language == "yaml" or _NAMED.match(block):
            yield Task(page, "file", block)
        else:
            for text in statements(block, language):
                yield Task(page, "shell", text)


def statements(block: str, language: str) -> Iterator[str]:
    """What a shell takes at once: a line, a loop, or a line with the document that follows."""
    lines = iter(block.splitlines())
    for line in lines:
        if language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        elif not _SHELL.match(line):
            assert language != "sh", f"{line}: is this a command?"
            continue
        text = line
        for begins, end in _ENDS:
            if match := begins.search(line):
                while text.splitlines()[-1] != match.expand(end):
                    text += f"\n{next(lines)}"
        yield text


TASKS = {path: list(tasks(path)) for path in PAGES}


def test_what_is_not_run_is_there_and_all_else_is_run() -> None:
    every = [task for of_page in TASKS.values() for task in of_page]
    assert {task.reason() for task in every} - {None} == set(NOT_RUN)
    for typed in FOUND:
        if typed.whole:
            words = re.compile(r"[\s\\'\"]*".join(map(re.escape, ("neurtx", *typed.words))))
            assert any(task.page == typed.page and words.search(task.text) for task in every), typed


# --- what people bring along ---

TEXTS = """FILE data/gutenberg.txt heldout.txt mix.txt novels.txt textbooks.txt train.txt
wikitext2.txt wikitext2_test.txt corpus/heldout/novels.txt corpus/heldout/textbooks.txt"""
CORPUS = """classic_books english_novels openstax_textbooks us_presidential_addresses
wikipedia_articles onestop_english_news tinystories_sample"""


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_dense_folder: Path,
    tiny_llama_folder: Path,
    tiny_run: Path,
) -> Path:
    """A cache of the hub that is said to hold the models that the pages name."""
    cache = tmp_path_factory.mktemp("hub")
    for name, folder in {
        "openai-community/gpt2": tiny_dense_folder,
        "openai-community/gpt2-medium": tiny_dense_folder,
        "openai-community/gpt2-large": tiny_dense_folder,
        "HuggingFaceTB/SmolLM2-135M": tiny_llama_folder,
        "owner/mine": tiny_run,
    }.items():
        home = cache / "hub" / f"models--{name.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0123abc")
        shutil.copytree(folder, home / "snapshots" / "0123abc")
    # SpikingJelly's recipes read 511 tokens at once; rotary positions have no weights
    (config,) = cache.glob("hub/*SmolLM2*/snapshots/*/config.json")
    config.write_text(json.dumps({**read_json(config), "max_position_embeddings": 1024}))
    return cache


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings enough for an episode of 20 characters, and for a training."""
    folder = tmp_path_factory.mktemp("omniglot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_omniglot, "DRAWERS", 6)
        drawings = test_omniglot.alphabet("Made_up", 10) | test_omniglot.alphabet(
            "Sanskrit", 20, 10
        )
    test_omniglot.archive(folder / "images_background.zip", drawings)
    return folder


@pytest.fixture
def place(
    tmp_path: Path, tiny_dense_folder: Path, tiny_race_run: Path, omniglot: Path, page: Path
) -> Path:
    """The folder that a page's commands run in, as if it were a checkout."""
    place = tmp_path / "page"
    text = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")[:30000]
    for name in [*TEXTS.split(), *(f"corpus/train/{name}.txt" for name in CORPUS.split())]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    (place / "mine.yaml").write_text("timesteps: 4\n")
    for folder in (place / "gpt2", place / "my-gpt2", tmp_path / "my-gpt2"):
        shutil.copytree(tiny_dense_folder, folder)
    shutil.copytree(tiny_race_run, place / "RUN")
    shutil.copytree(omniglot, place / "FOLDER")
    (place / "scripts").symlink_to(ROOT / "scripts")
    models = "neurtransformer/models"
    shutil.copytree(ROOT / models, place / models)  # `scripts/ship.py` writes there
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "activate").touch()
    # 81 entries of seven steps each; that the real ones work is what tests/test_batch.py says
    neurtx = PRETENDING if page.name == "batch.md" else f"#!{sys.executable}\n{MAIN}"
    for name, code in {
        "neurtx": neurtx,
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
        "srun": '#!/bin/sh\nexec "$@"\n',
    }.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(code)
        (tmp_path / "bin" / name).chmod(0o755)
    return place


MOST_SECONDS = 600
MAIN = "from neurtx.main import main\nmain()\n"


def ran(words: list[str], place: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """A command's exit status and its two outputs. One that hangs leaves no process behind."""
    with subprocess.Popen(
        words,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.usefixtures("lava")
@pytest.mark.parametrize(
    "page",
    [path for path in PAGES if any(not task.reason() for task in TASKS[path])],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_commands_of_a_page_run(page: Path, place: Path, hub: Path) -> None:
    for name, code in re.findall(r"`(\w+\.yaml)` holds\s+`([^`]+)`", page.read_text()):
        (place / name).write_text(f"{code}\n")
    environment = {
        **os.environ,
        "PATH": f"{place.parent / 'bin'}:{os.environ['PATH']}",
        "HOME": str(place.parent / "home"),
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SCRATCH": str(place / "scratch"),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_ARRAY_TASK_ID": "1",
    }
    # a shell keeps its variables, Python what was imported
    kept: dict[str, str] = {"shell": "", "python": ""}
    for task in TASKS[page]:
        if task.reason():
            continue
        text = task.text
        for pattern, instead in STAND_INS:
            text = re.sub(pattern, instead, text)
        if task.kind == "file":
            named = _NAMED.match(text)
            assert named, f"{task.page} does not say which file this is:\n{text}"
            (place / named[1]).write_text(text)
            if not text.startswith("#!"):
                continue
        # -P: without the folder, where a part of ours lies that Python would take for the whole
        python, shell = [sys.executable, "-P", "-c"], ["bash", "-euo", "pipefail", "-c"]
        program = python if task.kind == "python" else shell
        code, out, err = ran([*program, kept.get(task.kind, "") + text], place, environment)
        assert code == 0, f"{task.page}: {text}\nended with {code}:\n{out[-2000:]}{err[-4000:]}"
        if task.kind == "python":
            kept["python"] += "".join(re.findall(r"^(?:import|from) .*\n", text, re.MULTILINE))
        elif re.match(r"(export )?\w+=", text):
            kept[task.kind] += f"{text}\n"
