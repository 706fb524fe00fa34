"""Microcode against the closed forms of the integer model, which it does not call."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurtransformer.codes import largest_count, level_bits
from neurtransformer.integer import arithmetic, rotary
from neurtransformer.integer.arithmetic import LIMIT, Integers
from neurtransformer.integer.parts import GeluNeurons as Gelu
from neurtransformer.integer.parts import SwigluNeurons as Swiglu
from neurtransformer.integer.quantise import SHIFT_RANGE
from neurtransformer.loihi import llama, microcode
from neurtransformer.loihi.attention.base import mean_of
from neurtransformer.loihi.attention.linear import SSACode
from neurtransformer.loihi.microcode import Clock, Microcode, words
from neurtransformer.recipe import Coding, Digits

SEEDS = st.integers(0, 2**32 - 1)
CODINGS: st.SearchStrategy[Coding] = st.sampled_from(["rate", "phase"])
DIGITS: st.SearchStrategy[Digits] = st.sampled_from(["binary", "signed"])


def anywhere(rng: np.random.Generator, n: int, limit: int = LIMIT) -> Integers:
    """Integers of all magnitudes, the largest included."""
    size = 2.0 ** rng.uniform(0, np.log2(limit) + 1, n)
    return np.rint(rng.standard_normal(n) * size).astype(np.int64).clip(-limit, limit)


def run(code: Microcode, arriving: dict[str, Integers], logs: dict[str, int]) -> dict[str, Any]:
    """What arrives in each step (steps, n) to each array named in logs, (steps, ...), and what is
    sent. The first steps of an array, as many as `logs` says, are left out."""
    found: dict[str, list[Any]] = {name: [] for name in (*logs, "sent")}
    for now in range(len(next(iter(arriving.values())))):
        found["sent"].append(code.tick(now, {k: words(x[now]) for k, x in arriving.items()}).copy())
        for name in logs:
            found[name].append(getattr(code, name).copy())
    return {name: np.stack(x)[logs.get(name, 0) :] for name, x in found.items()}


# --- parts ---


@given(SEEDS, st.integers(1, 300))
def test_counted_is_fire(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    theta = np.abs(anywhere(rng, 40, LIMIT // most)) + 1
    theta = np.minimum(theta, LIMIT // most)
    v = anywhere(rng, 40)
    left = words(v)
    count = microcode.counted(left, words(theta), most)
    wanted, after = arithmetic.fire(v, theta, most)
    assert (count == wanted).all() and (left == after).all()


@given(SEEDS)
def test_rescaling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, mantissa = anywhere(rng, 60), rng.choice(arithmetic.MANTISSAS, 60)
    shift = rng.integers(SHIFT_RANGE[0], SHIFT_RANGE[1] + 1, 60)
    ours = microcode.Rescaling(mantissa, shift).of(words(u))
    assert (ours == arithmetic.rescale(u, mantissa, shift)).all()


@given(SEEDS)
def test_what_gelu_neurons_fire_from(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    table = rng.integers(-(2**14), 2**14, arithmetic.GELU_ENTRIES)
    mantissa, shift = rng.choice(arithmetic.MANTISSAS, n), rng.integers(-3, 12, n)
    center, u = anywhere(rng, n), anywhere(rng, n)
    theirs = Gelu(mantissa, shift, center, np.ones(n, dtype=np.int64), table)
    ours = microcode.GeluNeurons(
        Clock(1, 1, 0),
        bias=np.zeros(n),
        theta=np.ones(n),
        mantissa=mantissa,
        shift=shift,
        center=center,
        table=table,
        index_shift=arithmetic.GELU_BITS - arithmetic.GELU_INDEX_BITS,
        receives="rate",
        sends="rate",
        most=1,
    )
    ours.u[:] = u
    assert (ours.membrane() == theirs.membrane(u)).all()


@given(SEEDS, st.integers(2, 300), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0, 1]))
def test_rotary_neurons_turn_as_rotary_positions_do(
    seed: int, positions: int, half: int, heads: int, begin: int
) -> None:
    """Membranes of any size, the largest included, at each position; what is not turned is left."""
    rng = np.random.default_rng(seed)
    turned, n = 2 * half * heads, 2 * half * heads + 3
    coarse, fine = rotary.tables(positions, 2 * half, 10.0 ** rng.uniform(0.5, 5))
    tokens = positions - begin
    u = anywhere(rng, tokens * n).reshape(tokens, n)
    theirs = rotary.Rotary(coarse.astype(np.int64), fine.astype(np.int64), turned).turned(u, begin)
    ours = llama.RotaryCode(
        Clock(1, 1, 0),
        bias=np.zeros(n),
        theta=np.ones(n),
        coarse=coarse,
        fine=fine,
        turned=turned,
        begin=begin,
        pair_bits=rotary.PAIR_BITS,
        receives="rate",
        sends="rate",
        most=1,
    )
    for mine, other in zip(u, theirs, strict=True):
        ours.u[:] = mine
        assert (ours.membrane() == other).all()
    ours.membrane()  # whatever comes behind the last position


@given(SEEDS)
def test_what_swiglu_neurons_fire_from(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    table = rng.integers(-(2**14), 2**14, arithmetic.SILU_ENTRIES)
    mantissa, shift = rng.choice(arithmetic.MANTISSAS, n), rng.integers(-3, 12, n)
    drop = rng.integers(0, arithmetic.MOST_DROPPED + 1, n)
    center, u = anywhere(rng, n), anywhere(rng, 2 * n)
    theirs = Swiglu(mantissa, shift, drop, center, np.ones(n, dtype=np.int64), table)
    ours = llama.SwigluCode(
        Clock(1, 1, 0),
        bias=np.zeros(2 * n),
        theta=np.ones(n),
        mantissa=mantissa,
        shift=shift,
        drop=drop,
        center=center,
        table=table,
        index_shift=arithmetic.GELU_BITS - arithmetic.GELU_INDEX_BITS,
        leading_bits=arithmetic.LEADING_BITS,
        receives="rate",
        sends="rate",
        most=1,
    )
    ours.u[:] = u
    assert (ours.membrane() == theirs.membrane(u)).all()


@given(SEEDS, st.integers(1, 400), st.sampled_from([0, 1, 2, LIMIT]))
def test_norm(seed: int, n: int, epsilon: int) -> None:
    rng = np.random.default_rng(seed)
    size = 2.0 ** rng.uniform(0, 23)
    x = np.rint(rng.standard_normal(n) * size).astype(np.int64).clip(-LIMIT, LIMIT)
    norm = microcode.Norm(
        Clock(1, 1, 0),
        width=n,
        epsilon=epsilon,
        shifts=arithmetic.NORM_SHIFTS,
        roots=arithmetic.ROOTS,
        fraction_bits=arithmetic.NORM_BITS,
    )
    assert (norm.normed(words(x)) == arithmetic.normed(x, epsilon)).all()
    q, e = arithmetic.sum_of_squares(x)
    assert norm.squares(words(x)) == (int(q[0]), int(e[0]))


@pytest.mark.parametrize("total", [LIMIT, LIMIT + 1])
def test_a_sum_of_squares_at_the_limit(total: int) -> None:
    """The largest that fits, and the first that does not."""
    x = np.array([2896, 1, 1, 0, 0, 0, 0], dtype=np.int64)
    x[0], left = 2895, total - 2895**2
    for i in range(1, len(x)):
        x[i] = int(left**0.5)
        left -= int(x[i]) ** 2
    assert left == 0
    norm = microcode.Norm(
        Clock(1, 1, 0),
        width=len(x),
        epsilon=0,
        shifts=arithmetic.NORM_SHIFTS,
        roots=arithmetic.ROOTS,
        fraction_bits=arithmetic.NORM_BITS,
    )
    q, e = arithmetic.sum_of_squares(x)
    assert norm.squares(words(x)) == (int(q[0]), int(e[0]))
    assert (int(e[0]) == 0) == (total == LIMIT)


@given(SEEDS, st.integers(0, 8))
def test_mean_of_is_normalise(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    divisor = np.abs(anywhere(rng, 20))[:, None]
    values = rng.integers(-divisor, divisor + 1, (20, 5))
    read = np.concatenate([values, divisor], axis=-1)
    assert (mean_of(words(read), bits) == arithmetic.normalise(read, bits)).all()


# --- populations, token after token ---


@given(SEEDS, st.integers(1, 8), st.integers(1, 16), st.integers(0, 16), st.integers(0, 3))
def test_swiglu_neurons_that_stop(
    seed: int, receives: int, timesteps: int, limit: int, longer: int
) -> None:
    """Membranes that saturate, spikes that carry powers of two, longer slots than they need."""
    rng = np.random.default_rng(seed)
    tokens, n, limit = 3, 12, min(limit, timesteps)
    phase = max(receives, timesteps) + longer
    most = largest_count(timesteps, "phase", limit=limit or None)
    theta = np.minimum(np.abs(anywhere(rng, n, LIMIT // most)) + 1, LIMIT // most)
    arriving = anywhere(rng, tokens * phase * 2 * n).reshape(tokens, phase, 2 * n)
    own: dict[str, Any] = {
        "mantissa": rng.choice(arithmetic.MANTISSAS, n),
        "shift": rng.integers(-3, 12, n),
        "drop": rng.integers(0, 30, n),
        "center": anywhere(rng, n),
        "theta": theta,
        "table": rng.integers(-(2**14), 2**14, arithmetic.SILU_ENTRIES),
        "carry": rng.integers(0, arithmetic.MOST_CARRIED + 1, n),
    }
    bias = anywhere(rng, 2 * n)
    code = llama.SwigluCode(
        Clock(phase, phase, 0),
        bias=bias,
        **own,
        index_shift=arithmetic.GELU_BITS - arithmetic.GELU_INDEX_BITS,
        leading_bits=arithmetic.LEADING_BITS,
        receives="phase",
        sends="phase",
        most=most,
        limit=limit,
    )
    line = np.concatenate([arriving.reshape(-1, 2 * n), np.zeros((phase, 2 * n), dtype=np.int64)])
    found = run(code, {"a_in": line}, {"u": 0, "v": phase, "spikes": phase})
    neurons = Swiglu(**own)
    u = arithmetic.integrate(arriving.swapaxes(0, 1), bias, "phase", phase)
    spikes, v = arithmetic.fire_steps(
        neurons.membrane(u[-1]), theta, most, True, phase, phase, "phase", limit or None
    )
    for name, x in {"u": u, "v": v, "spikes": spikes << neurons.carry}.items():
        ours = found[name][: tokens * phase].reshape(tokens, phase, -1)
        assert (ours == x.swapaxes(0, 1)).all(), name


@given(SEEDS, st.integers(1, 9), CODINGS, CODINGS, DIGITS, st.booleans(), st.integers(0, 6))
def test_coding_neurons(
    seed: int,
    timesteps: int,
    receives: Coding,
    sends: Coding,
    digits: Digits,
    graded: bool,
    shift: int,
) -> None:
    rng = np.random.default_rng(seed)
    tokens, n, phase = 3, 12, 1 if graded else timesteps
    digits = digits if sends == "phase" else "binary"
    most = 2**timesteps - 1 if sends == "phase" else timesteps * int(rng.integers(1, 3))
    theta = np.minimum(np.abs(anywhere(rng, n, LIMIT // most)) + 1, LIMIT // most)
    room = LIMIT >> (shift + (phase if receives == "phase" else phase.bit_length()) + 1)
    arriving = anywhere(rng, tokens * phase * n, max(room, 1)).reshape(tokens, phase, n)
    bias, unsigned = anywhere(rng, n, LIMIT // 2), int(rng.integers(n + 1))
    code = microcode.CodingNeurons(
        Clock(phase, phase, 0),
        bias=bias,
        theta=theta,
        unsigned=unsigned,
        receives=receives,
        sends=sends,
        most=most,
        digits=digits,
        shift_in=shift,
    )
    silent = np.zeros((phase, n), dtype=np.int64)
    line = np.concatenate([arriving.reshape(-1, n), silent])
    found = run(code, {"a_in": line}, {"u": 0, "v": phase, "spikes": phase})
    u = arithmetic.integrate((arriving << shift).swapaxes(0, 1), bias, receives, phase)
    signed = np.arange(n) >= unsigned
    spikes, v = arithmetic.fire_steps(
        u[-1], theta, most, signed, phase, phase, sends, digits=digits
    )
    for name, x in {"u": u, "v": v, "spikes": spikes}.items():
        ours = found[name][: tokens * phase].reshape(tokens, phase, n)
        assert (ours == x.swapaxes(0, 1)).all(), name


@given(SEEDS, st.integers(1, 300), st.integers(1, 4))
def test_a_full_membrane_has_no_room_for_half_a_threshold(seed: int, most: int, phase: int) -> None:
    """The largest membranes that 24 bits hold, alone and beside others."""
    rng = np.random.default_rng(seed)
    n, room = 12, LIMIT // most
    theta = rng.integers(1, room + 1, n)
    theta[0] = room
    bias = rng.choice([-LIMIT, LIMIT, LIMIT - room // 2, LIMIT // 2], n)
    bias[0] = LIMIT
    line = {"a_in": np.zeros((3 * phase, n), dtype=np.int64)}
    neurons = microcode.CodingNeurons(
        Clock(phase, 1, 0),
        bias=bias,
        theta=theta,
        unsigned=n // 2,
        receives="rate",
        sends="rate",
        most=most,
        shift_in=0,
    )
    found = run(neurons, line, {"v": phase, "spikes": phase})
    signed = np.arange(n) >= n // 2
    spikes, v = arithmetic.fire_steps(bias, theta, most, signed, phase, 1, "rate")
    assert (found["v"][:phase] == v).all() and (found["spikes"][:phase] == spikes).all()
    keys = microcode.KeyNeurons(Clock(phase, 1, 0), bias=bias, theta=theta, most=most, shift_in=0)
    found = run(keys, line, {"v": phase})
    assert (found["v"] == arithmetic.fire_start(bias, theta, False)[0]).all()
    counts = arithmetic.fire_counts(bias, theta, most, False)
    assert (found["sent"][2 * phase - 1] == 2 * counts).all()


@given(SEEDS, st.integers(1, 8), st.integers(0, 3), CODINGS)
def test_accumulators_wait_for_their_stream(
    seed: int, phase: int, start: int, receives: Coding
) -> None:
    rng = np.random.default_rng(seed)
    tokens, n, delay = 4, 6, -(-start // phase)
    mantissa, shift = rng.choice(arithmetic.MANTISSAS, n), rng.integers(-2, 8, n)
    bias = anywhere(rng, n, 2**20)
    # what phase-coded spikes drive saturates
    most = 99 if receives == "rate" else LIMIT
    a = anywhere(rng, tokens * phase * n, most).reshape(tokens, phase, n)
    x = anywhere(rng, tokens * n).reshape(tokens, n) * (delay > 0)
    steps = start + tokens * phase
    line, stream = np.zeros((2, steps + phase, n), dtype=np.int64)
    line[start:steps] = a.reshape(-1, n)
    stream[phase - 1 :: phase][:tokens] = x[: len(stream[phase - 1 :: phase])]
    code = microcode.Accumulator(
        Clock(phase, phase, start),
        bias=bias,
        mantissa=mantissa,
        shift=shift,
        receives=receives,
        delay=delay,
    )
    sent = run(code, {"a_in": line, "x_in": stream}, {})["sent"][start:steps]
    u = a.sum(1) + bias
    if receives == "phase":
        u = arithmetic.saturated(np.tensordot(1 << np.arange(phase)[::-1], a, (0, 1)), bias)
    wanted = arithmetic.saturate(x + arithmetic.rescale(u, mantissa, shift))
    assert (sent.reshape(tokens, phase, n)[:, -1] == wanted).all()
    assert not sent.reshape(tokens, phase, n)[:, :-1].any()


@given(SEEDS, st.sampled_from([1, 3, 8, 64]), st.booleans(), st.integers(1, 3), st.booleans())
def test_linear_attention(
    seed: int, timesteps: int, graded: bool, heads: int, innate: bool
) -> None:
    """Reads in every step, and states, for every way of forgetting."""
    rng = np.random.default_rng(seed)
    tokens, dim, key_dim, phase = 4, 3, 5, 1 if graded else timesteps
    shift, present = rng.choice([*range(9), 24], heads), rng.integers(0, 9, heads)
    full = timesteps // phase
    query, key = rng.integers(0, full + 1, (2, tokens, phase, heads, key_dim))
    value = rng.integers(-full, full + 1, (tokens, phase, heads, dim))
    flat = [x.reshape(tokens * phase, -1) for x in (query, key, value)]
    line = np.concatenate([np.concatenate(flat, axis=1), np.zeros((phase, heads * 13), int)])
    state = np.zeros((heads, dim + 1, key_dim), dtype=np.int64)
    first = None
    if innate:
        key_first = rng.integers(0, timesteps + 1, (heads, key_dim))
        first = key_first, rng.integers(-timesteps, timesteps + 1, (heads, dim))
        counts = arithmetic.with_witness(first[1], timesteps)
        written = arithmetic.ssa_written(key_first, counts, shift, timesteps)
        state = arithmetic.ssa_next(state, written, shift)
    code = SSACode(
        Clock(phase, phase, 0),
        shift=shift,
        present=present,
        dim=dim,
        key_dim=key_dim,
        bits=level_bits(timesteps),
        first=first,
    )
    found = run(code, {"s_in": line}, {"read": phase, "state": phase})
    for i in range(tokens):
        counts = arithmetic.with_witness(value[i].sum(0), timesteps)
        written = arithmetic.ssa_written(key[i].sum(0), counts, shift, timesteps)
        payloads = arithmetic.facilitated(query[i])
        visible = arithmetic.ssa_visible(state, written, present, payloads.sum(0))
        state = arithmetic.ssa_next(state, written, shift)
        reads = (visible * payloads[:, :, None]).sum(-1).cumsum(0)
        steps = slice(i * phase, (i + 1) * phase)
        assert (found["read"][steps] == reads).all()
        assert (found["state"][steps] == state).all()
        mean = arithmetic.normalise(reads[-1], level_bits(timesteps)).reshape(-1)
        assert (found["sent"][(i + 2) * phase - 1] == mean).all()


# --- on its own ---


def test_microcode_calls_no_function_of_the_integer_model() -> None:
    """Constants, tables and types may be shared; what is computed may not."""
    folder = Path(microcode.__file__).parent
    for path in (
        folder / "microcode.py",
        folder / "llama.py",
        *sorted((folder / "attention").glob("*.py")),
    ):
        imports = (
            x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.ImportFrom)
        )
        for found in imports:
            module = found.module or ""
            if "integer" in module or "spiking" in module:
                names = {alias.name for alias in found.names}
                allowed = {"IntegerConfig", "level_bits", "qkv_sizes"}
                assert all(x in allowed or x.isupper() for x in names), (path.name, names)
