"""The SSA in the learning engine: Lava's own against NumPy, and NumPy against the exact SSA."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neurtransformer.codes import level_bits, witness
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.loihi import learning
from neurtransformer.loihi.learning import FORMS, NO_FORGETTING, SHIFTS, WEIGHT_LIMITS

T = 8
SEEDS = st.integers(0, 2**32 - 1)
Sequence = tuple[Integers, Integers, Integers]


@pytest.fixture(scope="module")
def engine(lava: None) -> Any:
    """Lava's own."""
    from neurtransformer.loihi import plasticity

    return plasticity


def counts(seed: int, tokens: int, heads: int, keys: int, dim: int, timesteps: int = T) -> Sequence:
    """Random query, key and value counts, half of them silent."""
    rng = np.random.default_rng(seed)

    def some(low: int, size: int) -> Integers:
        drawn = rng.integers(low, timesteps + 1, (tokens, heads, size))
        return drawn * rng.integers(0, 2, drawn.shape)

    return some(0, keys), some(0, keys), some(-timesteps, dim)


def setting(
    shift: list[int], present: list[int], exponent: list[int]
) -> tuple[tuple[Integers, Integers], Integers]:
    """Forgetting and exponent as `plastic_ssa` takes them."""
    return (np.array(shift), np.array(present)), np.array(exponent)


# --- Lava's engine is the NumPy model ---


def test_lava_is_the_outer_product_where_no_limit_is_met(engine: Any) -> None:
    """No forgetting, small integers: no rounding, so the weights are the sum of the products."""
    rng = np.random.default_rng(0)
    query, key = rng.integers(0, 3, (2, 4, 1, 5))
    value = rng.integers(-3, 4, (4, 1, 3))
    reads, weights = engine.run_plastic_ssa(
        query, key, value, *setting([NO_FORGETTING], [4], [0]), T
    )
    products = (arithmetic.with_witness(value, T)[..., None] * key[..., None, :] ** 2).cumsum(
        axis=0
    )
    assert (weights == products).all()
    assert (reads == (products * query[..., None, :] ** 2).sum(-1)).all()


@settings(max_examples=4)
@given(
    SEEDS,
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([*SHIFTS, NO_FORGETTING]),
    st.integers(0, 8),
    st.integers(-10, 2),
    st.sampled_from([3, 8, 16]),
)
@example(0, 4, 4, 3, 0, 4, -9, 8)  # forgets all; an exponent that the rule does not reach
@example(1, 4, 4, 3, 2, 4, 2, 8)  # what is written is beyond the accumulator
def test_lava_is_numpy_integer_for_integer(
    engine: Any,
    seed: int,
    tokens: int,
    keys: int,
    dim: int,
    shift: int,
    present: int,
    exponent: int,
    timesteps: int,
) -> None:
    """Rounding at random, saturation and traces that are cut included."""
    sequence = counts(seed, tokens, 1, keys, dim, timesteps)
    given = (*sequence, *setting([shift], [present], [exponent]), timesteps)
    reads, weights = engine.run_plastic_ssa(*given)
    ours = learning.plastic_ssa(*given, FORMS["lava"])
    assert (weights == ours[1]).all()
    assert (reads == ours[0]).all()


def test_lava_forgets_and_saturates_as_specified(engine: Any) -> None:
    """Full-scale tokens reach the largest weight; a halving head then loses half per token."""
    full, silent = np.full((3, 1, 4), T), np.zeros((5, 1, 4), dtype=np.int64)
    key = np.concatenate([full, silent])
    value = np.concatenate([full * [1, -1, 1, -1], silent])
    _, weights = engine.run_plastic_ssa(key, key, value, *setting([1], [4], [0]), T)
    low, high = WEIGHT_LIMITS
    assert (weights[2, 0, :4] == np.array([[high], [low], [high], [low]])).all()
    for before, after in zip(weights[2:-1, 0], weights[3:, 0], strict=True):
        assert (np.abs(after - before / 2) < 1).all()
    assert np.abs(weights[-1]).max() <= high / 2**5 + 1


def test_lava_cuts_what_is_written_one_unit_below_256(engine: Any) -> None:
    """Told from 256 by the one draw of the first 398 that rounds so small a rest down."""
    last = 397
    pre, post = np.zeros((2, last + 1, 1), dtype=np.int64)
    pre[[0, last]], post[0], post[last] = 127, 50, -127
    reads, weights = engine.run_outer_products(pre, post, np.array([[1]]), -2)
    ours = learning.outer_products(pre, post, -2, FORMS["lava"])
    assert (weights == ours).all() and (reads == weights[:, :1] - weights[:, 1:]).all()
    before = int(learning.outer_products(pre[:last], post[:last], -2, FORMS["lava"])[0, 0])
    assert int(weights[0, 0]) == before - 257


# --- the NumPy model ---


@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_without_limits_it_is_the_exact_rule(seed: int, tokens: int, keys: int, dim: int) -> None:
    """The form "float" against the recurrence, for each shift that the engine can do."""
    shift = np.array([*SHIFTS, NO_FORGETTING])
    query, key, value = counts(seed, tokens, len(shift), keys, dim)
    present = np.random.default_rng(seed).integers(0, 9, len(shift))
    reads, weights = learning.plastic_ssa(
        query, key, value, (shift, present), np.zeros_like(shift), T, FORMS["float"]
    )
    state = np.zeros_like(weights[0])
    keep = np.where(shift == NO_FORGETTING, 1, 1 - 2.0**-shift)[:, None, None]
    for i in range(tokens):
        written = arithmetic.with_witness(value[i], T)[..., None] * key[i][:, None] ** 2
        visible = state + present[:, None, None] / 4 * written
        assert np.allclose(reads[i], (visible * query[i][:, None] ** 2).sum(-1))
        state = keep * state + written
        assert np.allclose(weights[i], state)


@given(SEEDS, st.sampled_from(sorted(FORMS)), st.integers(-10, 8))
def test_weights_stay_in_their_bits(seed: int, name: str, exponent: int) -> None:
    form = FORMS[name]
    sequence = counts(seed, 4, 2, 3, 3)
    given = setting([seed % 8, NO_FORGETTING], [4, 4], [exponent, exponent])
    _, weights = learning.plastic_ssa(*sequence, *given, T, form)
    if form.saturates:
        assert weights.min() >= WEIGHT_LIMITS[0] and weights.max() <= WEIGHT_LIMITS[1]
    if form.rounding != "none":
        assert (weights % form.unit == 0).all()


def test_what_is_left_and_what_is_written_are_cut_before_they_meet() -> None:
    """Each to what the accumulator holds, a unit less and more than 256; their sum to a weight's
    limits."""
    weight, written = np.array([-200.0, -200, 200, 250]), np.array([400.0, 100, -400, 100])
    found = learning.learned(weight, written, FORMS["range"], 0.5, np.random.default_rng(0))
    unit = 2.0**-learning.FRACTION_BITS
    assert found.tolist() == [-200 + 256 - unit, -100, 200 - 256 - unit, 255]
    even = learning.learned(weight, written, FORMS["even"], 0.5, np.random.default_rng(0))
    assert even[-1] == 254
    assert (
        (learning.learned(-weight, -written, FORMS["lava"], 0.5, np.random.default_rng(0))[-1])
        == -256
    )


@given(SEEDS, st.sampled_from(SHIFTS), st.sampled_from(["nearest", "stochastic", "lava"]))
def test_one_token_forgets_within_one_unit(seed: int, shift: int, name: str) -> None:
    heads = learning.PlasticHeads(*setting([shift], [4], [0]), T, FORMS[name])
    rng = np.random.default_rng(seed)
    heads.weight = rng.integers(*WEIGHT_LIMITS, (1, 4, 5), endpoint=True).astype(float)
    silent = np.zeros((1, 5), dtype=np.int64)
    expected = heads.weight * (1 - 2.0**-shift)
    _, after = heads.token(silent, silent, np.zeros((1, 3), dtype=np.int64), float(rng.random()))
    assert (np.abs(after - expected) < 1).all()


@pytest.mark.parametrize("shift", SHIFTS)
def test_rounding_at_random_is_right_on_average(shift: int) -> None:
    """Rounding to the nearest is not: with it small weights stay for ever."""
    weight = np.tile(np.arange(-50.0, 51.0), (1, 2, 1))
    silent, value = np.zeros((1, 101), dtype=np.int64), np.zeros((1, 1), dtype=np.int64)
    draws = (np.arange(128) + 0.5) / 128
    heads = learning.PlasticHeads(*setting([shift], [4], [0]), T, FORMS["lava"])
    mean = np.zeros_like(weight)
    for draw in draws:
        heads.weight = weight
        mean += heads.token(silent, silent, value, draw)[1]
    assert np.allclose(mean / len(draws), weight * (1 - 2.0**-shift))


@given(st.integers(1, 64), st.integers(-10, 8))
def test_payloads_and_traces_fit_seven_bits(timesteps: int, exponent: int) -> None:
    every = np.arange(timesteps + 1)
    payload = learning.key_payload(every, timesteps)
    full = np.array([[witness(timesteps)]])
    trace = learning.value_trace(full, np.array([exponent]), timesteps)
    assert payload.max() <= 64 and trace.max() <= 64
    if level_bits(timesteps) <= 3:
        # T = 8: nothing is lost
        assert (payload * 4 ** level_bits(timesteps) == every**2 * 64).all()


@given(SEEDS, st.sampled_from([4, 8, 16, 64]), st.sampled_from(learning.EXPONENTS))
def test_full_scale_loses_nothing_to_traces(seed: int, timesteps: int, exponent: int) -> None:
    """Whatever T and exponent: what the rule does not reach of it is in the traces."""
    rng = np.random.default_rng(seed)
    query, key = timesteps * rng.integers(0, 2, (2, 5, 1, 4))
    value = timesteps * rng.integers(-1, 2, (5, 1, 3))
    given = (query, key, value, *setting([NO_FORGETTING], [4], [exponent]), timesteps)
    ours, exact = (learning.plastic_ssa(*given, FORMS[name])[1] for name in ("traces", "float"))
    assert (ours == exact).all()


@pytest.mark.parametrize(("large", "exponent"), [(1, 4), (4, -2)])
def test_one_weight_in_400_may_saturate_and_four_may_not(large: int, exponent: int) -> None:
    """The witness of T = 8 times the square of a key, at 200 keys; values are silent."""
    key = np.ones((1, 1, 200), dtype=np.int64)
    key[..., :large] = T
    value, never = np.zeros((1, 1, 1), dtype=np.int64), np.array([NO_FORGETTING])
    # 8 times 2^4 and 512 times 2^-2 are the largest below 256
    assert learning.fitting_exponent(key, value, never, T).tolist() == [exponent]


@settings(max_examples=10)
@given(SEEDS)
def test_a_fitting_exponent_is_the_largest(seed: int) -> None:
    shift = np.array([0, 3, NO_FORGETTING])
    _, key, value = counts(seed, 12, 3, 8, 8)
    exponent = learning.fitting_exponent(key, value, shift, T)

    def inside(more: int) -> Any:
        given = (shift, shift), exponent + more
        _, weights = learning.plastic_ssa(key, key, value, *given, T, FORMS["float"])
        sizes = np.abs(weights).reshape(len(key), 3, -1)
        return np.quantile(sizes, learning.FIT, axis=-1).max(0) <= WEIGHT_LIMITS[1]

    assert inside(0).all() and not inside(1).any()


def test_compare_sees_what_differs() -> None:
    """Reads twice as large are the same attention; another sign is none of it."""
    rng = np.random.default_rng(0)
    exact = rng.integers(-50, 51, (6, 2, 5))
    exact[..., -1] = 100
    error, correlation = learning.compare(2 * exact, exact, T)
    assert np.allclose(error, 0) and np.allclose(correlation, 1)
    turned = exact * [-1, -1, -1, -1, 1]
    error, correlation = learning.compare(turned, exact, T)
    assert np.allclose(error, 2) and np.allclose(correlation, -1)


def test_the_float_form_is_the_integer_ssa() -> None:
    """24 bits lose little: what the table calls an error of the engine is one."""
    sequence = counts(0, 24, 3, 16, 8)
    forgetting, exponent = setting([1, 4, NO_FORGETTING], [1, 4, 8], [0, 0, 0])
    exact = learning.exact_reads(*sequence, forgetting, T)
    reads, _ = learning.plastic_ssa(*sequence, forgetting, exponent, T, FORMS["float"])
    error, correlation = learning.compare(reads, exact, T)
    assert error.max() < 0.01 and correlation.min() > 0.999
