"""An export that is killed at any moment leaves nothing under its target's name."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neurtransformer.loihi import netlist

EXPORT = """
import os, re, signal, sys
number, moment = int(sys.argv.pop(1)), sys.argv.pop(1)

def kill(event, args):
    global moment
    if event not in ("open", "os.mkdir", "os.rename") or moment is None:
        return
    if re.search(moment, f"{event} {args}"):
        moment = None
        os.kill(os.getpid(), number)

sys.addaudithook(kill)
# a shell's background job starts with SIGINT ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from neurtx.main import main
main()
"""
MOMENTS = {
    "the folder is made": r"mkdir.*/\.neurtx-new-[^/]*-net'",
    "a projection is written": "open.*embed.table.net",
    "the tokenizer is written": "mkdir.*/tokenizer'",
    "the manifest is put in place": "rename.*/manifest.json'",
    "the folder is put in place": "rename.*/made/net'",
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
QUICK = {
    (signal.SIGKILL, "the tokenizer is written"),
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(number, moment, marks=[] if (number, moment) in QUICK else pytest.mark.slow)
        for number in SIGNALS
        for moment in MOMENTS
    ],
)
def test_killed_in_the_middle(
    neurtx: Any, tmp_path: Path, tiny_run: Path, number: signal.Signals, moment: str
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    target = tmp_path / "made" / "net"
    words = ("export", str(run), "--target", "loihi2", "--out", str(target), "--json")
    killed = subprocess.run(
        [sys.executable, "-c", EXPORT, str(int(number)), MOMENTS[moment], *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert killed.returncode == codes[number], killed
    assert killed.stdout == "" and "Traceback" not in killed.stderr
    assert not target.exists()
    if number != signal.SIGKILL:
        assert sorted(tmp_path.iterdir()) == [run]

    assert neurtx(*words).returncode == 0
    assert list(target.parent.iterdir()) == [target]
    netlist.read(target)
