"""One step of gradient descent as a plastic synapse of Loihi 2's learning engine.

Each component of x is a pair of presynaptic neurons, for either sign; y comes in the traces y1 and
y2. An example is one epoch of the rule ``dw = 2^e x0 x1 y1 - 2^e x0 x1 y2``, and a query is read
with payloads q and -q. loihi/learning.py says which limits the engine has, and lifts them one by
one (`FORMS`); with the form "lava" it equals Lava integer for integer.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from neurtransformer.icl.regression import (
    DIMENSION,
    EXAMPLES,
    QUERIES,
    TASKS,
    Seen,
    draw_tasks,
    fixed_point,
    full_scales,
    hebbian_read,
    relative_error,
)
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.loihi.learning import (
    EXPONENTS,
    FORMS,
    FRACTION_BITS,
    PRODUCT_SHIFT,
    WEIGHT_LIMITS,
    Floats,
    Form,
    outer_products,
    pairs,
)

TRACE_BITS = 7
CALIBRATION_TASKS, LAVA_TASKS = 256, 16
DIMENSIONS, CONTEXTS, WIDTHS = (2, 4, 8, 16, 32, 64), (8, 16, 32, 64, 128, 256, 512), range(2, 8)
"""Of the sweeps: d, N, and bits of the traces."""


@dataclass(frozen=True)
class Engine:
    """How numbers become traces. full: what the largest trace or payload of x, y and query is
    worth. exponent: of the learning rule. bits: of the 7 of a trace, the upper ones, in use."""

    full: tuple[float, ...]
    exponent: int
    bits: int = TRACE_BITS

    @classmethod
    def fitted(cls, calibration: Seen, bits: int = TRACE_BITS) -> Self:
        """With the largest exponent that keeps all weights of some tasks in range, after each
        example."""
        engine = cls(full_scales(calibration), 0, bits)
        x, y, _ = (a / f * engine.most for a, f in zip(calibration, engine.full, strict=True))
        weights = (y[..., None] * pairs(x)[..., None, :]).cumsum(1) / 2**PRODUCT_SHIFT
        fits = math.floor(math.log2(WEIGHT_LIMITS[1] / np.abs(weights).max()))
        return replace(engine, exponent=min(max(fits, EXPONENTS[0]), EXPONENTS[-1]))

    @property
    def most(self) -> int:
        """The largest trace."""
        return (2**self.bits - 1) << (TRACE_BITS - self.bits)

    @property
    def rule_exponent(self) -> int:
        """What the learning rule has of the exponent; the rest makes the traces of y smaller."""
        return max(self.exponent, -FRACTION_BITS)

    @property
    def unit(self) -> float:
        """What 1 of a read is worth, in units of `hebbian_read`."""
        return float(np.prod(self.full)) / self.most**3 * 2.0 ** (PRODUCT_SHIFT - self.exponent)

    def inputs(self, seen: Seen) -> tuple[Integers, ...]:
        """Signed traces of x and y and payloads of queries, shapes as they are."""
        unused = TRACE_BITS - self.bits
        x, y, query = (
            fixed_point(a, f, self.most >> unused) << unused
            for a, f in zip(seen, self.full, strict=True)
        )
        return x, arithmetic.shift_round(y, self.rule_exponent - self.exponent), query

    def predict(self, seen: Seen, form: Form) -> Floats:
        """`hebbian_read` of a plastic synapse within the limits of a form, (tasks, Q, m)."""
        if form.traces:
            x, y, query = self.inputs(seen)
            read = pairs_read(outer_products(x, y, self.rule_exponent, form), query)
        else:
            exact = [a / f * self.most for a, f in zip(seen, self.full, strict=True)]
            weights = outer_products(exact[0], exact[1], self.exponent, form)
            read = pairs_read(weights, exact[2])
        return read * self.unit


def pairs_read(weights: NDArray, query: NDArray) -> NDArray:
    """What queries (..., Q, n), sent as payloads q and -q, read from weights (..., m, 2 n)."""
    return np.concatenate([query, -query], axis=-1) @ weights.swapaxes(-1, -2)


def _engine_and_tasks(dimension: int, examples: int, bits: int) -> tuple[Engine, Seen]:
    rng = np.random.default_rng(0)
    calibration, drawn = (
        draw_tasks(rng, tasks, dimension, examples).seen() for tasks in (CALIBRATION_TASKS, TASKS)
    )
    return Engine.fitted(calibration, bits), drawn


def engine_errors(
    dimension: int = DIMENSION, examples: int = EXAMPLES, bits: int = TRACE_BITS
) -> dict[str, float | int]:
    """Relative error of the prediction against the exact gradient step, for each of `FORMS`."""
    engine, drawn = _engine_and_tasks(dimension, examples, bits)
    exact = hebbian_read(*drawn)
    setting = {"dimension": dimension, "examples": examples, "bits": bits}
    errors = {
        name: relative_error(engine.predict(drawn, form), exact) for name, form in FORMS.items()
    }
    return {**setting, "exponent": engine.exponent, **errors}


def sweeps() -> dict[str, list[dict[str, float | int]]]:
    """`engine_errors` as each of precision, d and N grows, the others at their default."""
    return {
        "bits": [engine_errors(bits=bits) for bits in WIDTHS],
        "dimension": [engine_errors(dimension=dimension) for dimension in DIMENSIONS],
        "examples": [engine_errors(examples=examples) for examples in CONTEXTS],
    }


def lava_error() -> tuple[float, int]:
    """The first `LAVA_TASKS` tasks of the default setting in Lava, in one matrix of weights, of
    which each task reads a block of its own.

    Returns the relative error, and how many reads and weights differ from those in NumPy. Raises
    UserError without Lava, LavaFailed.
    """
    from neurtransformer.loihi.plasticity import run_outer_products

    engine, drawn = _engine_and_tasks(DIMENSION, EXAMPLES, TRACE_BITS)
    drawn = tuple(a[:LAVA_TASKS] for a in drawn)
    x, y, query = engine.inputs(drawn)
    pre, post = (np.concatenate(list(a), axis=-1) for a in (x, y))
    blocks = np.zeros((LAVA_TASKS, QUERIES, LAVA_TASKS, DIMENSION), dtype=np.int64)
    own = np.arange(LAVA_TASKS)
    blocks[own, :, own] = query
    payloads = blocks.reshape(-1, LAVA_TASKS * DIMENSION)
    reads, weights = run_outer_products(pre, post, payloads, engine.rule_exponent)
    ours = outer_products(pre, post, engine.rule_exponent, FORMS["lava"])
    mismatches = int((weights != ours).sum() + (reads != pairs_read(ours, payloads)).sum())
    read = reads.reshape(LAVA_TASKS, QUERIES, LAVA_TASKS)[own, :, own, None]
    return relative_error(read * engine.unit, hebbian_read(*drawn)), mismatches
