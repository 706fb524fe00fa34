"""`neurtx run`: many models, recipes, seeds and texts, through all the steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import reporting
from .output import answer, rows_table

if TYPE_CHECKING:
    from neurtransformer.batch.plan import Entry


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--only",
    multiple=True,
    metavar="ENTRY",
    help="Do only these entries: an id from --dry-run, a pattern ('gpt2-nano.*'), or part 3 of 10 "
    "(3/10). May be repeated.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many steps run at the same time.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of the batch.  [default: batches/CONFIG in NEURTX_HOME, else here]",
)
@click.option("--dry-run", is_flag=True, help="Print the plan, with estimates, and do nothing.")
@reporting
@click.pass_context
def command(
    ctx: click.Context,
    config: Path,
    only: tuple[str, ...],
    jobs: int,
    root: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert, train, measure and export every model of the file CONFIG.

    Every model is combined with every recipe, seed and text of the file; one such combination is an
    entry, and has one line in the results.

    Each step is a `neurtx` process of its own. What is done is not done again: start the same
    command again after a stop or a failure, and it goes on. If an entry fails, the others go on,
    and the exit code is 1. The results are in results.jsonl and results.csv of the batch's folder.
    docs/batch.md has an example of CONFIG, and of clusters.
    """
    from neurtransformer import runs
    from neurtransformer.batch.config import read_config
    from neurtransformer.batch.plan import planned
    from neurtransformer.batch.work import Batch, check_root

    from .progress import remark

    described = read_config(config)
    entries = planned(described, config)
    selected = planned(described, config, only)
    folder = (root or runs.home() / "batches" / config.stem).expanduser().absolute()
    check_root(folder)
    if dry_run:
        _show_plan(folder, selected, jobs, as_json)
        return
    batch = Batch(folder, selected, entries, jobs, say=remark)
    rows = batch.work()
    counts = {state: sum(row["status"] == state for row in rows) for state in ("done", "failed")}
    values = {"root": folder, "entries": rows, **counts}
    columns = ("entry", "status", "what failed")
    table = [(row["id"], row["status"], _why(row)) for row in rows]
    title = f"{counts['done']} of {len(rows)} entries done"
    answer(values, as_json=as_json, table=lambda: rows_table(columns, table, title=title))
    remark(f"the results are in {folder}/results.csv and results.jsonl")
    if counts["done"] < len(rows):
        ctx.exit(1)


def _why(row: dict[str, Any]) -> str:
    return "; ".join(f"{step}: {reason}" for step, reason in row["failed"].items())


def _show_plan(folder: Path, entries: "list[Entry]", jobs: int, as_json: bool) -> None:
    """The entries, what each has left to do, and what that may cost. A job that entries share
    stands, and is counted, at the first of them."""
    import os

    from neurtransformer.batch.estimate import estimate
    from neurtransformer.batch.plan import Job
    from neurtransformer.batch.work import left_to_do

    cores = max(1, (os.cpu_count() or 1) // jobs)
    left, seen = set(left_to_do(folder, entries)), set[Job]()
    rows: list[dict[str, Any]] = []
    for entry in entries:
        own = [job for job in entry.jobs.values() if job in left and job not in seen]
        seen.update(own)
        found = [estimate(job, cores) for job in own]
        seconds = [each.seconds for each in found if each.seconds is not None]
        memory = [each.bytes for each in found if each.bytes is not None]
        known = len(seconds) == len(found)
        rows.append(
            {
                "id": entry.id,
                "steps": [job.step for job in own],
                "estimated_seconds": sum(seconds) if known else None,
                "estimated_memory_gb": round(max(memory, default=0.0) / 1e9, 1) if known else None,
            }
        )
    times = [row["estimated_seconds"] for row in rows]
    total = sum(times) / jobs if None not in times else None
    values = {"root": folder, "jobs": jobs, "entries": rows, "estimated_seconds": total}
    table = [
        (row["id"], ", ".join(row["steps"]) or "-", _span(seconds), row["estimated_memory_gb"])
        for row, seconds in zip(rows, times, strict=True)
    ]
    columns = (
        "entry",
        "steps left (shared steps are listed once)",
        "ESTIMATED time",
        "ESTIMATED GB",
    )
    title = f"{len(rows)} entries in {folder}, about {_span(total)} in all with --jobs {jobs}"
    answer(values, as_json=as_json, table=lambda: rows_table(columns, table, title=title))


def _span(seconds: float | None) -> str:
    from datetime import timedelta

    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
