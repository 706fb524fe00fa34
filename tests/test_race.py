"""The race of token neurons: against softmax in base 2, steps against counts, token by token."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from neurtransformer.codes import COARSE, END_BITS, KEY_LIMIT, REACH
from neurtransformer.errors import UserError
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code
from neurtransformer.spiking.attention.race import (
    Race,
    causal,
    key_synapses,
    levels_of,
    listen,
    race_steps,
    race_weights,
    tiles,
)
from neurtransformer.spiking.attention.ttfs import RaceAttention

CODES = [Code(5, "phase"), Code(8, "phase"), Code(8, "rate"), Code(1, "rate")]
SEEDS = st.integers(0, 2**16)


def by_hand(levels: list[int], values: list[int]) -> tuple[int, int]:
    """[o, d] of one race in Python's integers, level after level from far above."""
    o = d = 0
    level = max(levels, default=0) + 3
    while levels and d < 2**END_BITS:
        fired = [v for e, v in zip(levels, values, strict=True) if e == level]
        if level % 2:
            o, d = 2 * o + 3 * sum(fired), 2 * d + 3 * len(fired)
        else:
            o, d = o + 2 * sum(fired), d + 2 * len(fired)
        level -= 1
    return o, d


@given(st.lists(st.integers(-REACH, REACH - 1), min_size=1, max_size=40), SEEDS)
@example([0] * 40, 0)  # all at once
@example([-REACH], 0)
@example([REACH - 1, -REACH], 0)
@example([20, *[22 - 2 * END_BITS] * 30], 0)  # the last step that can count
@example([20, *[21 - 2 * END_BITS] * 30], 0)  # one too late
@example([21, *[22 - 2 * END_BITS] * 30], 0)  # the same from the odd level of the octave
@example([21, *[21 - 2 * END_BITS] * 30], 0)
@example([5, *[-1] * 39], 0)  # whoever is late ends the race sooner
@example([5, *[-2] * 39], 0)
def test_the_closed_form_and_the_steps_are_the_race_by_hand(levels: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-255, 256, (len(levels),), generator=generator)
    width = torch.tensor([7.0])
    e = torch.tensor(levels, dtype=torch.float32)
    # anywhere within its level
    score = e * 7 - 3 + torch.randint(0, 7, e.shape, generator=generator)
    score, there = score[None, None, None], torch.ones(1, len(levels), dtype=torch.bool)
    assert torch.equal(levels_of(score, width).flatten(), e)
    weights = race_weights(levels_of(score, width), there).flatten().long()
    o, d = by_hand(levels, values.tolist())
    assert (int(weights @ values), int(weights.sum())) == (o, d)
    read = listen(*race_steps(score, width, there), values.float()[None, None, :, None])
    assert read.flatten().tolist() == [o, d]
    assert 2**END_BITS <= d < 2 ** (END_BITS + 1) + 3 * len(levels)


def test_a_level_may_be_as_wide_as_a_state() -> None:
    """On the edge of a level of 22 bits, where the threshold has 29."""
    score, width = torch.tensor([-1202476.0]), torch.tensor([2404953.0])
    there = torch.ones(1, 1, dtype=torch.bool)
    read = listen(*race_steps(score[None, None, None], width, there), torch.ones(1, 1, 1, 1))
    assert read.flatten().tolist() == [2.0**END_BITS, 2.0**END_BITS]


def test_a_thousand_equal_tokens_leave_room_in_24_bits() -> None:
    """The largest sums there can be: all fire with the step that ends the race."""
    there = torch.ones(1, 1024, dtype=torch.bool)
    largest = 0.0
    for level in (0, 1):
        for ahead in range(2 * END_BITS):
            levels = torch.full((1, 1, 1, 1024), float(level))
            levels[..., 0] += ahead
            d = float(race_weights(levels, there).sum())
            assert 2**END_BITS <= d < 2 ** (END_BITS + 1) + 3 * 1024
            largest = max(largest, d)
    assert largest > 2 ** (END_BITS + 1) and largest * 256 < 2**23


@given(SEEDS, st.integers(1, 60))
def test_levels_are_floors_of_integers(seed: int, width: int) -> None:
    """Floats divide as integers do, at the edges of levels and wherever 24 bits reach."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(1, 2 ** min(23, 1 + width // 2), (3,), generator=generator)
    near = torch.randint(-140, 140, (2, 3, 4, 50), generator=generator) * widths[:, None, None]
    score = (
        near + torch.randint(-2, 3, near.shape, generator=generator) - widths[:, None, None] // 2
    )
    score = score.clamp(-(2**23) + 1, 2**23 - 1)
    exact = (score + widths[:, None, None] // 2).div(widths[:, None, None], rounding_mode="floor")
    found = levels_of(score.float(), widths.float())
    assert torch.equal(found.long(), exact.clamp(-REACH, REACH - 1))


def attention(code: Code, seed: int, scale: float = 1.0) -> RaceAttention:
    """Two heads of 16 with thresholds such that attention is neither flat nor one-hot."""
    torch.manual_seed(seed)
    made = RaceAttention(Sizes(1, 32, 2, 2, 128, 64, 50), code).eval()
    for neuron in (made.query, made.key, made.value, made.merged):
        neuron.threshold.data.uniform_(0.3, 1.5).mul_(scale)
    made.c_attn.weight.data.normal_(0, 0.35 * scale)
    return made


@given(st.sampled_from(CODES), SEEDS, st.sampled_from([0.1, 1.0, 10.0]), st.integers(1, 12))
@torch.no_grad()
def test_steps_are_counts_and_tokens_one_by_one_too(
    code: Code, seed: int, scale: float, length: int
) -> None:
    """With padding: whole rows of it, and in front of a text."""
    network = attention(code, seed, scale)
    x = torch.randn(3, length, 32)
    mask = torch.ones(3, length)
    mask[0, : length // 2], mask[1] = 0, 0
    counts, state = network(x, mask=mask)
    steps, same = network(x, steps=True, mask=mask)
    assert torch.equal(counts, steps)
    assert all(torch.equal(a, b) for a, b in zip(state, same, strict=True))
    one_by_one, parts = None, []
    for i in range(length):
        part, one_by_one = network(x[:, i : i + 1], state=one_by_one, mask=mask[:, i : i + 1])
        parts.append(part)
    assert torch.equal(torch.cat(parts, 1), counts)
    if length > 1:
        alone, _ = network(x[:1, length // 2 :])
        assert torch.equal(counts[:1, length // 2 :], alone)


@pytest.mark.parametrize(("tile", "rows"), [(1, 1), (60, 3), (400, 4), (2**18, 5)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_parts_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, tile: int, rows: int, kv_heads: int, padded: bool
) -> None:
    """However the scores are cut, in counts and in steps, behind a text or not."""
    torch.manual_seed(tile)
    network = RaceAttention(Sizes(1, 32, 4, kv_heads, 128, 64, 50), CODES[0], innate=True).eval()
    network.c_attn.weight.normal_(0, 0.35)
    assert network.first_key is not None and network.first_value is not None
    network.first_key.normal_()
    network.first_value.normal_()
    x, mask = torch.randn(3, 14, 32), torch.ones(3, 14)
    if padded:
        mask[0, :4], mask[1] = 0, 0
    whole, state = network(x, mask=mask)
    monkeypatch.setattr("neurtransformer.spiking.attention.race.TILE", tile)
    monkeypatch.setattr("neurtransformer.spiking.attention.race.TILE_ROWS", rows)
    for steps in (False, True):
        begin, before = network(x[:, :6], steps, mask=mask[:, :6])
        end, after = network(x[:, 6:], steps, before, mask=mask[:, 6:])
        assert torch.equal(torch.cat([begin, end], 1), whole)
        assert all(torch.equal(a, b) for a, b in zip(after, state, strict=True))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 40), st.integers(0, 40))
def test_tiles_are_all_queries_of_all_heads_once(
    heads: int, shared: int, length: int, before: int
) -> None:
    found = torch.zeros(heads, length, dtype=torch.int64)
    for own, asking, seen in tiles(heads, shared, length, before + length):
        found[own, asking] += 1
        assert seen == before + asking.stop
    assert bool((found == 1).all())


@given(st.sampled_from(CODES[:2]), SEEDS)
@torch.no_grad()
def test_it_is_softmax_of_rounded_scores(code: Code, seed: int) -> None:
    """Against softmax itself, of scores computed from what the counts are worth."""
    network = attention(code, seed)
    x = torch.randn(2, 24, 32)
    query, key, value = network.code(x)
    worth = [n.spike_value.view(2, 1, 16) for n in (network.query, network.key)]
    score = (query * worth[0]) @ (key * worth[1]).transpose(-1, -2) * 16**-0.5
    score = score.masked_fill(~causal(24, 24, score.device), float("-inf"))
    weights = network.weights(query, key)
    shares = weights / weights.sum(-1, keepdim=True)
    # a quarter of an octave of rounding each way, and a key synapse has 8 bits
    ratio = (shares + 1e-6) / (score.softmax(-1) + 1e-6)
    assert ratio.max() < 1.5 and ratio.min() > 1 / 1.5
    assert (shares - score.softmax(-1)).abs().mean() < 0.01
    mean = network.parallel(query, key, value)
    assert torch.allclose(mean, shares @ value, atol=1e-3)


def test_gradients_are_those_of_softmax() -> None:
    """Exactly so where scores are whole octaves and nothing is cut off."""
    torch.manual_seed(0)
    width = torch.tensor([40.0, 300.0])
    scores = 2 * torch.randint(-3, 4, (2, 2, 5, 5)).float() * width[:, None, None]
    there = causal(5, 5, scores.device)
    gradients = []
    values = torch.randn(2, 2, 5, 3)
    for race in (True, False):
        score, step, v = (x.clone().requires_grad_() for x in (scores, width, values))
        if race:
            mean = Race.apply(score, step, v, there)
        else:
            e = score / step[:, None, None] * torch.log(torch.tensor(2.0)) / 2
            mean = e.masked_fill(~there, -torch.inf).softmax(-1) @ v
        (mean * torch.arange(30.0).view(2, 1, 5, 3)).sum().backward()
        gradients.append((mean.detach(), score.grad, step.grad, v.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=2e-3)


def test_thresholds_of_query_and_key_learn() -> None:
    network = attention(CODES[0], 0).train()
    output, _ = network(torch.randn(2, 8, 32))
    output.square().sum().backward()
    for neuron in (network.query, network.key, network.value, network.merged):
        gradient = neuron.threshold.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any()


def test_key_synapses_have_8_bits() -> None:
    for code in CODES:
        key = torch.tensor([-code.most, 0, code.most]).float().view(1, 1, 3, 1)
        synapses = key_synapses(key, torch.tensor([[254.0]]), code.most).flatten()
        assert synapses[0] == -synapses[2] and 120 <= synapses[2] <= KEY_LIMIT and synapses[1] == 0


def test_heads_too_wide_for_24_bits_are_refused() -> None:
    with pytest.raises(UserError, match="fewer timesteps"):
        RaceAttention(Sizes(1, 512, 1, 1, 128, 64, 50), Code(8, "phase"))


def test_the_coarse_descent_covers_the_reach() -> None:
    assert (2 * REACH) % COARSE == 0
