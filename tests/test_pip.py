"""What `pip install neurtransformer` alone gives: the commands, a whole transformers, one line.

SpikingJelly and Lava come with `neurtx install`; here they are made to be missing.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

GONE = """
import json, sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
names = sys.argv[1].split(",")
sys.meta_path.insert(0, Gone())
"""
"""Makes packages missing, in whichever way one asks for them."""

COMMANDS = """
import contextlib, io
from neurtx import main, output
output.quiet()
output.quiet = lambda: None
answers = []
for words in json.loads(sys.argv[2]):
    sys.argv = ["neurtx", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main()
        except SystemExit as end:
            answers.append((end.code, out.getvalue(), err.getvalue()))
seen = sorted({name.partition(".")[0] for name in sys.modules} & set(names))
print(json.dumps([answers, seen]))
"""
"""Runs commands one after the other, in one process: starting one takes seconds."""


def python(code: str, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_spikingjelly_and_lava_are_asked_for_where_they_are_used(
    tmp_path: Path, tiny_dense_folder: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The neuron fires when its membrane reaches the threshold. " * 300)
    run, net = str(tmp_path / "run"), str(tmp_path / "net")
    works: list[list[str]] = [
        ["models"],
        ["convert", str(tiny_dense_folder), "--out", run, "--timesteps", "4", "--text", str(text)],
        ["finetune", run, "--steps", "2", "--text", str(text)],
        ["eval", run, "--limit", "64", "--text", str(text)],
        ["energy", run],
        ["generate", run, "--prompt", "The", "--tokens", "2"],
        ["generate", run, "--prompt", "The", "--tokens", "2", "--backend", "integer"],
        ["export", run, "--target", "loihi2", "--out", net],
        ["export", run, "--target", "nir", "--out", str(tmp_path / "nir")],
        ["place", net],
        ["place", "gpt2-xl"],
        ["simulate", net, "--prompt", "The", "--tokens", "1", "--backend", "integer"],
        ["icl", "induction", run, "--limit", "64", "--text", str(text)],
        ["report", run, "--out", str(tmp_path / "report.html")],
    ]
    told = {
        "neurtx install spikingjelly": ["eval", run, "--mode", "steps"],
        "neurtx install lava": ["simulate", net, "--prompt", "The"],
    }
    words = json.dumps([*works, *told.values()])
    done = python(GONE + COMMANDS, "spikingjelly,lava,nirtorch", words)
    assert done.returncode == 0, done.stderr
    answers, seen = json.loads(done.stdout)
    assert seen == []
    assert len(answers) == len(works) + len(told)
    for words_, (code, _, err) in zip(works, answers, strict=False):
        assert code == 0, (words_, err)
    for line, (code, out, err) in zip(told, answers[len(works) :], strict=True):
        assert (code, out) == (2, "")
        assert line in err and err.count("\n") == 1


def test_a_run_loads_without_spikingjelly(tiny_run: Path, tiny_race_run: Path) -> None:
    """Nor does it matter that somebody has only looked where the modules of transformers are."""
    code = """
import importlib.util
import neurtransformer, torch
for name in neurtransformer._NEEDS:
    assert importlib.util.find_spec(name) is not None
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
for run in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(run)
    print(type(model).__name__, bool(torch.isfinite(model(torch.arange(8)[None]).logits).all()))
"""
    done = python(GONE + code, "spikingjelly,lava", str(tiny_run), str(tiny_race_run))
    assert done.stdout == 2 * "SpikingGPT2LMHeadModel True\n", done.stderr


WHOLE = """
import neurtransformer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
print("whole")
"""


@pytest.mark.slow
def test_transformers_does_not_miss_what_we_miss() -> None:
    done = python(GONE + WHOLE, "pydantic")
    assert done.stdout == "whole\n", done.stderr
    assert "No module named 'pydantic'" in done.stderr
    assert "`neurtx doctor`" in done.stderr


@pytest.fixture
def broken_torchvision(tmp_path: Path) -> str:
    """A folder with a torchvision that was built for another torch, as the registry's is."""
    package = tmp_path / "path" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    information = package.with_name("torchvision-0.28.0.dist-info")
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    return str(package.parent)


@pytest.mark.slow
def test_a_torchvision_that_does_not_fit(broken_torchvision: str, tiny_dense_folder: Path) -> None:
    done = python(WHOLE, PYTHONPATH=broken_torchvision)
    assert done.stdout == "whole\n", done.stderr
    assert "torchvision::nms does not exist" in done.stderr

    command = "from neurtx.main import main; main()"
    done = python(command, "convert", str(tiny_dense_folder), PYTHONPATH=broken_torchvision)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip uninstall -y torchvision" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["convert", "gpt2-nano"]])
def test_windows_is_refused_in_one_line(words: list[str]) -> None:
    code = """
from neurtx.main import main
names, sys.platform = ["fcntl"], "win32"
sys.argv[1:] = sys.argv[2:]
main()
"""
    done = python(GONE + code, "none", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Linux and macOS" in done.stderr and done.stderr.count("\n") == 1


def test_windows_is_refused_by_the_library() -> None:
    code = """
import neurtransformer
names, sys.platform = ["fcntl"], "win32"
from neurtransformer.errors import UserError
try:
    import neurtransformer.runs
except UserError as error:
    print(error)
"""
    done = python(GONE + code, "none")
    assert "Linux and macOS" in done.stdout, done.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is here, without what was made in it."""
    made: Any = (".git", ".venv*", "build", "dist", "runs", "netlists", ".neurtx")
    caches = ("__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "*.so")
    ignored = shutil.ignore_patterns(*made, *caches)
    return Path(shutil.copytree(ROOT, tmp_path / "source", ignore=ignored))


def built(kind: str, source: Path, out: Path) -> Path:
    """The archive that setuptools makes of a source. kind: sdist or wheel."""
    code = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = (*out.glob("*.tar.gz"), *out.glob("*.whl"))
    return archive


def test_the_sdist_holds_what_its_tests_need(source: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    with tarfile.open(built("sdist", source, tmp_path)) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert {"tests/conftest.py", "Makefile", "constraints.txt", "scripts/demo.sh"} <= held
    assert files <= held


def test_the_wheel_holds_what_ships_whole(source: Path, tmp_path: Path) -> None:
    """The code that transformers looks for in a run too, which is no module of the package."""
    models = source / "neurtransformer" / "models"
    files = {str(path.relative_to(source)) for path in models.rglob("*") if path.is_file()}
    assert "neurtransformer/models/gpt2-nano-phase/neurtx_run.py" in files
    with zipfile.ZipFile(built("wheel", source, tmp_path)) as wheel:
        assert files <= set(wheel.namelist())
