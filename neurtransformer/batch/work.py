"""Does the jobs of a batch, each as a process of its own: `neurtx <step> ... --json`.

A process that crashes or runs out of memory takes no other along. When this one ends, however it
does, so do they: they are in the group of a janitor (`neurtransformer/janitor.py`). A job is
claimed by a lock that its process inherits, so that two batches on one disk, or a batch that was
killed and started again while a process of it was still there, never do one job at once.

A job that was begun and not finished leaves a folder without result.json. What is in it goes before
the next try, but for the checkpoint of a training, from which that goes on.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from neurtransformer import janitor, stop
from neurtransformer.batch.plan import Entry, Job, jobs_of
from neurtransformer.batch.results import (
    MADE,
    folder_of,
    forget,
    keep_failure,
    keep_result,
    made_by,
    result_of,
    write_tables,
)
from neurtransformer.errors import UserError, shortened
from neurtransformer.folders import new_folder
from neurtransformer.lock import claimed
from neurtransformer.runs import HOME_VARIABLE, plain

PROGRAM = [sys.executable, "-P", "-m", "neurtx.main"]
"""What stands before a step and its words."""

_PAUSE = 0.05
_PATIENCE = 10.0
"""Seconds that a process has to tidy up when it is told to end."""

# of a run, what a training changes
_TRAINED = ("config.json", "model.safetensors", "report.json")
_LOCK, _LOG, _CHECKPOINT = "lock", "log.txt", "checkpoint"
_MISTAKE = 2


def left_to_do(root: Path, entries: Sequence[Entry]) -> list[Job]:
    """The jobs without a result and, where those need a folder that is gone, the ones that made
    it; in order."""
    left: set[Job] = set()
    for job in reversed(jobs_of(entries)):
        needed = job in {other.needs for other in left}
        if result_of(root, job) is None or (needed and not made_by(root, job).is_dir()):
            left.add(job)
    return [job for job in jobs_of(entries) if job in left]


@dataclass
class _Running:
    """A process at work on a job, and what it holds and answers."""

    process: "subprocess.Popen[bytes]"
    lock: int
    answer: IO[bytes]
    began: float
    resumed: bool


@dataclass
class Batch:
    """A batch at work. entries: those to work on; all_entries: those of the tables. at_once: how
    many processes. say: told a line about each job."""

    root: Path
    entries: Sequence[Entry]
    all_entries: Sequence[Entry]
    at_once: int = 1
    say: Callable[[str], None] = lambda line: None
    waiting: list[Job] = field(default_factory=list)
    running: dict[Job, _Running] = field(default_factory=dict)
    failed: set[Job] = field(default_factory=set)

    def work(self) -> list[dict[str, Any]]:
        """Do what is left to do. Returns the rows of the entries, which say what has failed."""
        (self.root / "steps").mkdir(parents=True, exist_ok=True)
        self.waiting = left_to_do(self.root, self.entries)
        total, told = len(self.waiting), False
        with janitor.temporary_folder(), stop.tidied_by(self._end_all):
            try:
                while self.waiting or self.running:
                    changed = [job for job in list(self.running) if self._collected(job)]
                    changed += [job for job in list(self.waiting) if self._begun(job)]
                    if not changed and not self.running and not told:
                        self.say("another process works on what is left to do: waiting for it")
                        told = True
                    time.sleep(0 if changed else _PAUSE)
            finally:
                self._end_all()
        if total == 0:
            self.say("all is done already")
        rows = {row["id"]: row for row in write_tables(self.root, self.all_entries)}
        return [rows[entry.id] for entry in self.entries]

    # --- one job ---

    def _begun(self, job: Job) -> bool:
        """Start the job, or settle it without; whether anything has changed."""
        if job.needs in self.failed:
            self.waiting.remove(job)
            self.failed.add(job)
            return True
        pending = job.needs in self.waiting or job.needs in self.running
        if pending or len(self.running) >= self.at_once:
            return False
        folder = folder_of(self.root, job)
        folder.mkdir(exist_ok=True)
        lock = claimed(folder / _LOCK)
        if lock is None:
            return False
        if self._is_whole(job):
            # by another process, meanwhile
            os.close(lock)
            self.waiting.remove(job)
            return True
        try:
            forget(self.root, job)
            resumed = self._prepared(job, folder)
            self.running[job] = self._started(job, folder, lock, resumed)
        except BaseException:
            os.close(lock)
            raise
        self.waiting.remove(job)
        self.say(f"{job.step} {job.label}: {'goes on' if resumed else 'begins'}")
        return True

    def _is_whole(self, job: Job) -> bool:
        made = job.step not in MADE or made_by(self.root, job).is_dir()
        used = any(other.needs is job for other in self.waiting)
        return result_of(self.root, job) is not None and (made or not used)

    def _prepared(self, job: Job, folder: Path) -> bool:
        """Remove what an earlier try has left, and give a training a run of its own; whether that
        can go on from a checkpoint."""
        run = folder / "run"
        resumes = job.step == "finetune" and (run / _CHECKPOINT).is_dir()
        for path in folder.iterdir():
            if path.is_dir() and not (resumes and path == run):
                shutil.rmtree(path)
            elif path.is_file() and path.name != _LOCK:
                path.unlink()
        if job.step != "finetune" or job.needs is None:
            return False
        source = made_by(self.root, job.needs)
        if resumes:
            # it may have been killed when the weights were trained already, and begins with those
            # that it began with
            for path in run.glob(".*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name in _TRAINED:
                shutil.copyfile(source / name, run / f".{name}")
                (run / f".{name}").replace(run / name)
            return True
        with new_folder(run) as fresh:
            # hidden: what another process is writing, or has left
            hidden = shutil.ignore_patterns(".*", _CHECKPOINT)
            shutil.copytree(source, fresh, ignore=hidden, dirs_exist_ok=True)
        return False

    def _started(self, job: Job, folder: Path, lock: int, resumed: bool) -> _Running:
        words: list[str] = []
        if job.needs is None:
            words.append(str(job.model.given))
        elif job.step == "finetune":
            words.append(str(folder / "run"))
        else:
            words.append(str(made_by(self.root, job.needs)))
        if job.step in ("convert", "export"):
            words.append(f"--out={folder / MADE[job.step]}")
        if job.step == "export":
            words.append("--target=loihi2")
        words += [*job.words, *(["--resume"] if resumed else []), "--json"]
        # the note of the last run, which is the caller's, stays as it was
        environment = {**os.environ, HOME_VARIABLE: str(folder)}
        if self.at_once > 1:
            # all of them with all cores would get in each other's way
            threads = max(1, (os.cpu_count() or 1) // self.at_once)
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        answer = tempfile.TemporaryFile()  # noqa: SIM115 (closed where it is read)
        with (folder / _LOG).open("wb") as log:
            process = subprocess.Popen(
                [*PROGRAM, job.step, *words],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=log,
                cwd=folder,
                env=environment,
                pass_fds=[lock],
                process_group=janitor.group(),
            )
        return _Running(process, lock, answer, time.monotonic(), resumed)

    def _collected(self, job: Job) -> bool:
        """Keep what a process has answered, if it has ended."""
        running = self.running[job]
        code = running.process.poll()
        if code is None:
            return False
        seconds = time.monotonic() - running.began
        folder = folder_of(self.root, job)
        with running.answer:
            running.answer.seek(0)
            answer = _object(running.answer.read())
        if code == 0 and answer is not None:
            keep_result(self.root, job, answer, seconds)
            self.say(f"{job.step} {job.label}: done in {seconds:.0f} s")
        elif code == _MISTAKE and running.resumed:
            # what it should have gone on from is damaged, as when it was killed while it removed it
            shutil.rmtree(folder / "run", ignore_errors=True)
            self.waiting.insert(0, job)
            self.say(f"{job.step} {job.label}: cannot go on, and begins again")
        else:
            # the same on every machine
            reason = _reason(code, answer, folder / _LOG).replace(f"{self.root}{os.sep}", "")
            keep_failure(self.root, job, reason)
            self.failed.add(job)
            self.say(f"{job.step} {job.label}: FAILED: {reason} ({folder / _LOG})")
        del self.running[job]
        os.close(running.lock)
        write_tables(self.root, self.all_entries)
        return True

    def _end_all(self) -> None:
        """Tell all processes to end, and wait while they tidy up. May be called at any moment."""
        ending = {running.process.pid for running in self.running.values()}
        for process in ending:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        until = time.monotonic() + _PATIENCE
        while ending and time.monotonic() < until:
            ending = {process for process in ending if not _has_ended(process)}
            time.sleep(_PAUSE if ending else 0)


def _has_ended(process: int) -> bool:
    try:
        # it may be in the middle of being collected: nothing is taken from there
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return ended is not None


# --- what a process has said ---


def _object(text: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return dict(plain(found))
    return None


def _reason(code: int, answer: dict[str, Any] | None, log: Path) -> str:
    """Why a process failed, in one line."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", which is what happens when memory runs out" if code == -signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    if answer is not None and answer.get("mismatches"):
        return f"{answer['mismatches']} mismatches in {answer.get('compared')} integers"
    if answer is not None and not answer.get("same_text", True):
        return "the text that follows is another one"
    said = [line for line in _last_lines(log) if line.strip()]
    errors = [line for line in said if line.startswith("neurtx: error: ")]
    last = (errors or said or [f"exit code {code}"])[-1]
    return shortened(last.removeprefix("neurtx: error: "))


def _last_lines(log: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 2**14))
        yield from stream.read().decode("utf-8", "replace").splitlines()


def check_root(root: Path) -> None:
    """Raise UserError if something else than a folder stands at `root`."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file: name a folder for the batch")
