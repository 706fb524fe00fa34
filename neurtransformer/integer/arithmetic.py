"""What neurons, SSA and LayerNorm do, in integers: the specification that Lava is checked against.

Pure functions on int64 arrays; every state they name fits `STATE_BITS` = 24 bits, sign included.
The functions of the SSA restate those of `spiking/attention/linear.py`, which has the same integers
in floats; `tests/test_integer.py` proves the two equal.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neurtransformer.codes import (
    HEADROOM_BITS,
    MEAN_BITS,
    RECIPROCALS,
    STATE_BITS,
    level_bits,
    witness,
)
from neurtransformer.recipe import Coding, Digits

Integers = NDArray[np.int64]

LIMIT = 2 ** (STATE_BITS - 1) - 1
"""Largest magnitude of a state."""

WEIGHT_BITS = 8
WEIGHT_LIMIT = 254
"""Weights are even, -254..254: 8 bits in steps of two, as netx stores matrices of mixed sign."""

MERGE_SHIFT = 6
"""Bits by which merged neurons shift the mean value counts left, so that thresholds are precise."""

MERGED_CENTER_LIMIT = LIMIT // 3
"""Largest magnitude of a merged neuron's centre; mean and half a threshold fit beside it."""

PRESENT_BITS = 2
"""The weight of the present is a multiple of 2^-PRESENT_BITS."""

GELU_BITS = 14
"""Fraction bits of the membrane of a GELU neuron: 24 bits reach to +-512."""

GELU_INDEX_BITS = 6
"""The GELU table has 2^6 entries per unit, for 0 <= \\|x\\| < 4."""

GELU_ENTRIES = 4 << GELU_INDEX_BITS

SILU_ENTRIES = 8 << GELU_INDEX_BITS
"""The same for a SiLU, which falls to its ReLU more slowly: for 0 <= \\|x\\| < 8."""

LEADING_BITS = 11
"""Leading bits of each factor of a product of two membranes: 22 of the product."""

MOST_CARRIED = 6
"""Most that a neuron's spikes carry is 2^MOST_CARRIED."""

MOST_DROPPED = 40
"""Most bits of such a product that a neuron drops."""

MANTISSAS = (4, 5, 6, 7)
"""Multipliers, before a shift, that take a membrane from the unit of its row to another."""

NORM_BITS = 14
"""Fraction bits of a normalised channel, a share of the length of the whole stream. Where squares
just missed a finer shift, up to four of them say nothing."""

NORM_SHIFTS = (0, 4, 8, 12, 16, 20)
"""Shifts to the right before channels are squared: the first whose sum of squares fits is taken."""

LOGIT_BITS = 10
"""Fraction bits of a logit."""

ROOTS = tuple(round(2**11 / (index + 0.5) ** 0.5) for index in range(64, 256))
"""2^11 / sqrt(x) at the middle of [index, index + 1): 192 entries of 8 bits."""


def saturate(x: Integers) -> Integers:
    """Clip to 24 bits."""
    return np.clip(x, -LIMIT, LIMIT)


def shift_round(x: Integers, bits: ArrayLike) -> Integers:
    """``floor(x / 2^bits + 1/2)``: an arithmetic right shift that rounds. bits: 0 or more."""
    bits = np.asarray(bits)
    half = np.left_shift(1, bits) >> 1
    return (x + half) >> bits


# --- coding neurons ---


def fire_start(u: Integers, theta: Integers, signed: ArrayLike) -> tuple[Integers, Integers]:
    """A membrane after integrating -> what the firing phase starts from: (v, sign).

    u, theta: (..., n). signed: (n,) bool, or one for all; a signed population holds the sign and
    fires on the magnitude. The half threshold on top makes counts round.
    """
    negative = np.asarray(signed) & (u < 0)
    v = np.minimum(np.where(negative, -u, u) + (theta >> 1), LIMIT)
    return v, np.where(negative, -1, 1)


def fire(v: Integers, theta: Integers, most: int) -> tuple[Integers, Integers]:
    """One step of the firing phase, with soft reset: (spikes 0..most, v after it).

    most = 1 is one binary spike per step; the largest count is one graded spike for the phase.
    """
    spikes = np.clip(v // theta, 0, most)
    return spikes, v - spikes * theta


def leading_digits(counts: Integers, limit: int) -> Integers:
    """Counts, 0 or more, without all but their `limit` leading binary digits that are 1."""
    kept = np.zeros_like(counts)
    for _ in range(limit):
        left = counts - kept
        bits = np.frexp(left.astype(np.float64))[1].astype(np.int64)
        kept = kept + (np.left_shift(1, bits) >> 1)
    return kept


def fire_counts(
    u: Integers, theta: Integers, most: int, signed: ArrayLike, limit: int | None = None
) -> Integers:
    """Spike counts of a whole firing phase: ``coding.counts_from_total`` of u / theta, or those of
    phase-coding neurons that stop after `limit` spikes."""
    v, sign = fire_start(u, theta, signed)
    counts = fire(v, theta, most)[0]
    return sign * (counts if limit is None else leading_digits(counts, limit))


def fire_signed(v: Integers, theta: Integers, weight: int) -> tuple[Integers, Integers]:
    """One step of signed digits: (spikes -1, 0 or 1, v after it).

    What is left of a count is ``r = floor(v / theta)``. A spike that weighs `weight` brings it
    nearer to 0 by more than a third of that where ``3 |r| > 2 weight``: such neurons fire. For r,
    a whole number, this is v at ``(m + 1) theta`` or above, or below ``-m theta``, with m the
    whole part of 2/3 weight. `coding.signed_digit` says why nothing is left in the end.
    """
    whole = 2 * weight // 3
    spikes = (v >= (whole + 1) * theta).astype(np.int64) - (v < -whole * theta)
    return spikes, v - spikes * weight * theta


def fire_step(
    v: Integers,
    theta: Integers,
    most: int,
    step: int,
    phase: int,
    coding: Coding,
    digits: Digits = "binary",
) -> tuple[Integers, Integers]:
    """Step 0..phase - 1 of the firing phase of neurons whose largest count is `most`.

    phase: T steps of spikes, or one step of a graded spike that carries the count. Rate-coding
    neurons send at most `most` / T in a step; the threshold of phase-coding ones is theta times
    what the spike of this step weighs, 2^(phase - 1 - step), but with signed digits
    (`fire_signed`). Those whose counts have fewer digits than there are steps are silent at first.
    """
    if coding == "rate":
        return fire(v, theta, most // phase)
    weight = 1 << (phase - 1 - step)
    if weight > most:
        return np.zeros_like(v), v
    if digits == "signed" and phase > 1:
        return fire_signed(v, theta, weight)
    return fire(v, theta * weight, most if phase == 1 else 1)


def fire_steps(
    u: Integers,
    theta: Integers,
    most: int,
    signed: ArrayLike,
    phase: int,
    slots: int,
    coding: Coding,
    limit: int | None = None,
    digits: Digits = "binary",
) -> tuple[Integers, Integers]:
    """The firing phase step by step: spikes and v, each (phase, ..., n). See `fire_step`; in the
    steps behind the first `slots` nothing fires, nor does who has fired `limit` times."""
    v, sign = fire_start(u, theta, signed)
    if digits == "signed" and slots > 1:
        v = np.maximum(v, 0)  # below 0 there is no count, and so nothing to send
    spikes, potentials = [], []
    sent = np.zeros_like(v)
    for step in range(phase):
        spike = np.zeros_like(v)
        if step < slots:
            fired, after = fire_step(v, theta, most, step, slots, coding, digits)
            goes_on = sent < (slots if limit is None else limit)
            spike, v = np.where(goes_on, fired, 0), np.where(goes_on, after, v)
            sent += spike > 0
        spikes.append(sign * spike)
        potentials.append(v)
    return np.stack(spikes), np.stack(potentials)


def integrate(arriving: Integers, bias: Integers, coding: Coding, slots: int) -> Integers:
    """Membranes (phase, ..., n) after each step of integrating what arrives, the same shape.

    What phase-coded spikes drive doubles before each of the `slots` in which they come, and
    saturates in every step and with the bias, which joins in the last step of the phase. What
    rate-coded ones drive never leaves 24 bits.
    """
    u = np.zeros_like(arriving)
    last = np.zeros_like(arriving[0])
    for step, current in enumerate(arriving):
        doubles = coding == "phase" and step < slots
        last = (last << doubles) + current
        u[step] = last = saturate(last) if coding == "phase" else last
    u[-1] += bias
    return saturate(u) if coding == "phase" else u


def saturated(total: Integers, bias: Integers) -> Integers:
    """The membranes that `integrate` ends with where phase-coded spikes arrive, from the weighted
    sum of their counts.

    One clip in the end does what a clip in every step does, if no step can drive a membrane by more
    than LIMIT. Let m be the sum without clips so far, and x what comes next. Once m is beyond 24
    bits, at LIMIT + 1 or farther, 2 m + x is at 2 (LIMIT + 1) - LIMIT or farther, on the same side;
    and a clipped membrane is at 2 LIMIT - LIMIT or farther, and is clipped again. Until then
    nothing was.
    """
    return saturate(saturate(total) + bias)


# --- from one unit to another ---


def rescale(u: Integers, mantissa: Integers, shift: Integers) -> Integers:
    """``u * mantissa / 2^shift``, rounded and saturated: a membrane in another unit.

    mantissa: (n,), one of MANTISSAS. shift: (n,), to the right if positive. States of 24 bits are
    enough: with u = 8 h + l the product is 8 m h + m l, and m h and m l each fit
    (`tests/test_integer.py` does it that way).
    """
    product = u * mantissa
    right = shift_round(product, np.maximum(shift, 0))
    return saturate(np.left_shift(right, np.maximum(-shift, 0)))


# --- LayerNorm ---


def sum_of_squares(x: Integers) -> tuple[Integers, Integers]:
    """Squares of the channels of x (..., n) added up in 24 bits: (q, e), each (..., 1).

    q is the sum of ``round(x / 2^e)^2`` for the first e of NORM_SHIFTS with which it fits. On the
    chip one neuron for each shift adds up the squares that it is sent and saturates.
    """
    q = exponent = np.zeros((*x.shape[:-1], 1), dtype=np.int64)
    open_ = np.ones_like(q, dtype=bool)
    for shift in NORM_SHIFTS:
        squares = (shift_round(x, shift) ** 2).sum(-1, keepdims=True)
        taken = open_ & (squares <= LIMIT)
        q, exponent = np.where(taken, squares, q), np.where(taken, shift, exponent)
        open_ = open_ & ~taken
    return q, exponent


def normed(x: Integers, epsilon: int) -> Integers:
    """A residual stream (..., n) over its length: ``x 2^NORM_BITS / sqrt(sum x^2 + epsilon)``.

    That is LayerNorm but for the mean, which is folded into what writes the stream (quantise.py),
    and for sqrt(n), gain and bias, which are folded into thresholds. epsilon: n times LayerNorm's,
    in squared units of the stream. No result is beyond +-1.01 2^NORM_BITS. The inverse root is
    ROOTS at the leading 7 or 8 bits of the sum, right to 1/128.
    """
    q, exponent = sum_of_squares(x)
    q = np.clip(q + (epsilon >> (2 * exponent)), 1, LIMIT)
    bits = np.frexp(q.astype(np.float64))[1].astype(np.int64)
    half = (bits + 1) >> 1
    index = ((q << 8) >> (2 * half)) - 64
    # abs(x) <= 2^(e + 11.5), so three more bits than e leaves leave 24 for the product
    scaled = shift_round(x << np.maximum(3 - exponent, 0), np.maximum(exponent - 3, 0))
    product = scaled * np.asarray(ROOTS)[index]
    right = half + 10 - NORM_BITS
    return shift_round(product << np.maximum(-right, 0), np.maximum(right, 0))


# --- GELU neurons ---


def gelu(x: Integers, table: Integers) -> Integers:
    """``max(x, 0) - d(\\|x\\|)``, d read from a table and 0 beyond it.

    That a GELU minus its ReLU is even in x, and a SiLU too, makes one table enough. x: GELU_BITS
    fraction bits.
    """
    index = np.abs(x) >> (GELU_BITS - GELU_INDEX_BITS)
    dip = np.where(index < len(table), table[np.minimum(index, len(table) - 1)], 0)
    return np.maximum(x, 0) - dip


# --- SwiGLU neurons ---


def leading(x: Integers) -> tuple[Integers, Integers]:
    """(m, e) with ``x = m 2^e`` but for rounding: the LEADING_BITS of x, as they stand where x has
    no more."""
    bits = np.frexp(np.abs(x).astype(np.float64))[1].astype(np.int64)
    exponent = np.maximum(bits - LEADING_BITS, 0)
    return shift_round(x, exponent), exponent


def product(x: Integers, y: Integers, drop: Integers) -> Integers:
    """``x y / 2^drop`` to LEADING_BITS of each, rounded and saturated."""
    (m, e), (n, f) = leading(x), leading(y)
    right = drop - e - f
    return saturate(shift_round((m * n) << np.maximum(-right, 0), np.maximum(right, 0)))


# --- spiking self-attention ---


def facilitated(spikes: Integers) -> Integers:
    """Payloads (phase, ...) of the spikes of unsigned neurons, see `coding.facilitated`."""
    return spikes * (2 * spikes.cumsum(0) - spikes)


def write_shift(timesteps: int, shift: Integers) -> Integers:
    """Bits by which a product of full scale T^3 enters the state shifted left: (heads,)."""
    headroom = np.clip(shift + 1, 2, HEADROOM_BITS)
    return np.maximum(STATE_BITS - 1 - headroom - 3 * level_bits(timesteps), 0)


def ssa_written(key: Integers, value: Integers, shift: Integers, timesteps: int) -> Integers:
    """The Hebbian product of one token: (..., heads, value, key) from counts (..., heads, key) and
    (..., heads, value). shift: (heads,)."""
    product = value[..., :, None] * key[..., None, :] ** 2
    return product << write_shift(timesteps, shift)[:, None, None]


def read_shift(query: Integers) -> Integers:
    """The bits that a read by payloads (..., key) drops: the least r with ``sum <= 2^r``, (...)."""
    return np.frexp(np.maximum(query.sum(-1) - 1, 0).astype(np.float64))[1].astype(np.int64)


def ssa_visible(state: Integers, written: Integers, present: Integers, query: Integers) -> Integers:
    """What a query reads: the past, and the present with a weight of `present` / 2^PRESENT_BITS.

    state, written: (..., heads, value, key). present: (heads,) integers. query: all payloads of the
    token added up, (..., heads, key).
    """
    share = (written * present[:, None, None]) >> PRESENT_BITS
    bits = read_shift(query)[..., None, None]
    most = (1 << (STATE_BITS - 1 - bits)) - 1
    return np.clip(shift_round(saturate(state + share), bits), -most, most)


def ssa_next(state: Integers, written: Integers, shift: Integers) -> Integers:
    """The state after the token: ``W - round(W / 2^s) + written``, saturating. shift: (heads,)."""
    return saturate(state - shift_round(state, shift[:, None, None]) + written)


def with_witness(value: Integers, timesteps: int) -> Integers:
    """Value counts (..., n) with the value neuron that always fires at full scale: (..., n + 1)."""
    return np.concatenate([value, np.full_like(value[..., :1], witness(timesteps))], axis=-1)


def ssa_recurrent(
    query: Integers,
    key: Integers,
    value: Integers,
    forgetting: tuple[Integers, Integers],
    timesteps: int,
    state: Integers,
) -> tuple[Integers, Integers]:
    """Token after token. query, key, value: counts (batch, heads, length, key or value).

    forgetting: shift and present, (heads,). state: (batch, heads, value + 1, key).
    Returns reads (batch, heads, length, value + 1) and the state after the last token.
    """
    shift, present = forgetting
    value = with_witness(value, timesteps)
    squares = query**2
    reads = np.empty_like(value)
    for i in range(key.shape[-2]):
        written = ssa_written(key[..., i, :], value[..., i, :], shift, timesteps)
        visible = ssa_visible(state, written, present, squares[..., i, :])
        reads[..., i, :] = (visible * squares[..., i, None, :]).sum(-1)
        state = ssa_next(state, written, shift)
    return reads, state


def normalise(read: Integers, bits: int) -> Integers:
    """Divide the values of a read by its last entry plus one: shifts and one table look-up.

    read: (..., value + 1), the last the sum of the weights times 2^bits. Returns mean value counts
    (..., value) with MEAN_BITS fraction bits.
    """
    divisor = read[..., -1:] + 1
    length = np.frexp(divisor.astype(np.float64))[1].astype(np.int64)
    reciprocal = np.asarray(RECIPROCALS)[((divisor << 8) >> length) - 128]
    right = length - 15
    scaled = shift_round(read[..., :-1] << np.maximum(-right, 0), np.maximum(right, 0))
    scaled = np.clip(scaled, -(2**15 - 1), 2**15 - 1)
    return shift_round(scaled * reciprocal, 22 - MEAN_BITS - bits)
