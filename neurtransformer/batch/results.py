"""What came of the jobs of a batch: a file in the folder of each, and tables made of these.

    ROOT/results.jsonl, results.csv       one line an entry, in the order of the plan
    ROOT/steps/<step>-<label>-<hash>/     the folder of a job
        result.json                       there if, and only if, the job is done
        failed.json                       why the last try failed
        log.txt                           what its command said
        run/ or netlist/                  what it made

The tables are made anew after every job, each in one move, and hold nothing but what those files
say: whoever was killed in between, they come out the same.
"""

import contextlib
import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurtransformer.batch.config import STEPS, Step
from neurtransformer.batch.plan import Entry, Job
from neurtransformer.errors import UserError
from neurtransformer.lock import locked
from neurtransformer.runs import read_json, write_json, write_text

MADE: dict[Step, str] = {"convert": "run", "finetune": "run", "export": "netlist"}
"""The folder that a step makes, for those that make one."""

TABLES = ("results.jsonl", "results.csv")
_OLD = 600  # seconds
_RESULT, _FAILED = "result.json", "failed.json"

# where things are and how long they took is another matter on the next machine
_PLACES = {"run", "netlist", "model", "text", "picture"}
_TIMES = {"seconds", "backend_seconds", "integer_seconds"}
_KEYS = ("id", "model", "recipe", "seed", "text", "status", "failed")


def folder_of(root: Path, job: Job) -> Path:
    """The folder of a job."""
    return root / "steps" / job.name


def made_by(root: Path, job: Job) -> Path:
    """The run or netlist that a job makes."""
    return folder_of(root, job) / MADE[job.step]


def result_of(root: Path, job: Job) -> dict[str, Any] | None:
    """What is kept of a job that is done, else None."""
    return _kept(folder_of(root, job) / _RESULT, job)


def failure_of(root: Path, job: Job) -> str | None:
    """Why a job failed when it was last tried, else None."""
    kept = _kept(folder_of(root, job) / _FAILED, job)
    return None if kept is None else str(kept.get("reason"))


def _kept(file: Path, job: Job) -> dict[str, Any] | None:
    try:
        kept = read_json(file)
    except UserError:
        return None
    return kept if kept.get("hash") == job.hash else None


def keep_result(root: Path, job: Job, answer: Mapping[str, Any], seconds: float) -> None:
    """Note that a job is done, with what its command answered."""
    told = {k: v for k, v in answer.items() if k not in _PLACES | _TIMES}
    if job.step == "simulate":
        told["prompt"] = job.options["prompt"]
        told["text"] = answer.get("text")  # what the network wrote, and no place
    kept = {"hash": job.hash, "step": job.step, "seconds": round(seconds, 1), "result": told}
    write_json(folder_of(root, job) / _RESULT, kept)
    (folder_of(root, job) / _FAILED).unlink(missing_ok=True)


def keep_failure(root: Path, job: Job, reason: str) -> None:
    """Note that a job has failed."""
    write_json(folder_of(root, job) / _FAILED, {"hash": job.hash, "reason": reason})


def forget(root: Path, job: Job) -> None:
    """From here on the job counts as not done."""
    (folder_of(root, job) / _RESULT).unlink(missing_ok=True)
    (folder_of(root, job) / _FAILED).unlink(missing_ok=True)


# --- tables ---


def row_of(root: Path, entry: Entry) -> dict[str, Any]:
    """One entry: what it stands for, how far it is, what each step answered, and their seconds."""
    results = {step: result_of(root, job) for step, job in entry.jobs.items()}
    failed = {
        step: reason
        for step, job in entry.jobs.items()
        if results[step] is None and (reason := failure_of(root, job))
    }
    done = {step: kept for step, kept in results.items() if kept is not None}
    whole = len(done) == len(results)
    return {
        "id": entry.id,
        "model": entry.model,
        "recipe": entry.recipe,
        "seed": entry.seed,
        "text": entry.text,
        "status": "done" if whole else "failed" if failed else "unfinished",
        "failed": failed,
        **{step: kept["result"] for step, kept in done.items()},
        "seconds": {step: kept["seconds"] for step, kept in done.items()},
    }


def write_tables(root: Path, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Make results.jsonl and results.csv of what is there now; returns their rows.

    Several processes may do so at once: the last to write has read last.
    """
    with locked(root):
        for name in TABLES:
            for leftover in root.glob(f".{name}.*"):
                # a young one may be in the making, where there are no locks
                with contextlib.suppress(OSError):
                    if time.time() - leftover.stat().st_mtime > _OLD:
                        leftover.unlink()
        rows = [row_of(root, entry) for entry in entries]
        lines = (json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_text(root / TABLES[0], "".join(lines))
        write_text(root / TABLES[1], _csv(rows))
        return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Numbers and words as columns `step.key`; lists, which no cell can hold, are left out, and
    seconds are in the other table."""
    flat = [
        {
            **{key: row[key] for key in _KEYS},
            "failed": "; ".join(f"{step}: {why}" for step, why in row["failed"].items()),
            **{k: v for step in STEPS if step in row for k, v in _cells(row[step], step)},
        }
        for row in rows
    ]
    found = dict.fromkeys(key for row in flat for key in row if key not in _KEYS)
    # one step after the other, whichever entry had them first
    columns = [key for step in STEPS for key in found if key.partition(".")[0] == step]
    text = io.StringIO()
    table = csv.DictWriter(text, [*_KEYS, *columns], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return text.getvalue()


def _cells(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            yield from _cells(value, name)
        elif not isinstance(value, list):
            yield name, value
