"""`neurtx icl regression`: attention as gradient descent, from floats to the learning engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .output import answer, readable, rows_table


def regression(picture: Path | None, as_json: bool) -> None:
    """The three errors, the sweeps of the engine's error, and what trained models predict with."""
    from neurtransformer import runs
    from neurtransformer.icl import regression as exact
    from neurtransformer.icl import regression_engine as engine
    from neurtransformer.icl import regression_learned as learned
    from neurtransformer.measure.figures import regression_errors

    from .progress import status

    with status("measuring") as note:
        note("floats and integers")
        integers = [exact.integer_errors(bits) for bits in exact.INTEGER_WIDTHS]
        values: dict[str, Any] = {
            "task": "regression",
            "float_max_error": exact.float_max_error(),
            "integer_max_error": exact.integer_errors(exact.INTEGER_BITS)["max_error"],
            "dimension": exact.DIMENSION,
            "examples": exact.EXAMPLES,
            "integers": integers,
        }
        note("the learning engine in Lava")
        values |= _lava(engine.lava_error)
        note("the learning engine in NumPy")
        values["engine"] = engine.engine_errors()
        values["sweeps"] = engine.sweeps()
        values["trained"] = [learned.compare(noise, note) for noise in learned.NOISES]
    if picture is not None:
        svg = regression_errors(values["sweeps"], values["trained"][-1])
        runs.write_text(picture, svg.decode())
    answer(values, as_json=as_json, table=lambda: _tables(values))


def _lava(measure: Callable[[], tuple[float, int]]) -> dict[str, Any]:
    """The error in Lava, or why there is none."""
    from neurtransformer.errors import UserError

    try:
        error, mismatches = measure()
    except UserError as missing:
        return {"lava_relative_error": None, "lava_mismatches": None, "lava_missing": str(missing)}
    return {"lava_relative_error": error, "lava_mismatches": mismatches}


def _tables(values: dict[str, Any]) -> Any:
    from rich.console import Group

    names = ("float_max_error", "integer_max_error", "lava_relative_error", "lava_missing")
    lines = [f"{name}: {readable(values[name])}" for name in names if name in values]
    rows = [row.values() for sweep in values["sweeps"].values() for row in sweep]
    columns = list(values["engine"])
    parts = [
        rows_table(columns, [list(row) for row in rows], title="errors in the learning engine")
    ]
    for found in values["trained"]:
        algorithms = list(next(iter(found["difference"].values())))
        shown = [
            (name, mse, *found["difference"].get(name, dict.fromkeys(algorithms)).values())
            for name, mse in found["mse"].items()
        ]
        columns = ["", "squared error", *(f"to {name}" for name in algorithms)]
        parts.append(
            rows_table(
                columns, shown, title=f"what trained layers do, with noise {found['noise']:g}"
            )
        )
    return Group(*lines, *parts)
