"""Signals end a command at once, with one line, and nothing of it stays, however it ends."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neurtransformer import janitor, stop
from neurtransformer.errors import UserError

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks at processes in /proc, which is Linux's"
)


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


# --- a folder and processes of which nothing stays ---

WORKS = """
import os, signal, time
from neurtransformer.janitor import temporary_folder
# a shell's background job starts with SIGINT ignored, one of nohup's with SIGHUP
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with temporary_folder() as outer, temporary_folder() as folder:
    (folder / "half").write_text("half")
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    print(outer, folder, child, flush=True)
    time.sleep(60)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def working(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[Path], int]]:
    """A process, its temporary folders and its child."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    *folders, child = process.stdout.readline().split()
    yield process, [Path(folder) for folder in folders], int(child)
    process.kill()
    process.communicate()


LATE = """
import os, time
from neurtransformer import janitor
set_group, parent = os.setpgid, os.getpid()
def late(process, group):
    if os.getpid() != parent and process == 0:
        time.sleep(0.2)
    set_group(process, group)
os.setpgid = late
with janitor.temporary_folder(), janitor.temporary_folder():
    child = os.fork()
    if child == 0:
        time.sleep(20)
    time.sleep(1)
    print(os.getpgid(child) == janitor.group())
"""


def test_a_child_belongs_to_a_janitor_that_is_late() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("number", [*stop.SIGNALS, signal.SIGKILL])
def test_nothing_stays(
    working: tuple[subprocess.Popen[str], list[Path], int], number: signal.Signals
) -> None:
    process, folders, child = working
    assert all(folder.is_dir() and folder.name.startswith("neurtx-") for folder in folders)
    assert alive(child)
    process.send_signal(number)
    process.wait(20)
    assert eventually(lambda: not any(folder.exists() for folder in folders), 20)
    assert eventually(lambda: not alive(child), 20)


def test_ctrl_c_in_a_terminal_reaches_neither_child_nor_janitor(
    working: tuple[subprocess.Popen[str], list[Path], int],
) -> None:
    process, _, child = working
    assert os.getpgid(child) != process.pid == os.getpgid(process.pid)
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert alive(child)


def test_a_block_that_ends_leaves_nothing(tmp_path: Path) -> None:
    with janitor.temporary_folder() as folder:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        (folder / "file").write_text("x")
    assert not folder.exists()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_process_that_is_slow_to_start_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block ends before it has joined the janitor's group."""
    parent, setpgid = os.getpid(), os.setpgid

    def slow(process: int, group: int) -> None:
        if os.getpid() != parent:
            time.sleep(0.5)
        setpgid(process, group)

    monkeypatch.setattr(os, "setpgid", slow)
    with janitor.temporary_folder():
        child = os.fork()
        if child == 0:
            time.sleep(5)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_memory_is_shared_and_has_no_name() -> None:
    memory = janitor.MemoryManager().create_shared_memory(8)
    child = os.fork()
    if child == 0:
        memory.buf[3] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert memory.buf[3] == 7


@pytest.mark.parametrize("how", ["system", "by hand"])
def test_room_is_taken_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "by hand":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    file = tmp_path / "log"
    file.write_bytes(b"head")
    os.truncate(file, 3 * 2**20 + 5)
    janitor.reserve(file)
    assert file.read_bytes() == b"head" + bytes(3 * 2**20 + 1)
    assert file.stat().st_blocks * 512 >= file.stat().st_size


def test_no_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    (tmp_path / "log").write_bytes(b"x")
    with pytest.raises(UserError, match="no room for 1 bytes of temporary files"):
        janitor.reserve(tmp_path / "log")


# --- signals that wait ---


def test_a_held_signal_takes_its_course_at_the_end() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached = False
    try:
        with pytest.raises(KeyboardInterrupt), stop.held() as noted:
            signal.raise_signal(signal.SIGINT)
            with stop.held():
                signal.raise_signal(signal.SIGINT)
            reached = noted == [signal.SIGINT, signal.SIGINT]
        assert reached
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# --- the command line ---

SWALLOWS = """
import signal, sys
# as when it is raised while a library is imported that takes every error for a missing one
class Swallows:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                print("lost", file=sys.stderr)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Swallows())
from neurtx.main import main
main()
"""


def test_ctrl_c_cannot_be_swallowed(tmp_path: Path, tiny_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS, "eval", str(tiny_run)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 130
    assert done.stderr == "neurtx: interrupted: nothing half-written was left\n"


def children(process: int) -> list[int]:
    try:
        path = Path(f"/proc/{process}/task/{process}/children")
        return [int(child) for child in path.read_text().split()]
    except OSError:
        return []


@needs_proc
@pytest.mark.usefixtures("lava")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_nothing_of_lava_stays(
    tmp_path: Path, tiny_netlist: Path, number: signal.Signals, code: int
) -> None:
    """Sent while Lava starts its processes."""
    words = ["simulate", str(tiny_netlist), "--prompt", "the statement is", "--json"]
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{reset}; from neurtx.main import main; main()", *words],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert eventually(lambda: len(children(process.pid)) >= 5 or process.poll() is not None, 120)
    started = children(process.pid)
    for child in started:
        with contextlib.suppress(OSError):  # it has ended by itself
            assert "psm_" not in Path(f"/proc/{child}/maps").read_text()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), err
    if number != signal.SIGKILL:
        assert "nothing half-written was left" in err.splitlines()[-1]
        assert "Traceback" not in err and "ignored" not in err
    assert eventually(lambda: not any(map(alive, started)), 20)
    assert eventually(lambda: not list(tmp_path.glob("neurtx-*")), 20)
    assert not list(tmp_path.glob("pymp-*"))
