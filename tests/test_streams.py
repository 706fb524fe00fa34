"""Standard streams that are closed, full or broken, and names that are not text."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurtransformer import runs
from neurtransformer.errors import UserError
from neurtransformer.folders import new_folder
from neurtx import main as cli

NEURTX = [sys.executable, "-m", "neurtx.main"]
NO_TEXT = os.fsdecode(b"na\xffme")


def shell(redirected: str, *words: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """Run words with redirections of a shell's."""
    command = ["sh", "-c", f'exec "$@" {redirected}', "sh", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=120)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere(tmp_path: Path, closed: str) -> None:
    done = shell(closed, *NEURTX, "models", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == b""
    if ">&-" in closed.split():
        assert done.stdout == b""
    else:
        assert json.loads(done.stdout)["models"]


TALKS = """
import click
from neurtx.options import reporting
from neurtx.output import answer
from neurtx import main
@click.command()
@reporting
def command(as_json):
    for step in range(10_000):
        click.echo(f"step {step}", err=True)
    answer({"a": "na\\udcffme \\u00e9"}, as_json=as_json)
main.neurtx.add_command(command, "doctor")
main.LazyGroup.get_command = lambda self, ctx, name: command
main.main()
"""


@pytest.mark.parametrize("broken", ["full", "pipe"])
def test_work_outlives_a_standard_error_that_takes_nothing(tmp_path: Path, broken: str) -> None:
    if broken == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    if broken == "full":
        nowhere = os.open("/dev/full", os.O_WRONLY)
    else:
        read, nowhere = os.pipe()
        os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", TALKS, "doctor", "--json"],
        stdout=subprocess.PIPE,
        stderr=nowhere,
        text=True,
    )
    os.close(nowhere)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"a": f"{NO_TEXT} é"}


@pytest.mark.parametrize(
    ("encoding", "bytes_"), [("ascii", b"na\xffme \\xe9"), ("utf-8", b"na\xffme \xc3\xa9")]
)
def test_any_text_can_be_printed(tmp_path: Path, encoding: str, bytes_: bytes) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", TALKS, "doctor"], capture_output=True, env=env, timeout=60
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert bytes_ in done.stdout


def test_a_pipe_that_nobody_reads_is_silent(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*NEURTX, "models"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


def test_arguments_that_are_not_text(tmp_path: Path) -> None:
    for words in (("eval", NO_TEXT), ("simulate", "--prompt", NO_TEXT), ("models", NO_TEXT)):
        done = subprocess.run([*NEURTX, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("neurtx: error: ") and done.stderr.count("\n") == 1


def test_folders_whose_names_are_not_text(tmp_path: Path, tiny_run: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"), new_folder(tmp_path / NO_TEXT):
        pass
    folder = tmp_path / NO_TEXT
    try:
        folder.symlink_to(tiny_run)
    except OSError:
        pytest.skip("this file system has no such names")
    assert runs.resolve("run", str(folder)) == tiny_run  # the name behind the link is text
    folder.unlink()
    folder.mkdir()
    for mark in runs.MARKS["run"]:
        (folder / mark).write_text("{}")
    with pytest.raises(UserError, match="not UTF-8"):
        runs.resolve("run", str(folder))


def test_a_page_may_name_a_folder_that_is_not_text(tmp_path: Path) -> None:
    runs.write_text(tmp_path / "page", f"<p>{NO_TEXT}</p>")
    assert (tmp_path / "page").read_bytes() == b"<p>na\xffme</p>"


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *NEURTX, "eval"]
    done = subprocess.run(words, cwd=gone, capture_output=True, text=True)
    assert done.returncode == 2
    assert "current folder does not exist any more" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EFBIG, "File too large", "x"), "no space left"),
        (RuntimeError("I/O error: File too large (os error 27)"), "no space left"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "x"), "x: Invalid cross-device"),
        (OSError(errno.EBUSY, "Device or resource busy", "x"), "x: Device or resource busy"),
        (RuntimeError("Could not determine home directory."), "no home directory"),
        (UnicodeEncodeError("utf-8", NO_TEXT, 2, 3, "surrogates not allowed"), "must be UTF-8"),
    ],
)
def test_what_a_system_may_say(error: Exception, message: str) -> None:
    line, code = cli.explain(error)
    assert message in line
    assert code == 2
