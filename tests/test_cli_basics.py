"""The command line itself: quick help, one line per mistake, JSON and nothing else."""

import errno
import importlib.metadata
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from neurtransformer.errors import UserError
from neurtx import main as cli
from neurtx import output

ROOT = Path(__file__).parent.parent


def process(*words: str, cwd: Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "neurtx.main", *words],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_line(done: "subprocess.CompletedProcess[str]", cwd: Path, *kept: str) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("neurtx: error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in cwd.iterdir()) == sorted(kept)
    return done.stderr


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
sys.argv = ["neurtx", "--help"]
from neurtx.main import main
try:
    main()
finally:
    heavy = {"neurtransformer", "torch", "transformers", "rich", "numpy", "huggingface_hub"}
    print("heavy:", sorted(heavy & set(sys.modules)))
"""
    best = 9.0
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        best = min(best, time.monotonic() - start)
        assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)
    assert best < 0.6  # 0.1 s on an idle machine; the tests share theirs


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str) -> None:
    loaded = cli.neurtx.get_command(None, command)
    assert loaded is not None
    with loaded.make_context(command, [], resilient_parsing=True) as context:
        assert loaded.get_help(context).startswith("Usage:")
    assert loaded.name == "command" or loaded.name == command
    tasks = loaded.commands.values() if isinstance(loaded, click.Group) else [loaded]
    for task in tasks:
        taken = {name for parameter in task.params for name in parameter.opts}
        assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= taken


def test_models_as_json(tmp_path: Path) -> None:
    done = process("models", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [model["name"] for model in json.loads(done.stdout)["models"]]
    assert names[0] == "gpt2-nano"
    assert done.stderr == ""


@pytest.mark.slow
def test_doctor_as_json(tmp_path: Path) -> None:
    done = process("doctor", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    assert {"python", "torch", "lava-dl", "spikingjelly", "gpt2-nano", "lava netx works"} <= {
        check["name"] for check in found["checks"]
    }
    assert all(check["ok"] or check["fix"] for check in found["checks"])
    assert found["device"] in ("cpu", "cuda")


def test_a_spoilt_environment_is_told_what_to_type(tmp_path: Path) -> None:
    """Without torch and the rest the doctor still answers."""
    code = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "numpy", "rich", "spikingjelly", "lava"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Gone())
sys.argv = ["neurtx", "doctor", *sys.argv[1:]]
import neurtx.doctor
neurtx.doctor._PROBES.clear()
neurtx.doctor.version = lambda package: None
from neurtx.main import main
main()
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is False and found["device"] is None
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["lava-nc"]["fix"] == "neurtx install lava"
    assert "simulate" in checks["lava-nc"]["needed_for"]
    assert checks["torch"]["needed_for"] is None
    assert checks["system"]["ok"] is True
    done = subprocess.run(run, capture_output=True, text=True)
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert f"pip install {index} 'torch==2.13.*'" in done.stdout
    assert "type: neurtx install lava" in done.stdout


def test_doctor_does_not_try_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lava is missing, and nothing else: its probe would only say so once more."""
    from click.testing import CliRunner

    from neurtx import doctor, install

    installed = {"lava-nc": None, "lava-dl": None}
    found = install.version
    monkeypatch.setattr(doctor, "version", lambda name: installed.get(name, found(name)))
    for name in ("transformers works", "datasets works", "torch works"):
        monkeypatch.setitem(doctor._PROBES, name, ("print('cpu')", ""))
    answer = CliRunner().invoke(doctor.command).output
    bad = [line for line in answer.splitlines() if line.startswith("!!")]
    assert [line.split()[1] for line in bad] == ["lava-nc", "lava-dl"]
    assert all("only for simulate" in x and "type: neurtx install lava" in x for x in bad)
    assert "ok  spikingjelly works" in answer


def test_what_doctor_says_to_type_is_what_is_taken() -> None:
    """A newer transformers than was tested would break `generate`."""
    from packaging.requirements import Requirement

    from neurtx import doctor

    taken = {
        r.name: r for r in map(Requirement, importlib.metadata.requires("neurtransformer") or [])
    }
    for probe, name in (("transformers works", "transformers"), ("torch works", "torch")):
        typed = shlex.split(doctor._PROBES[probe][1])[-1]
        assert Requirement(typed).specifier == taken[name].specifier != ""


def test_install_has_nothing_to_do_here(tmp_path: Path) -> None:
    done = process("install", "spikingjelly", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "already here: spikingjelly 2.0.0\n"


@pytest.mark.parametrize(
    "words", [["nonsense"], ["models", "--nonsense"], ["install", "nonsense"], ["--nonsense"]]
)
def test_usage_errors_are_one_line(tmp_path: Path, words: list[str]) -> None:
    assert "--help" in one_line(process(*words, cwd=tmp_path), tmp_path)


@pytest.mark.parametrize("words", [["-qv"], ["-vq"], ["-q", "-v"], ["--verbose", "--quiet"]])
def test_quiet_and_verbose_exclude_each_other(neurtx: Any, words: list[str]) -> None:
    assert "--quiet and --verbose exclude each other" in neurtx("models", *words).mistake()
    assert not output.is_silent()


def test_the_same_word_twice_is_no_conflict(neurtx: Any) -> None:
    assert neurtx("models", "-qq", "--quiet").returncode == 0
    assert neurtx("models", "-vv").returncode == 0


@pytest.mark.parametrize("option", ["--json", "-q", "--quiet", "-v", "--verbose"])
def test_an_option_before_the_command_is_told_its_place(neurtx: Any, option: str) -> None:
    assert f"put {option} behind the command" in neurtx(option, "models").mistake()


def test_verbose_shows_a_traceback_however_it_is_typed(
    neurtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("neurtransformer.dense.list_models", broken)
    for words, shown in (((), False), (("-v",), True), (("-vv",), True), (("--verbose",), True)):
        done = neurtx("models", *words)
        assert done.returncode == 1 and "ValueError: a fault of ours" in done.stderr
        assert ("Traceback" in done.stderr) == shown


def test_a_silent_hub_is_given_up_within_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the call and never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        start = time.monotonic()
        line = one_line(process("convert", "gpt2-small", cwd=tmp_path), tmp_path)
    assert time.monotonic() - start < 10
    assert "no network" in line
    assert "openai-community/gpt2 --local-dir" in line


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UserError("no such\nthing: do that"), "error: no such thing: do that", 2),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "error: no space left", 2),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "error: no space", 2),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
            "error: no",
            2,
        ),
        (OSError("1000000 requested and 262128 written"), "error: no space left", 2),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: /x: Permission", 2),
        (KeyboardInterrupt(), "interrupted: nothing half-written was left", 130),
        (BrokenPipeError(), "", 1),
        (ModuleNotFoundError("no", name="lava.magma"), "error: lava is not installed: type", 1),
        (ValueError("two\nlines"), "error: ValueError: two lines (--verbose shows", 1),
    ],
)
def test_the_error_policy(error: BaseException, message: str, code: int) -> None:
    line, number = cli.explain(error)
    assert line.startswith(message)
    assert "\n" not in line
    assert number == code


def test_a_cause_deep_down_counts() -> None:
    outer = RuntimeError("could not save")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert cli.explain(outer)[1] == 2


PRINTS = """
import os, sys, click
from neurtx.options import reporting
from neurtx.output import answer
from neurtx import main
@click.command()
@reporting
def command(as_json):
    print("from python")
    os.system("echo from a child")
    os.write(1, b"from C\\n")
    answer({"a": float("nan"), "b": {"c": 1.5}}, as_json=as_json)
main.neurtx.add_command(command, "doctor")
main.LazyGroup.get_command = lambda self, ctx, name: command
main.main()
"""


def test_json_is_alone_on_standard_output(tmp_path: Path) -> None:
    run = [sys.executable, "-c", PRINTS, "doctor"]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"a": None, "b": {"c": 1.5}}
    assert all(f"from {who}" in done.stderr for who in ("python", "a child", "C"))
    done = subprocess.run(run, capture_output=True, text=True)
    assert "b.c" in done.stdout
    assert "1.5" in done.stdout


def test_a_full_standard_output_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "neurtx.main", "models", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("neurtx: error: no space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    import zipfile

    # from a copy, for setuptools leaves a build folder that finds its way into the next wheel
    needed = ("pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE")
    source = tmp_path / "source"
    for folder in ("neurtransformer", "cli", "configs"):
        shutil.copytree(ROOT / folder, source / folder)
    for name in needed:
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("neurtransformer-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "neurtx/main.py" in names
    assert any(name.endswith("/share/neurtransformer/constraints.txt") for name in names)
    assert "neurtransformer/models/gpt2-nano/model.safetensors" in names
    for folder in ("neurtransformer", "cli", "configs"):
        home = {"cli": "neurtx", "configs": "neurtransformer/configs"}.get(folder, folder)
        for file in (source / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".j2"):
                assert f"{home}/{file.relative_to(source / folder)}" in names
