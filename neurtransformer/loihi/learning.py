"""Loihi 2's learning engine on a fast-weight matrix, in NumPy: what it can hold, and what it costs.

The SSA (spiking/attention/linear.py) writes ``W <- W - W >> s + [v, 1] (k^2)^T`` into 24 bits. A
plastic synapse has fewer: weights of -256..255, traces of 0..127, and an accumulator with 7
fraction bits that is rounded at random to a weight. `plastic_ssa` does what the engine does, and
also with each of these limits lifted (`FORMS`), so that a difference can be split into its causes.
With the form "lava" it equals Lava's engine (plasticity.py) integer for integer. Nothing here needs
Lava.

A head's weights are its state times 2^exponent (for T = 8; other T are scaled to the same full
scale). The read by a query comes twice, before and after the write, because the present has a
weight of its own: what the write added is the second read less what is left of the first.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurtransformer.codes import NO_FORGETTING, level_bits, witness
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import PRESENT_BITS, Integers

Floats = NDArray[np.float64]

WEIGHT_LIMITS = -256, 255
"""Weights of mixed sign in Lava's fixed point: 8 bits of magnitude and a sign."""

FIT = 0.995
"""The share of a head's weights that its exponent must leave room for, at every token."""

FRACTION_BITS = 7
"""Bits of a weight below its unit, in the accumulator of one epoch."""

ACCUMULATOR_LIMITS = -(2**15) - 1, 2**15 - 1

TRACE_FULL_BITS = 6
"""A trace of 2^6 is a count, or a squared count, of full scale; 127 would be no power of two."""

PRODUCT_SHIFT = 3
"""Bits that the engine drops from a product of two traces and a mantissa of 4 bits, of 18."""

SHIFTS = range(FRACTION_BITS + 1)
"""Forgetting is a term 2^-s w of the rule, and the least constant of a rule is 2^-7."""

EXPONENTS = range(-10, 9)
"""Of the constant of a rule down to -7; below, value traces are smaller instead."""

STEPS = 3
"""Time steps per token, an epoch each: read, write, read."""

WRITE = 1
"""The step of a token in which it is written."""


@dataclass(frozen=True)
class Form:
    """Which limits of the engine hold.

    traces: of 7 bits, their products cut. saturates: weights stay in `WEIGHT_LIMITS`. rounding:
    none; "nearest"; "stochastic", a random number per synapse; "shared", one for all synapses of a
    connection, as Lava draws it. unit: of a weight.
    """

    traces: bool
    saturates: bool
    rounding: Literal["none", "nearest", "stochastic", "shared"]
    unit: int = 1


FORMS = {
    "float": Form(False, False, "none"),
    "traces": Form(True, False, "none"),
    "range": Form(True, True, "none"),
    "nearest": Form(True, True, "nearest"),
    "stochastic": Form(True, True, "stochastic"),
    "lava": Form(True, True, "shared"),
    "even": Form(True, True, "stochastic", unit=2),
}
"""Each limit on top of those before it; four ways of rounding. "even" are weights in steps of two,
as Loihi stores those of mixed sign."""


def key_payload(count: Integers, timesteps: int) -> Integers:
    """The squares of key or query counts, as traces and payloads: T^2 becomes 2^TRACE_FULL_BITS."""
    return _shifted(count**2, TRACE_FULL_BITS - 2 * level_bits(timesteps))


def value_trace(value: Integers, exponent: Integers, timesteps: int) -> Integers:
    """Value counts (..., heads, n) and the witness as signed traces. exponent: (heads,)."""
    small = np.minimum(exponent + FRACTION_BITS, 0)[:, None]
    return _shifted(value, TRACE_FULL_BITS - level_bits(timesteps) + small)


def _shifted(x: Integers, left: Integers | int) -> Integers:
    return arithmetic.shift_round(x << np.maximum(left, 0), np.maximum(-np.asarray(left), 0))


def forgetting_shift(shift: Integers) -> Integers:
    """The shift that the engine can do: beyond `SHIFTS` it does not forget."""
    return np.where(shift > SHIFTS[-1], NO_FORGETTING, shift)


def assemble(past: Integers, after: Integers, shift: Integers, present: Integers) -> Integers:
    """One read of 24 bits from those before and after the write, (..., heads, rows).

    shift, present: (heads, 1), as in `arithmetic.ssa_visible`; what the write added is weighed.
    """
    own = after - past + arithmetic.shift_round(past, shift)
    return arithmetic.saturate(past + (own * present >> PRESENT_BITS))


def epoch_draws(epochs: int) -> Floats:
    """The random numbers that round the weights in Lava at each epoch, (epochs,).

    `ConnVarRandom` of lava-nc 0.10.0 always has seed 2, whatever the `rng_seed` of a rule, and
    draws one number when it is made and one at each epoch.
    """
    return np.random.default_rng(2).random(epochs + 1)[1:]


def lava_draws(tokens: int) -> Floats:
    """Those of the epochs that write a token, (tokens,)."""
    return epoch_draws(STEPS * tokens)[WRITE::STEPS]


class PlasticHeads:
    """The plastic synapses of all heads of one block, from empty weights.

    shift, present, exponent: (heads,); exponent is one of `EXPONENTS`.
    """

    def __init__(
        self,
        forgetting: tuple[Integers, Integers],
        exponent: Integers,
        timesteps: int,
        form: Form,
    ) -> None:
        self.shift, self.present = forgetting_shift(forgetting[0])[:, None], forgetting[1][:, None]
        self.keep = 1 - np.exp2(-self.shift) * (self.shift != NO_FORGETTING)
        self.exponent, self.timesteps, self.form = exponent, timesteps, form
        # of the rule; what is missing to the exponent is in the value traces
        self.unit = np.exp2(np.maximum(exponent, -FRACTION_BITS))[:, None, None]
        self.weight: Floats = np.zeros(1)
        self.rng = np.random.default_rng(0)

    def token(
        self, query: Integers, key: Integers, value: Integers, draw: float
    ) -> tuple[Floats, Floats]:
        """Read, write and read one token.

        query, key: (..., heads, key). value: (..., heads, dim). draw: of the rounding "shared".
        Returns the read (..., heads, dim + 1) and the weights (..., heads, dim + 1, key), whole
        numbers where they are rounded.
        """
        read, written = self._traces(query, key, value)
        past = (self.weight * read).sum(-1)
        weight = self.weight * self.keep[..., None]
        weight = learned(weight, written, self.form, draw, self.rng)
        after = (weight * read).sum(-1)
        self.weight = weight
        if self.form.rounding == "none":
            own = after - self.keep * past
            return past + own * self.present / 2**PRESENT_BITS, weight
        whole = past.astype(np.int64), after.astype(np.int64)
        return assemble(*whole, self.shift, self.present).astype(np.float64), weight

    def _traces(self, query: Integers, key: Integers, value: Integers) -> tuple[Floats, Floats]:
        """What a query reads with, (..., heads, 1, key), and what a token writes, like weights."""
        value = arithmetic.with_witness(value, self.timesteps)
        if self.form.traces:
            read, pre = (key_payload(x, self.timesteps) for x in (query, key))
            post = value_trace(value, self.exponent, self.timesteps)
            written = post[..., None] * pre[..., None, :] >> PRODUCT_SHIFT
            return read[..., None, :].astype(np.float64), written * self.unit
        full = 2.0 ** (2 * TRACE_FULL_BITS - 3 * level_bits(self.timesteps) - PRODUCT_SHIFT)
        unit = full * np.exp2(self.exponent)[:, None, None]
        return query[..., None, :] ** 2.0, value[..., None] * key[..., None, :] ** 2 * unit


def learned(
    weight: Floats, written: Floats, form: Form, draw: float, rng: np.random.Generator
) -> Floats:
    """Weights after one epoch: what is left of them plus what is written, within a form's limits.

    weight, written: the same shape. draw: of the rounding "shared". rng: of "stochastic".
    """
    if form.saturates:
        weight = _accumulator(_accumulator(weight) + _accumulator(written))
    else:
        weight = weight + written
    if form.rounding != "none":
        weight = _rounded(weight, form, draw, rng)
    if form.saturates:
        low, high = WEIGHT_LIMITS
        weight = np.clip(weight, low, high - high % form.unit)
    return weight


def _rounded(weight: Floats, form: Form, draw: float, rng: np.random.Generator) -> Floats:
    steps = weight / form.unit
    whole = np.floor(steps)
    threshold: Floats | float = 0.5
    if form.rounding == "shared":
        threshold = draw
    elif form.rounding == "stochastic":
        threshold = rng.random(weight.shape)
    return (whole + (threshold < steps - whole)) * form.unit


def _accumulator(x: Floats) -> Floats:
    low, high = ACCUMULATOR_LIMITS
    return np.clip(x, low / 2**FRACTION_BITS, high / 2**FRACTION_BITS)


def plastic_ssa(
    query: Integers,
    key: Integers,
    value: Integers,
    forgetting: tuple[Integers, Integers],
    exponent: Integers,
    timesteps: int,
    form: Form,
) -> tuple[Floats, Floats]:
    """A sequence of counts, (tokens, ..., heads, key or dim), through `PlasticHeads`.

    Returns the reads (tokens, ..., heads, dim + 1) and the weights after each token.
    """
    heads = PlasticHeads(forgetting, exponent, timesteps, form)
    sequence = zip(query, key, value, lava_draws(len(key)), strict=True)
    reads, weights = zip(*(heads.token(*token) for token in sequence), strict=True)
    return np.stack(reads), np.stack(weights)


def pairs(x: NDArray) -> NDArray:
    """Signed traces (..., n) of pairs of neurons, one for either sign: (..., 2 n)."""
    return np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=-1)


def outer_products(pre: NDArray, post: NDArray, exponent: int, form: Form) -> Floats:
    """Weights after a sequence that writes ``2^exponent post pre^T / 2^PRODUCT_SHIFT`` each epoch.

    pre: signed traces (..., tokens, n), of `pairs`. post: signed traces (..., tokens, m), by y1 and
    y2. Integers of 7 bits and a sign where the form has traces, else any numbers. exponent: -7..8.
    Returns (..., m, 2 n), to be read with queries (q, -q).
    """
    weight: Floats = np.zeros((*pre.shape[:-2], post.shape[-1], 2 * pre.shape[-1]))
    rng = np.random.default_rng(0)
    for i, draw in enumerate(epoch_draws(pre.shape[-2])):
        product = post[..., i, :, None] * pairs(pre[..., i, None, :])
        written = product >> PRODUCT_SHIFT if form.traces else product / 2**PRODUCT_SHIFT
        weight = learned(weight, written * 2.0**exponent, form, draw, rng)
    return weight


def fitting_exponent(key: Integers, value: Integers, shift: Integers, timesteps: int) -> Integers:
    """The largest of `EXPONENTS` with which the share `FIT` of a head's weights stays in range.

    key, value: counts of a calibration text, (tokens, heads, key or dim). shift: (heads,).
    """
    heads = PlasticHeads((shift, shift), np.zeros_like(shift), timesteps, FORMS["float"])
    most = np.zeros(len(shift))
    for k, v in zip(key, value, strict=True):
        weights = heads.token(k, k, v, 0.0)[1].reshape(len(shift), -1)
        most = np.maximum(most, np.quantile(np.abs(weights), FIT, axis=-1))
    fits = np.floor(np.log2(WEIGHT_LIMITS[1] / np.maximum(most, 1))).astype(np.int64)
    return np.clip(fits, EXPONENTS[0], EXPONENTS[-1])


def mean_counts(read: NDArray, timesteps: int) -> Floats:
    """The mean value counts o / d of reads (..., dim + 1): (..., dim)."""
    full = witness(timesteps)
    divisor = read[..., -1:]
    mean = full * read[..., :-1] / np.where(divisor > 0, divisor, np.inf)
    return np.clip(mean, -full, full)


def exact_reads(
    query: Integers,
    key: Integers,
    value: Integers,
    forgetting: tuple[Integers, Integers],
    timesteps: int,
) -> Integers:
    """The reads of the integer SSA for the same counts, (tokens, heads, dim + 1)."""
    query, key, value = (x.swapaxes(0, 1)[None] for x in (query, key, value))
    state = np.zeros((1, len(forgetting[0]), value.shape[-1] + 1, key.shape[-1]), dtype=np.int64)
    reads, _ = arithmetic.ssa_recurrent(query, key, value, forgetting, timesteps, state)
    return reads[0].swapaxes(0, 1)


def compare(reads: NDArray, exact: NDArray, timesteps: int) -> tuple[Floats, Floats]:
    """How far the mean value counts of reads (tokens, heads, dim + 1) are from exact ones.

    Returns the relative error (root of the summed squares) and the correlation, (heads,).
    """
    ours, theirs = (
        np.moveaxis(mean_counts(x, timesteps), 1, 0).reshape(x.shape[1], -1) for x in (reads, exact)
    )
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    pairs = zip(ours, theirs, strict=True)
    return error, np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])
