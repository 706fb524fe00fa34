"""The race of token neurons: microcode against the closed form, and Lava's learning engine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurtransformer.codes import COARSE_STEPS, END_BITS, FINE_STEPS, KEY_LIMIT, REACH, level_bits
from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT, Integers
from neurtransformer.loihi.attention.ttfs import RACE_STEPS, RaceCode
from neurtransformer.loihi.microcode import Clock, words
from neurtransformer.recipe import Coding

SEEDS = st.integers(0, 2**32 - 1)
CODINGS: st.SearchStrategy[Coding] = st.sampled_from(["rate", "phase"])


def largest(timesteps: int, coding: Coding) -> int:
    return 2**timesteps - 1 if coding == "phase" else timesteps


def spikes_of(counts: Integers, slots: int, coding: Coding) -> Integers:
    """Signed counts (...) as the spikes of each slot, (slots, ...)."""
    if slots == 1:
        return counts[None]
    size = np.abs(counts)
    step = np.arange(slots).reshape(-1, *[1] * counts.ndim)
    sent = (size >> (slots - 1 - step)) & 1 if coding == "phase" else (step < size).astype(int)
    return np.sign(counts) * sent


def race_of(levels: Integers, values: Integers) -> Integers:
    """[o, d] of one query: levels (n,) and values (n, dim). By the maximum over tokens."""
    octave = levels >> 1
    last = 2 * octave.max() + 1
    for end in range(last, last - 99, -1):
        weights = np.exp2(octave - (end >> 1)) * np.where(levels % 2 == 1, 3, 2) * (levels >= end)
        if weights.sum() >= 2**END_BITS:
            break
    whole = weights.astype(int)
    return np.concatenate([whole @ values, [whole.sum()]])


class Case:
    """Random counts of a sequence, (tokens, heads, dim), gains and levels; and synapses of an
    innate token that wins some races, if there is one."""

    def __init__(
        self, seed: int, tokens: int, heads: int, dim: int, most: int, innate: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        shape = tokens, heads, dim
        self.counts = rng.integers(-most, most + 1, (3, *shape)) * rng.integers(0, 2, (3, *shape))
        self.counts[:, rng.random(tokens) < 0.3] = self.counts[:, :1]
        self.gain = rng.integers(0, 255, heads * dim)
        far = most * KEY_LIMIT * dim
        self.width = np.rint(far / 2 ** rng.uniform(0, 12, heads)).astype(int).clip(1)
        self.bits = level_bits(most)
        self.first: tuple[Integers, Integers] | None = None
        if innate:
            key = rng.integers(-KEY_LIMIT, KEY_LIMIT + 1, (heads, dim))
            self.first = key, rng.integers(-most, most + 1, (heads, dim))

    @property
    def keys(self) -> Integers:
        gained = self.counts[1] * self.gain.reshape(self.counts.shape[2:])
        return arithmetic.shift_round(gained, self.bits + 1).clip(-KEY_LIMIT, KEY_LIMIT)

    def reads(self) -> Integers:
        """(tokens, heads, dim + 1)."""
        query, _, value = self.counts
        keys, innate = self.keys, 0
        if self.first is not None:
            innate = 1
            keys = np.concatenate([self.first[0][None], keys])
            value = np.concatenate([self.first[1][None], value])
        score = np.einsum("ihd,jhd->hij", query, keys)
        width = self.width[:, None, None]
        levels = ((score + (width >> 1)) // width).clip(-REACH, REACH - 1)
        return np.stack(
            [
                [
                    race_of(levels[h, i, : innate + i + 1], value[: innate + i + 1, h])
                    for h in range(len(levels))
                ]
                for i in range(len(query))
            ]
        )

    def code(self, clock: Clock, coding: Coding, shared: int = 1) -> RaceCode:
        return RaceCode(
            clock,
            gain=self.gain,
            gain_shift=self.bits + 1,
            width=self.width,
            tokens=self.counts.shape[1],
            bits=self.bits,
            coding=coding,
            shared=shared,
            first=self.first,
        )


@settings(max_examples=30)
@given(
    SEEDS,
    st.integers(1, 8),
    CODINGS,
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 9),
    st.booleans(),
)
def test_microcode_of_the_race_is_its_closed_form(
    seed: int, timesteps: int, coding: Coding, graded: bool, heads: int, dim: int, innate: bool
) -> None:
    case = Case(seed, 7, heads, dim, largest(timesteps, coding), innate)
    slots = 1 if graded else timesteps
    phase = slots + RACE_STEPS
    code = case.code(Clock(phase, slots, 2), coding)
    sent = spikes_of(np.moveaxis(case.counts, 1, 0), slots, coding)
    wanted = case.reads()
    scaled = wanted.copy()
    scaled[..., -1] <<= case.bits
    mean = arithmetic.normalise(scaled, case.bits).reshape(7, -1)
    for now in range(2 + 8 * phase):
        step, token = code.clock.step(now), code.clock.token(now)
        arriving = np.zeros(code.inputs["s_in"], dtype=np.int32)
        if now >= 2 and step < slots and token < 7:
            arriving = words(sent[step, token]).reshape(-1)
        found = code.tick(now, {"s_in": arriving})
        if token >= 1 and step == phase - 1:
            assert (code.read == wanted[token - 1]).all()
            assert (found == mean[token - 1]).all()
            assert (code.keys[:, token - 1 + innate] == case.keys[token - 1]).all()
        else:
            assert not found.any()


@settings(max_examples=15)
@given(SEEDS, st.integers(2, 4), CODINGS, st.booleans(), st.booleans())
def test_heads_that_share_neurons_race_one_after_the_other(
    seed: int, shared: int, coding: Coding, graded: bool, innate: bool
) -> None:
    """As each would alone."""
    tokens, heads, dim, timesteps = 5, 2, 4, 4
    case = Case(seed, tokens, heads, dim, largest(timesteps, coding), innate)
    rng = np.random.default_rng(seed)
    queries, wanted = [], []
    for _ in range(shared):
        case.counts[0] = rng.permuted(case.counts[0], axis=2)
        queries.append(case.counts[0].copy())
        wanted.append(case.reads())
    slots = 1 if graded else timesteps
    own = slots + RACE_STEPS
    clock = Clock(shared * own, slots, 0)
    code = case.code(clock, coding, shared)
    counts = [x.reshape(tokens, -1) for x in (np.stack(queries, axis=2), *case.counts[1:])]
    sent = spikes_of(np.concatenate(counts, axis=1), slots, coding)
    for now in range((tokens + 1) * clock.phase):
        step, token = clock.step(now), clock.token(now)
        arriving = np.zeros(code.inputs["s_in"], dtype=np.int32)
        if step < slots and token < tokens:
            arriving = words(sent[step, token])
        found = code.tick(now, {"s_in": arriving})
        race, last = divmod(step, own)
        if token > 0 and last == own - 1:
            assert (code.read == wanted[race][token - 1]).all()
        if token > 0 and clock.is_last(now):
            scaled = np.stack([x[token - 1] for x in wanted], axis=1)
            scaled[..., -1] <<= case.bits
            assert (found == arithmetic.normalise(scaled, case.bits).reshape(-1)).all()
        else:
            assert not found.any()


@pytest.mark.parametrize("tokens", [1, 1024])
@pytest.mark.parametrize("score", [-LIMIT, -1, 0, LIMIT])
def test_equal_scores_stay_in_24_bits(tokens: int, score: int) -> None:
    """All neurons in one level, all values full: the largest sums that there can be, and nobody is
    so far down that the race does not end."""
    most, timesteps = 255, 8
    clock = Clock(timesteps + RACE_STEPS, timesteps, 0)
    case = Case(0, tokens, 1, 2, most)
    code = case.code(clock, "phase")
    code.written[:], code.score[:] = 1, score
    code.values[0, :, :2], code.values[0, :, 2] = (most, -most), 1

    for step in range(timesteps, clock.phase):
        code.attend(step, 0)
        assert np.abs(code.read).max() <= LIMIT
    assert 1 << END_BITS <= code.read[0, -1] < (2 << END_BITS) + 3 * tokens
    assert int(code.read[0, -1]) << case.bits <= LIMIT
    assert (np.abs(code.mean) <= most << 8).all()


def test_the_steps_are_those_of_the_network() -> None:
    assert (COARSE_STEPS, FINE_STEPS, RACE_STEPS) == (16, 38, 54)


# --- in Lava's learning engine ---


@pytest.fixture(scope="module")
def engine(lava: None) -> Any:
    from neurtransformer.loihi import race_engine

    return race_engine


@pytest.mark.parametrize(
    ("seed", "tokens", "dim", "most", "innate"),
    [
        pytest.param(0, 12, 8, 31, 0, marks=pytest.mark.slow),
        (1, 5, 3, 127, 0),
        (2, 9, 8, 31, 1),
    ],
)
def test_the_learning_engine_is_exact(
    engine: Any, seed: int, tokens: int, dim: int, most: int, innate: int
) -> None:
    """Every read and every synapse after every token."""
    case = Case(seed, tokens, 1, dim, most, bool(innate))
    query, _, value = case.counts[:, :, 0]
    head = engine.Sequence(query, case.keys[:, 0], value)
    reads, keys, values = engine.run_head(head, int(case.width[0]), case.first)
    assert (reads == case.reads()[:, 0]).all()
    synapses = head.keys
    if case.first is not None:
        synapses, value = (
            np.concatenate(pair) for pair in zip(case.first, (synapses, value), strict=True)
        )
    there = np.tri(tokens, innate + tokens, innate, dtype=int)[:, :, None]
    assert (keys == there * synapses).all()
    assert (values == there * np.pad(value, ((0, 0), (0, 1)), constant_values=1)).all()


def test_counts_beyond_a_trace_are_refused(engine: Any) -> None:
    case = Case(0, 2, 1, 3, 255)
    case.counts[0, 0, 0, 0] = 128
    query, _, value = case.counts[:, :, 0]
    with pytest.raises(UserError, match="127"):
        engine.run_head(engine.Sequence(query, case.keys[:, 0], value), 9)
