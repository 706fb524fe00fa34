"""The examples of docs/batch.md for a cluster and for GitHub, run here by stand-ins.

`srun` passes its words on, and the commands that a batch calls are those of `pretending`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pretending
import pytest
import yaml

PAGE = Path(__file__).parent.parent / "docs" / "batch.md"
SEEDS = [0, 1, 2]
CONFIG = {"models": ["gpt2-nano"], "seeds": SEEDS, "steps": ["convert", "finetune", "eval"]}
PARTS = "27"
"""Of the example; here there are as many as seeds."""

NEURTX = f"""\
#!{sys.executable}
import sys
from neurtransformer.batch import work
from neurtx.main import main
work.PROGRAM = [sys.executable, "-S", "-E", {pretending.__file__!r}]
main()
"""


def example(language: str, holds: str) -> str:
    """The one block of code in that language that holds some text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if holds in block)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, code in {"srun": '#!/bin/sh\nexec "$@"\n', "neurtx": NEURTX}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(code)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def bash(place: Path, script: str, given: Mapping[str, str]) -> None:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    calls = str(place / "calls")
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        env={**os.environ, "PATH": path, pretending.CALLS: calls, **given},
        check=True,
    )


def finished(place: Path, root: Path) -> None:
    """All entries are done, and nothing was done twice."""
    rows = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done"] * len(SEEDS)
    calls = (place / "calls").read_text().splitlines()
    assert len(calls) == 1 + 2 * len(SEEDS)  # one conversion serves all


def test_an_array_of_slurm(place: Path) -> None:
    script, parts = example("sh", "#SBATCH"), str(len(SEEDS))
    assert f"--array=1-{PARTS}" in script
    given = {"SLURM_CPUS_PER_TASK": "1", "SCRATCH": str(place / "scratch")}
    for task in range(1, 1 + len(SEEDS)):
        given["SLURM_ARRAY_TASK_ID"] = str(task)
        bash(place, script.replace(f"/{PARTS}", f"/{parts}"), given)
    last = re.search(r"--wrap '(.*)'", PAGE.read_text())
    assert last is not None
    bash(place, last[1], given)
    finished(place, place / "scratch" / "ladder")


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq, which GitHub has, is not here")
def test_a_matrix_of_github(place: Path) -> None:
    jobs = yaml.safe_load(example("yaml", "workflow_dispatch"))["jobs"]

    def line_of(job: str) -> str:
        lines = [step["run"] for step in jobs[job]["steps"] if "run" in step]
        (found,) = (line for line in lines if line.startswith(("neurtx run", "ids=")))
        return str(found)

    def with_of(job: str, action: str) -> dict[str, str]:
        (found,) = (
            step["with"]
            for step in jobs[job]["steps"]
            if step.get("uses", "").startswith(f"actions/{action}-artifact@")
        )
        return found

    output = place / "output"
    bash(place, line_of("plan"), {"GITHUB_OUTPUT": str(output)})
    entries = json.loads(output.read_text().removeprefix("entries="))
    assert len(entries) == len(SEEDS)
    travelling = place / "travelling"
    for entry in entries:
        bash(place, line_of("entry").replace("${{ matrix.entry }}", entry), {})
        upload = with_of("entry", "upload")["path"]
        for file in place.glob(upload):
            there = travelling / file.relative_to(place / "batch" / "steps")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, there)
        shutil.rmtree(place / "batch")  # each job has a disk of its own
    shutil.copytree(travelling, place / with_of("table", "download")["path"])
    before = (place / "calls").read_text()
    bash(place, line_of("table"), {})
    assert (place / "calls").read_text() == before
    rows = (place / "batch" / "results.jsonl").read_text().splitlines()
    assert [json.loads(row)["status"] for row in rows] == ["done"] * len(entries)
