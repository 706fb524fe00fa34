"""What every command can be told about speaking: --quiet, --verbose, --json, and errors as JSON."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from neurtx import main as cli
from neurtx import output
from neurtx.progress import bar, remark, status


def leaves() -> Iterator[tuple[str, ...]]:
    """The words of every command, tasks of `icl` apart."""
    for name in cli.COMMANDS:
        command = cli.neurtx.get_command(click.Context(cli.neurtx), name)
        if isinstance(command, click.Group):
            yield from ((name, task) for task in command.list_commands(click.Context(command)))
        else:
            yield (name,)


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_a_mistake_is_json_where_json_is_wanted(neurtx: Any, words: tuple[str, ...]) -> None:
    """Even one that keeps the command from being parsed."""
    line = neurtx(*words, "--no-such-option", "--json").mistake()
    assert "--no-such-option" in line
    assert neurtx(*words, "--no-such-option").mistake() == line


def test_a_failure_is_json_too(neurtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr("neurtransformer.dense.list_models", broken)
    done = neurtx("models", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["exit_code"] == 1
    assert json.loads(done.stdout)["error"].startswith("ValueError: two lines")
    assert "Traceback" not in done.stderr
    assert "Traceback" in neurtx("models", "--verbose").stderr


def test_of_several_processes_one_says_so(neurtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = neurtx("eval", "nowhere", "--json")
    assert done.returncode == 2 and done.stdout == "" and "does not exist" in done.stderr


def test_quiet_keeps_progress_and_remarks_back(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("neurtransformer.some")
    for quiet in (False, True):
        with output.silenced() if quiet else click.Context(cli.neurtx):
            with bar("working", 10, "steps") as advance:
                advance(10, "")
            with status("looking") as note:
                note("around")
            remark("by the way")
            assert log.isEnabledFor(logging.WARNING) is not quiet
            assert log.isEnabledFor(logging.ERROR)
        out, err = capfd.readouterr()
        assert out == "" and ("working" in err, "by the way" in err) == (not quiet,) * 2
        assert not quiet or err == ""
    assert not output.is_silent()


def test_quiet_on_the_command_line(neurtx: Any, tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 50)
    words = ("eval", str(run), "--text", "text", "--limit", "256")
    loud, quiet = neurtx(*words), neurtx(*words, "-q")
    assert "evaluating" in loud.stderr and quiet.stderr == ""
    assert quiet.stdout == loud.stdout


def test_verbose_lets_the_libraries_speak(tmp_path: Path) -> None:
    told = "import os; print(os.environ['TRANSFORMERS_VERBOSITY'])"
    code = f"""
import sys; sys.argv = ["neurtx", "models", *sys.argv[1:]]
import neurtransformer.dense
neurtransformer.dense.list_models = lambda: exec({told!r}, {{}}) or []
from neurtx.main import main
main()
"""
    for words, level in (([], "error"), (["-v"], "info")):
        run = [sys.executable, "-c", code, *words]
        done = subprocess.run(run, capture_output=True, text=True, env=_plain(), cwd=tmp_path)
        assert done.stdout.startswith(level), done.stderr
    # what the caller's environment says wins
    done = subprocess.run(
        [sys.executable, "-c", code, "-v"],
        capture_output=True,
        text=True,
        env=_plain() | {"TRANSFORMERS_VERBOSITY": "critical"},
    )
    assert done.stdout.startswith("critical")


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "VERBOSITY" not in name}


def test_python_dash_m_is_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neurtx", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.startswith("neurtx, version ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_had(tmp_path: Path, shell: str) -> None:
    program = [sys.executable, "-m", "neurtx"]
    asked = os.environ | {"_NEURTX_COMPLETE": f"{shell}_source"}
    done = subprocess.run(program, capture_output=True, text=True, env=asked, cwd=tmp_path)
    assert done.returncode == 0 and "_NEURTX_COMPLETE" in done.stdout, done.stderr
    if shell == "bash":
        typed = {"COMP_WORDS": "neurtx eval --mo", "COMP_CWORD": "2"}
        asked |= {"_NEURTX_COMPLETE": "bash_complete", **typed}
        done = subprocess.run(program, capture_output=True, text=True, env=asked, cwd=tmp_path)
        assert done.stdout.split() == ["plain,--mode"]


def test_the_runs_that_ship_are_listed(neurtx: Any) -> None:
    rows = json.loads(neurtx("models", "--json").stdout)["runs"]
    found = {row["name"]: row for row in rows}
    assert found["gpt2-nano-spiking"]["model"] == "gpt2-nano"
    assert found["gpt2-nano-linear"]["attention"] == "linear"
    assert found["omniglot-plastic"]["attention"] is None
    assert all(Path(row["path"]).is_dir() for row in rows)
    shown = neurtx("models").stdout
    assert all(name in shown for name in found)
