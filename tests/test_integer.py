"""The integer arithmetic against the spiking network's, and the integer model against itself."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neurtransformer.codes import NO_FORGETTING, largest_count, level_bits
from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic, quantise, rotary
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.integer.config import MAX_STREAM_BITS, IntegerConfig
from neurtransformer.integer.from_spiking import probed, stream_bits
from neurtransformer.integer.layout import check, layout
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import Encoder
from neurtransformer.recipe import Coding
from neurtransformer.spiking import coding
from neurtransformer.spiking import rotary as spiking_rotary
from neurtransformer.spiking.attention import linear as spiking_attention
from neurtransformer.spiking.attention.base import normalise
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.model import SpikingGPT2Config, SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import CodingNeuron

TIMESTEPS = st.sampled_from([1, 2, 3, 4, 8, 16, 64])
SHIFTS = [0, 1, 2, 3, 4, 5, 6, 7, NO_FORGETTING]
PRESENTS = [0.0, 0.25, 0.5, 1.0, 2.0]
SEEDS = st.integers(0, 2**32 - 1)


# --- coding neurons ---


@st.composite
def membranes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """(u, theta, T): near ties, near saturation, anywhere."""
    timesteps = draw(TIMESTEPS)
    n = draw(st.integers(1, 20))
    theta = np.array(draw(st.lists(st.integers(1, LIMIT // timesteps), min_size=n, max_size=n)))
    if draw(st.booleans()):
        theta = np.maximum(theta >> draw(st.integers(0, 22)), 1)
    level = np.array(draw(st.lists(st.integers(-80, 80), min_size=n, max_size=n)))
    off = np.array(draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n)))
    u = theta * level // 2 + off
    if draw(st.booleans()):
        u[0] = draw(st.sampled_from([-LIMIT, LIMIT]))  # no room for half a threshold
    return np.clip(u, -LIMIT, LIMIT), theta, timesteps


@given(membranes(), st.booleans())
def test_counts_are_the_spiking_networks(
    case: tuple[np.ndarray, np.ndarray, int], signed: bool
) -> None:
    u, theta, timesteps = case
    z = torch.from_numpy(u).double() / torch.from_numpy(theta).double()
    expected = coding.counts_from_total(z, timesteps, signed).numpy()
    assert (arithmetic.fire_counts(u, theta, timesteps, signed) == expected).all()


@given(membranes(), st.booleans(), st.booleans(), st.sampled_from(["rate", "phase"]))
def test_steps_are_counts(
    case: tuple[np.ndarray, np.ndarray, int], signed: bool, graded: bool, coding: Coding
) -> None:
    u, theta, timesteps = case
    if coding == "phase":
        timesteps = min(timesteps, 8)
        theta = np.maximum(theta >> timesteps, 1)
    phase = 1 if graded else timesteps
    most = largest_count(timesteps, coding)
    spikes, v = arithmetic.fire_steps(u, theta, most, signed, phase, phase, coding)
    counts = arithmetic.fire_counts(u, theta, most, signed)
    received = arithmetic.integrate(spikes, np.full_like(u, 3), coding, phase)
    assert (received[-1] == counts + 3).all()
    assert max(np.abs(v).max(), arithmetic.fire_start(u, theta, signed)[0].max()) <= LIMIT
    if not graded:
        assert np.abs(spikes).max() <= 1


@given(membranes(), st.sampled_from([1, 8, 16, 127, 255]))
def test_a_graded_spike_needs_no_division(
    case: tuple[np.ndarray, np.ndarray, int], most: int
) -> None:
    """Its count by comparing and subtracting, the highest binary digit first."""
    u, theta, _ = case
    theta = np.maximum(theta // most, 1)
    v, _ = arithmetic.fire_start(u, theta, True)
    expected, left = arithmetic.fire(v, theta, most)
    full = v >= theta * most
    count = np.where(full, most, 0)
    rest = v - count * theta
    for digit in reversed(range(most.bit_length())):
        fits = ~full & (rest >= theta << digit)
        count, rest = count + (fits << digit), rest - fits * (theta << digit)
    assert (count == expected).all() and (rest == left).all()


@given(membranes(), st.booleans(), st.integers(1, 16), st.integers(1, 16), st.integers(0, 3))
def test_neurons_that_stop_are_the_spiking_networks(
    case: tuple[np.ndarray, np.ndarray, int], signed: bool, timesteps: int, limit: int, longer: int
) -> None:
    """Counts and steps, in as many slots as they need and in more."""
    u, theta, _ = case
    limit = min(limit, timesteps)
    most = largest_count(timesteps, "phase", limit=limit)
    theta = np.minimum(theta, LIMIT // most)
    z = torch.from_numpy(u).double() / torch.from_numpy(theta).double()
    expected = coding.limited_counts_from_total(z, timesteps, limit, signed).numpy()
    counts = arithmetic.fire_counts(u, theta, most, signed, limit)
    assert (counts == expected).all()
    slots = timesteps + longer
    spikes, v = arithmetic.fire_steps(
        u, theta, most, signed, slots + 1, slots, "phase", None if limit == timesteps else limit
    )
    assert (arithmetic.integrate(spikes, np.zeros_like(u), "phase", slots)[-1] == counts).all()
    assert np.abs(spikes).max() <= 1 and np.abs(spikes).sum(0).max() <= limit
    start, sign = arithmetic.fire_start(u, theta, signed)
    assert (v[-1] == start - sign * counts * theta).all()


EDGES = st.sampled_from([-LIMIT, 1 - LIMIT, -LIMIT // 2, -1, 0, 1, LIMIT // 2, LIMIT - 1, LIMIT])


@given(
    st.lists(st.one_of(EDGES, st.integers(-LIMIT, LIMIT)), min_size=1, max_size=16),
    st.integers(0, 3),
    st.one_of(EDGES, st.integers(-LIMIT, LIMIT)),
)
def test_a_clip_in_every_step_is_one_clip_in_the_end(
    arriving: list[int], still: int, bias: int
) -> None:
    """Of what phase-coded spikes drive, by LIMIT a step at most: whole numbers of any size say."""
    total = 0
    for x in arriving:
        total = 2 * total + x
    line = np.array([*arriving, *[0] * still])[:, None]
    steps = arithmetic.integrate(line, np.array([bias]), "phase", len(arriving))
    ends = arithmetic.saturated(np.array([total]), np.array([bias]))
    inside = max(min(total, LIMIT), -LIMIT) + bias
    assert steps[-1] == ends == max(min(inside, LIMIT), -LIMIT)
    assert np.abs(steps).max() <= LIMIT


def test_steps_that_drive_farther_do_not_stay_at_the_limit() -> None:
    """What the bound on the weights of a row is for."""
    far = np.array([[2 * LIMIT], [-3 * LIMIT]])
    steps = arithmetic.integrate(far, np.zeros(1, np.int64), "phase", 2)
    assert steps[-1] != arithmetic.saturated(2 * far[0] + far[1], np.zeros(1, np.int64))


@given(SEEDS, st.integers(0, 24))
def test_shift_round(seed: int, bits: int) -> None:
    x = np.random.default_rng(seed).integers(-LIMIT, LIMIT, 50)
    assert (arithmetic.shift_round(x, bits) == np.floor(x * 2.0**-bits + 0.5)).all()


# --- SSA ---


@given(TIMESTEPS, st.booleans(), SEEDS)
def test_facilitated_is_the_spiking_networks(timesteps: int, graded: bool, seed: int) -> None:
    spikes = np.random.default_rng(seed).integers(0, 2, (timesteps, 3, 5))
    if graded:
        spikes = spikes.sum(0, keepdims=True)
    payloads = arithmetic.facilitated(spikes)
    assert (payloads.sum(0) == spikes.sum(0) ** 2).all()
    assert (payloads == coding.facilitated(torch.from_numpy(spikes)).numpy()).all()


@given(TIMESTEPS, st.integers(1, 6), st.sampled_from([2, 3, 8, 33]), st.booleans(), SEEDS)
def test_ssa_is_the_spiking_networks(
    timesteps: int, length: int, dim: int, full: bool, seed: int
) -> None:
    """All shifts and presents, as heads; from a state that may be full, to where it saturates."""
    rng = np.random.default_rng(seed)
    heads = [(shift, present) for shift in SHIFTS for present in PRESENTS]
    shift = np.array([head[0] for head in heads])
    present = np.array([head[1] for head in heads])
    shape = (2, len(heads), length, dim)
    query, key = (rng.integers(0, timesteps + 1, shape) for _ in range(2))
    value = rng.integers(-timesteps, timesteps + 1, (*shape[:-1], dim // 2))
    state = np.zeros((2, len(heads), dim // 2 + 1, dim), dtype=np.int64)
    if full:
        state = rng.integers(-LIMIT, LIMIT + 1, state.shape)
        state[..., -1, :] = np.abs(state[..., -1, :])
    quarters = (present * 4).astype(np.int64)
    ours = arithmetic.ssa_recurrent(query, key, value, (shift, quarters), timesteps, state)
    forgetting = torch.from_numpy(shift), torch.from_numpy(present).float()
    q, k, v, s = (torch.from_numpy(x).float() for x in (query, key, value, state))
    theirs = spiking_attention.ssa_recurrent(q[None], k, v, forgetting, timesteps, s)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine == other.numpy()).all()
        assert np.abs(mine).max() <= LIMIT
    mean = arithmetic.normalise(ours[0], level_bits(timesteps))
    assert (mean == normalise(theirs[0], level_bits(timesteps)).numpy()).all()


@given(TIMESTEPS, SEEDS)
def test_normalise_is_the_spiking_networks(timesteps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 2.0 ** rng.uniform(0, 23, (200, 1))
    read = np.rint(rng.uniform(-1, 1, (200, 5)) * size * 1.1).clip(-LIMIT, LIMIT)
    read[:, -1:] = np.floor(size).clip(0, LIMIT)
    read[0] = LIMIT
    read[1] = 0
    theirs = normalise(torch.from_numpy(read).float(), level_bits(timesteps))
    assert (
        arithmetic.normalise(read.astype(np.int64), level_bits(timesteps)) == theirs.numpy()
    ).all()


# --- GELU ---


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_within_half_a_table_step(approximate: str) -> None:
    activation = nn.GELU(approximate)
    x = np.arange(-6 << arithmetic.GELU_BITS, 6 << arithmetic.GELU_BITS, 7)
    unit = 2.0**-arithmetic.GELU_BITS
    ours = arithmetic.gelu(x, quantise.gelu_table(activation)) * unit
    exact = activation(torch.from_numpy(x * unit)).numpy()
    # the dip is nowhere steeper than 1/2, and half an interval is 1/128
    assert np.abs(ours - exact).max() < 0.5 / 128 + 2 * unit


@given(SEEDS)
def test_a_multiplier_is_its_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.uniform(-20, 2, 30)
    snapped = quantise.snapped_scale(scale)
    assert (snapped >= scale * (1 - 1e-9)).all() and (snapped <= scale * 1.2501).all()
    assert (quantise.snapped_scale(snapped) == snapped).all()
    mantissa, shift = (x.astype(np.int64) for x in quantise.multiplier(snapped, 14))
    assert set(mantissa) <= set(arithmetic.MANTISSAS)
    u = rng.integers(-(2**20), 2**20, 30)
    x = np.clip(u * snapped * 2.0**14, -LIMIT, LIMIT)
    assert np.abs(arithmetic.rescale(u, mantissa, shift) - x).max() <= 0.5


@given(st.integers(-LIMIT, LIMIT), st.sampled_from(arithmetic.MANTISSAS), st.integers(-24, 62))
def test_rescaling_fits_24_bits(u: int, mantissa: int, shift: int) -> None:
    """The product of 27 bits in two words of 24: nothing on the way is larger."""
    high, low = mantissa * (u >> 3), mantissa * (u & 7)
    if shift >= 4:
        high += low >> 3
        assert abs(high) <= LIMIT + 8
        bits = min(shift - 3, 30)
        expected = (high + (1 << (bits - 1))) >> bits
    else:
        # to the left of its place by 3 - shift bits: what leaves 24 bits is saturated anyway
        left = (high << 3) + low
        expected = (left + ((1 << shift) >> 1)) >> shift if shift > 0 else left << -shift
    expected = max(-LIMIT, min(LIMIT, expected))
    found = arithmetic.rescale(np.array([u]), np.array([mantissa]), np.array([shift]))
    assert found[0] == expected


# --- SwiGLU ---


@given(SEEDS, st.integers(0, 30))
def test_a_product_of_membranes_is_right_to_its_leading_bits(seed: int, drop: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (np.rint(rng.standard_normal(50) * 2.0 ** rng.uniform(0, 24, 50)) for _ in range(2))
    x, y = (v.clip(-LIMIT, LIMIT).astype(np.int64) for v in (x, y))
    exact = x * y * 2.0**-drop
    found = arithmetic.product(x, y, np.full(50, drop))
    assert (np.abs(found) <= LIMIT).all()
    fits = np.abs(exact) < LIMIT
    off = np.abs(found - exact)[fits]
    assert (off <= 0.5 + np.abs(exact[fits]) * 2.0**-10).all()
    assert (np.sign(found) == np.sign(exact))[np.abs(exact) > 1].all()
    for factor in (x, y):
        assert (np.abs(arithmetic.leading(factor)[0]) <= 2**arithmetic.LEADING_BITS).all()


def test_silu_is_within_half_a_table_step() -> None:
    x = np.arange(-12 << arithmetic.GELU_BITS, 12 << arithmetic.GELU_BITS, 7)
    unit = 2.0**-arithmetic.GELU_BITS
    ours = arithmetic.gelu(x, quantise.silu_table()) * unit
    exact = nn.functional.silu(torch.from_numpy(x * unit)).numpy()
    assert np.abs(ours - exact).max() < 0.5 / 128 + 2 * unit


# --- rotary positions ---


@given(SEEDS, st.integers(2, 9000), st.sampled_from([2, 8, 64]), st.sampled_from([10000.0, 1e5]))
def test_turned_membranes_are_the_spiking_networks(
    seed: int, positions: int, dim: int, base: float
) -> None:
    rng = np.random.default_rng(seed)
    first = int(rng.integers(positions))
    length = min(5, positions - first)
    coarse, fine = (x.astype(np.int64) for x in rotary.tables(positions, dim, base))
    assert (coarse.shape, fine.shape) == rotary.table_shapes(positions, dim)
    assert len(coarse) * len(fine) < 3 * positions and max(len(coarse), len(fine)) < 256
    u = rng.integers(-(2**20), 2**20, (2, length, 3 * dim + 1))
    ours = rotary.Rotary(coarse, fine, 3 * dim).turned(u, first)
    angles = spiking_rotary.rotation(torch.arange(first, first + length)[None], dim, base)
    theirs = spiking_rotary.rotate(torch.from_numpy(u[..., :-1]).float(), angles).numpy()
    # of angles in float32, thousands of radians large
    assert np.abs(ours[..., :-1] - theirs).max() < 2.0**20 * (2.0**-12 + positions * 2.0**-23)
    assert (ours[..., -1] == u[..., -1]).all()


# --- LayerNorm ---


@given(st.sampled_from([1, 2, 7, 64, 1600]), st.integers(0, 23), st.booleans(), SEEDS)
def test_normed_is_the_stream_over_its_length(n: int, bits: int, outlier: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.rint(rng.standard_normal((20, n)) * 2.0**bits).clip(-LIMIT, LIMIT).astype(np.int64)
    if outlier:
        x[:, 0] = LIMIT
    x[0] = 0
    y = arithmetic.normed(x, 0)
    length = np.sqrt((x.astype(float) ** 2).sum(-1, keepdims=True))
    exact = x / np.maximum(length, 1) * 2.0**arithmetic.NORM_BITS
    assert (np.abs(y - exact) <= 0.008 * np.abs(exact) + 8).all()
    assert np.abs(y).max() <= 1.01 * 2**arithmetic.NORM_BITS
    assert (y[0] == 0).all()


@given(SEEDS, st.integers(0, 23), st.integers(0, LIMIT))
def test_nothing_in_layernorm_leaves_24_bits(seed: int, bits: int, epsilon: int) -> None:
    x = np.random.default_rng(seed).integers(-(2**bits), 2**bits + 1, (9, 33)).clip(-LIMIT, LIMIT)
    q, exponent = arithmetic.sum_of_squares(x)
    assert (q <= LIMIT).all() and (np.abs(x) <= np.exp2(exponent + 11.51)).all()
    larger = (exponent > 0) & (
        ((x >> np.maximum(exponent - 4, 0)) ** 2).sum(-1, keepdims=True) < LIMIT
    )
    assert not larger[(exponent > 0) & (q < LIMIT >> 9)].any(), "a finer shift would have done"
    scaled = arithmetic.shift_round(x << np.maximum(3 - exponent, 0), np.maximum(exponent - 3, 0))
    assert (np.abs(scaled) * max(arithmetic.ROOTS) <= LIMIT).all()
    assert np.abs(arithmetic.normed(x, epsilon)).max() <= LIMIT


@given(SEEDS, st.sampled_from([1, 4, 8]), st.booleans())
def test_encoders_count_what_layernorm_gives(seed: int, timesteps: int, negative: bool) -> None:
    """LayerNorm and coding neuron in floats, against the integers they become."""
    torch.manual_seed(seed % 2**31)
    width, bits = 48, 12
    norm = nn.LayerNorm(width)
    neuron = CodingNeuron(width, timesteps, signed=True, analogue=True).eval()
    with torch.no_grad():
        norm.weight.uniform_(0.3, 2)
        norm.bias.normal_()
        if negative:
            norm.weight[::2].neg_()
        norm.weight[5] = 0
        neuron.threshold.uniform_(1, 6)
        neuron.center.normal_(std=0.3)
        config = integer_config(width, timesteps, bits)
        tensors, value = quantise.quantise_neurons(norm, neuron, config)
        encoder = Encoder.of({f"n.{k}": x for k, x in tensors.items()}, "n", config.code)
        x = torch.randn(60, width)
        x = x - x.mean(-1, keepdim=True)
        theirs = (neuron(norm(x)) * neuron.spike_value).numpy()
    ours = encoder.counts(np.rint(x.numpy() * 2.0**bits).astype(np.int64)) * value
    off = np.abs(ours - theirs) / neuron.spike_value.detach().numpy()
    # a count more or less where a value stands near the middle of two
    assert off.max() <= 1.1 and (off > 0.1).mean() < 0.06


def integer_config(width: int, timesteps: int, stream_bits: int) -> IntegerConfig:
    return IntegerConfig(
        layers=1,
        width=width,
        heads=1,
        hidden=width,
        vocabulary=9,
        positions=9,
        timesteps=timesteps,
        coding="rate",
        epsilon=1e-5,
        stream_bits=stream_bits,
    )


# --- quantising ---


@given(SEEDS, TIMESTEPS, st.booleans(), st.integers(1, 60), st.floats(-9, 4), st.floats(-9, 6))
def test_rows_fit(
    seed: int, timesteps: int, snapped: bool, inputs: int, weight_size: float, bias_size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, inputs)) * 10**weight_size
    weight[0] = 0
    bias = rng.standard_normal(5) * 10**bias_size
    spike_value = np.abs(rng.standard_normal(5)) + 1e-7
    rows = quantise.quantise_rows(
        weight,
        bias,
        timesteps,
        spike_value=None if snapped else spike_value,
        snap=quantise.snapped_scale if snapped else lambda scale: scale,
    )
    theta = 0 if snapped else quantise.quantise_threshold(spike_value, rows.scale, timesteps)
    worst = quantise.worst_sums(rows.weight, rows.bias, timesteps) + theta
    assert (worst <= LIMIT).all()
    assert not (rows.weight & 1).any() and np.abs(rows.weight).max() <= 254
    assert (np.abs(rows.weight * rows.scale[:, None] - weight) <= rows.scale[:, None] * 1.001).all()
    assert (np.abs(rows.bias * rows.scale - bias) <= rows.scale * 0.501).all()


@given(SEEDS, st.integers(1, 60), st.floats(-9, 4), st.floats(-9, 6), st.floats(-9, 12))
def test_rows_that_saturate_tell_what_they_are_to(
    seed: int, inputs: int, weight_size: float, bias_size: float, reach_size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, inputs)) * 10**weight_size
    bias, reach = rng.standard_normal(5) * 10**bias_size, np.full(5, 10**reach_size)
    carry = rng.integers(0, 22, inputs).astype(np.int32)
    rows = quantise.quantise_rows(
        weight,
        bias,
        9999,
        snap=quantise.snapped_scale,
        saturating=quantise.Saturating(carry, reach),
    )
    assert (reach <= rows.scale * LIMIT).all()
    assert (quantise.worst_sums(rows.weight, rows.bias, 1, carry=carry) <= LIMIT).all()
    assert (np.abs(rows.weight).astype(np.int64) @ (1 << carry) <= LIMIT).all()
    unit = rows.scale[:, None] * 2.0**carry
    assert (np.abs(rows.weight * unit - weight) <= unit * 1.001).all()


def test_what_spikes_carry_gives_weights_their_bits_back() -> None:
    """Where one input is worth far more than all others, and is as seldom wrong."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 64))
    weight[:, 3] *= 50
    carry = quantise.carried(weight)
    assert carry[3] in (5, 6) and (np.delete(carry, 3) <= 1).all()
    errors = []
    for exponent in (np.zeros_like(carry), carry):
        saturating = quantise.Saturating(exponent, np.zeros(8))
        rows = quantise.quantise_rows(weight, np.zeros(8), 1, saturating=saturating)
        error = rows.weight * rows.scale[:, None] * 2.0**exponent - weight
        errors.append(np.abs(np.delete(error, 3, axis=1)).mean())
    assert errors[1] < errors[0] / 10
    assert (quantise.carried(weight * 1e9) == carry).all()


def test_long_rows_get_coarser_instead_of_overflowing() -> None:
    rows = quantise.quantise_rows(np.ones((1, 4096)), np.zeros(1), 64)
    assert 0 < rows.weight[0, 0] < 254
    assert quantise.worst_sums(rows.weight, rows.bias, 64)[0] <= LIMIT


# --- the model ---


@pytest.fixture(scope="module")
def spiking(tiny_run: Path) -> SpikingGPT2LMHeadModel:
    return load_run(tiny_run)[0]


@pytest.fixture(scope="module")
def model(spiking: SpikingGPT2LMHeadModel) -> IntegerGPT2:
    return IntegerGPT2.from_spiking(spiking)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(4096, shape, generator=torch.Generator().manual_seed(1))


def test_integers_follow_the_spiking_network(
    model: IntegerGPT2, spiking: SpikingGPT2LMHeadModel
) -> None:
    ids = tokens(2, 40)
    with torch.no_grad():
        ours, theirs = model(ids), spiking(ids).logits
    assert ours.shape == theirs.shape
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).mean() > 0.97


def test_token_after_token_is_all_at_once(model: IntegerGPT2) -> None:
    ids = tokens(2, 12)
    states = model.new_states()
    parts = [
        model(ids[:, :5], states),
        *(model(ids[:, i : i + 1], states) for i in range(5, 12)),
    ]
    assert torch.allclose(torch.cat(parts, dim=1), model(ids), atol=1e-4)


@pytest.mark.parametrize("graded", [False, True])
def test_steps_of_a_block_are_its_counts(model: IntegerGPT2, graded: bool) -> None:
    x = np.random.default_rng(0).integers(-(2**16), 2**16, (7, model.config.width))
    phase = 1 if graded else model.config.timesteps
    attention, feedforward = model.attention[1], model.feedforward[1]
    trace = attention.steps(x, phase, phase)
    after, state = attention.counts(x[None], attention.new_state(1))
    assert (trace["residual.x"][:, -1] == after[0]).all()
    assert (trace["ssa.state"][-1] == state[0][0]).all()
    assert (feedforward.steps(x, phase, phase)["residual.x"][:, -1] == feedforward.counts(x)).all()
    for name, values in trace.items():
        assert np.abs(values).max() <= LIMIT, name


def test_steps_of_both_ends_are_their_counts(model: IntegerGPT2) -> None:
    ids = tokens(9).numpy()
    x = model.embedding.counts(ids)
    assert (model.embedding.steps(ids, 1, 1)["stream.x"][:, 0] == x).all()
    assert (model.head.steps(x, 1, 1)["logits.x"][:, 0] == model.head.counts(x)).all()


def test_the_stream_has_the_bits_that_it_needs(spiking: SpikingGPT2LMHeadModel) -> None:
    bits = stream_bits(probed(spiking).stream)
    assert 0 < bits <= MAX_STREAM_BITS
    large = copy.deepcopy(spiking)
    with torch.no_grad():
        large.lm_head.weight.mul_(2.0**12)  # the embedding as well
    assert stream_bits(probed(large).stream) < bits


@torch.no_grad()
def test_a_channel_beyond_all_others_reaches_the_head() -> None:
    """As some do in a real model, on every text: in 256 channels up to 16 standard deviations."""
    torch.manual_seed(0)
    config = SpikingGPT2Config(vocab_size=99, n_positions=16, n_embd=256, n_layer=1, n_head=2)
    far = SpikingGPT2LMHeadModel(config).eval()
    far.blocks[0].mlp.c_proj.bias[5] = 100
    far.lm_head.weight[:, 5] *= 9
    seen = probed(far).final
    assert seen[5] > 15 and np.median(seen) < 1
    ids = torch.arange(16)[None]
    ours, theirs = IntegerGPT2.from_spiking(far)(ids), far(ids).logits
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_generate_repeats_with_its_seed_and_greedy_is_argmax(model: IntegerGPT2) -> None:
    ids = tokens(1, 5)
    torch.manual_seed(3)
    first = model.generate(ids, 6, top_k=40)
    torch.manual_seed(3)
    assert torch.equal(first, model.generate(ids, 6, top_k=40))
    greedy = model.generate(ids, 3)
    assert greedy.shape == (1, 8)
    assert int(greedy[0, 5]) == int(model(ids)[0, -1].argmax())
    assert model.generate(ids, 6, stop=int(greedy[0, 5])).shape == (1, 6)


def test_too_many_tokens(model: IntegerGPT2) -> None:
    with pytest.raises(UserError, match="65 tokens are more than the 64"):
        model(tokens(1, 65))


def test_nan_weights_are_refused(tiny_run: Path) -> None:
    spoilt = load_run(tiny_run)[0]
    with torch.no_grad():
        spoilt.blocks[0].attn.c_attn.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        IntegerGPT2.from_spiking(spoilt)


def complain(complaint: str) -> None:
    raise UserError(complaint)


def test_the_layout_is_what_quantising_makes(model: IntegerGPT2) -> None:
    assert layout(model.config).keys() == model.tensors.keys()
    check(model.config, dict(model.tensors), complain)


def _add(amount: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x + np.asarray(amount, x.dtype)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("h.0.attn.c_attn.weight", _add(1), "odd|range"),
        ("h.0.attn.c_attn.weight", lambda x: x[:, :-1], "should be"),
        ("h.0.attn.c_attn.weight", lambda x: x.astype(np.int32), "should be"),
        ("h.0.attn.c_proj.bias", lambda x: np.full_like(x, LIMIT), "24 bits"),
        ("h.0.attn.qkv.theta", lambda x: x * 0, "range"),
        ("h.1.attn.ssa.shift", _add(25), "range"),
        ("h.1.mlp.hidden.mantissa", _add(9), "range"),
        ("h.1.mlp.c_fc.bias", lambda x: np.full_like(x, LIMIT), "24 bits"),
        ("h.0.mlp.encode.theta", lambda x: np.full_like(x, LIMIT), "range"),
        ("h.0.mlp.norm.epsilon", lambda x: x - LIMIT, "range"),
        ("h.1.attn.residual.shift", _add(99), "range"),
        ("embed.table.weight", lambda x: x[:, 1:], "should be"),
        ("head.lm_head.bias", lambda x: np.full_like(x, LIMIT), "24 bits"),
    ],
)
def test_spoilt_tensors_are_found(
    model: IntegerGPT2, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    spoilt = {**model.tensors, name: change(model.tensors[name])}
    with pytest.raises(UserError, match=message):
        check(model.config, spoilt, complain)


def test_missing_and_extra_tensors_are_found(model: IntegerGPT2) -> None:
    less = {k: v for k, v in model.tensors.items() if k != "head.encode.bias"}
    with pytest.raises(UserError, match=r"head\.encode\.bias is missing"):
        check(model.config, less, complain)
    with pytest.raises(UserError, match="more is not expected"):
        check(model.config, {**model.tensors, "more": np.zeros(1)}, complain)
