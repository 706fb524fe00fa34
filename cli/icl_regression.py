"""`neurtx icl regression`: attention as gradient descent, from floats to the learning engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .output import answer, readable, rows_table

_ERRORS = {
    "float_max_error": "largest difference between attention and gradient descent in floats",
    "integer_max_error": "the same in integers, in units of the last bit",
    "lava_relative_error": "error of the learning engine in Lava, see below",
    "lava_missing": "why that was not measured",
}
_SETTINGS = {
    "bits": "bits of a trace",
    "dimension": "inputs",
    "examples": "examples in the context",
}
# as loihi.learning.FORMS has them -> the column, and what limits the engine there
_COLUMNS = {
    "float": ("floats", "no limit of the engine"),
    "traces": ("traces", "inputs and targets are rounded to traces"),
    "range": ("+ 8-bit weights", "and weights stay within -256 to 255"),
    "nearest": ("nearest", "and are rounded after each example, to the nearest whole number"),
    "stochastic": ("random", "or up or down at random, each synapse for itself"),
    "lava": ("random, shared", "or with one random number for all synapses, as Lava does"),
    "even": ("steps of two", "or to even numbers, as the chip stores weights of mixed sign"),
}
_ENGINE = (
    " An error is relative to the exact step of gradient descent: 0.05 is 5 %. A trace is a "
    "number that the engine keeps for a neuron; exponent is that of its learning rule.\n"
)
_TRAINED = (
    " squared error: of what an algorithm or a trained attention layer predicts. to ...: squared "
    "difference to what that algorithm predicts; the smallest says which one the layer is closest "
    "to. All are in units of the mean squared target.\n"
)


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

    lines = [
        f"{name}: {readable(values[name])} ({what})"
        for name, what in _ERRORS.items()
        if name in values
    ]
    parts: list[Any] = []
    for changed, sweep in values["sweeps"].items():
        same = [f"{sweep[0][name]} {what}" for name, what in _SETTINGS.items() if name != changed]
        shown = [name for name in sweep[0] if name == changed or name not in _SETTINGS]
        columns = [_SETTINGS.get(name) or _COLUMNS.get(name, (name,))[0] for name in shown]
        title = f"error in the learning engine by {_SETTINGS[changed]} ({', '.join(same)})"
        rows = [[row[name] for name in shown] for row in sweep]
        parts.append(rows_table(columns, rows, title=title))
    parts += [rows_table(("column", "what limits the engine"), _COLUMNS.values()), _ENGINE]
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
    parts.append(_TRAINED)
    return Group(*lines, *parts)
