"""The race in integers: against Python's own, steps against counts, against the spiking network."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_race import by_hand

from neurtransformer.codes import COARSE_STEPS, END_BITS, FINE_STEPS, REACH, level_bits
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.integer.attention.ttfs import ABSENT, levels_of, race_weights
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.from_spiking import quantised
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.recipe import Code
from neurtransformer.spiking.attention import race as spiking_race
from neurtransformer.spiking.convert import convert

SEEDS = st.integers(0, 2**16)


@given(st.lists(st.integers(-REACH, REACH - 1), min_size=1, max_size=40), st.integers(0, 3), SEEDS)
@example([0] * 40, 0, 0)
@example([20, *[22 - 2 * END_BITS] * 30], 2, 0)
@example([20, *[21 - 2 * END_BITS] * 30], 0, 0)
@example([21, *[22 - 2 * END_BITS] * 30], 0, 0)
@example([21, *[21 - 2 * END_BITS] * 30], 0, 0)
@example([5, *[-1] * 39], 0, 0)
@example([5, *[-2] * 39], 0, 0)
def test_weights_are_the_race_by_hand(levels: list[int], absent: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-255, 256, len(levels) + absent)
    weights = race_weights(np.array([*levels, *[ABSENT] * absent]))
    o, d = by_hand(levels, values[: len(levels)].tolist())
    assert (int(weights @ values), int(weights.sum())) == (o, d)


@given(SEEDS, st.integers(1, 22))
def test_levels_and_weights_are_those_of_the_spiking_form(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    width = rng.integers(1, 2**bits + 1, 3)
    score = (
        rng.integers(-140, 141, (2, 3, 4, 30)) * width[:, None, None] - width[:, None, None] // 2
    )
    score = np.clip(score + rng.integers(-2, 3, score.shape), -(2**22), 2**22)
    ours = levels_of(score, width)
    theirs = spiking_race.levels_of(torch.tensor(score).float(), torch.tensor(width).float())
    assert (ours == theirs.numpy()).all()
    there = torch.ones(4, 30, dtype=torch.bool)
    assert (race_weights(ours) == spiking_race.race_weights(theirs, there).numpy()).all()


def test_a_thousand_equal_tokens_fit_24_bits() -> None:
    """The widest window: one token is so far ahead that all others end the race with it."""
    for level, ahead in itertools.product((0, 1), range(2 * END_BITS)):
        levels = np.full(1024, level)
        levels[0] += ahead
        d = int(race_weights(levels).sum())
        assert 1 << END_BITS <= d < (1 << END_BITS + 1) + 3 * 1024
        # values of 8 bits and sign; the divisor times the full scale of a value
        assert d * 255 <= LIMIT and d << level_bits(255) <= LIMIT


def sizes(attention: str, width: int = 129, positions: int = 8192) -> IntegerConfig:
    """T = 8 by phase, where a race has room for 129 channels a head and 8,192 tokens."""
    return IntegerConfig(
        layers=1,
        width=width,
        heads=1,
        hidden=4,
        vocabulary=9,
        positions=positions,
        timesteps=8,
        coding="phase",
        attention=attention,
        epsilon=1e-5,
        stream_bits=0,
    )


@pytest.mark.parametrize(
    ("more", "message"), [({"width": 130}, "scores of races"), ({"positions": 8193}, "tokens do")]
)
def test_only_a_race_has_the_bounds_of_a_race(more: dict[str, int], message: str) -> None:
    sizes("ttfs")
    sizes("linear", **more)
    with pytest.raises(ValueError, match=message):
        sizes("ttfs", **more)


def test_no_network_has_an_unknown_kind_of_attention() -> None:
    with pytest.raises(ValueError, match="attention must be ttfs or linear, not nonsense"):
        sizes("nonsense")


@pytest.fixture(scope="module", params=[Code(5, "phase"), Code(4, "rate"), Code(8, "phase")])
def network(request: pytest.FixtureRequest, tiny_dense_folder: object) -> tuple:
    from neurtransformer.dense import load_dense

    dense, _ = load_dense(str(tiny_dense_folder))
    for block in dense.transformer.h:
        block.attn.c_attn.weight.data.mul_(6)  # heads that prefer some tokens
    text = torch.randint(0, 4096, (2, 48), generator=torch.Generator().manual_seed(0))
    spiking = convert(dense, text, 4, "tiny", attention="ttfs", attention_code=request.param)
    return spiking, IntegerGPT2(*quantised(spiking))


def test_steps_are_counts_whatever_the_transport(network: tuple) -> None:
    _, model = network
    x = np.random.default_rng(0).integers(-(2**14), 2**14, (33, model.config.width))
    attention = model.attention[0]
    after, state = attention.counts(x[None], attention.new_state(1))
    for slots in (1, model.config.attention_code.timesteps):
        phase = slots + COARSE_STEPS + FINE_STEPS
        trace = attention.steps(x, phase, slots)
        assert (trace["residual.x"][:, -1] == after[0]).all()
        assert (trace["race.keys"][-1] == state[0][0]).all()
        assert (trace["race.values"][-1, ..., :-1] == state[1][0]).all()
        assert trace["race.spikes"].sum(1).max() == 1  # a token neuron fires once
        assert not trace["race.spikes"][:, : slots + COARSE_STEPS].any()
        for name, values in trace.items():
            assert np.abs(values).max() <= LIMIT, name


def test_token_after_token_is_all_at_once(network: tuple) -> None:
    _, model = network
    ids = torch.randint(0, 4096, (2, 12), generator=torch.Generator().manual_seed(1))
    states = model.new_states()
    parts = [model(ids[:, :5], states)]
    parts += [model(ids[:, i : i + 1], states) for i in range(5, 12)]
    assert torch.equal(torch.cat(parts, dim=1), model(ids))


@torch.no_grad()
def test_the_core_is_the_spiking_core(network: tuple) -> None:
    """On equal counts, gains and levels both give the same mean values to the last bit."""
    spiking, model = network
    ours, theirs = model.attention[1], spiking.blocks[1].attn
    rng = np.random.default_rng(0)
    most = ours.qkv.most
    counts = [rng.integers(-most, most + 1, (2, 2, 20, 32)) for _ in range(3)]
    gain, width = theirs.gains()
    saved = ours.gain, ours.width
    ours.gain, ours.width = gain.long().numpy(), width.long().numpy()
    mean, _ = ours.mix(*counts, ours.new_state(2))
    ours.gain, ours.width = saved
    floats = [torch.tensor(x).float() for x in counts]
    expected, _ = theirs.mix(*floats, False, theirs.new_state(2), None)
    assert (mean * 2.0**-8 == expected.numpy()).all()
    # those of its own integer thresholds are near
    assert np.abs(saved[0] - gain.numpy()).max() <= 3
    assert np.abs(saved[1] / width.numpy() - 1).max() < 0.01


@torch.no_grad()
def test_logits_are_near_those_of_the_spiking_network(network: tuple) -> None:
    spiking, model = network
    ids = torch.randint(0, 4096, (1, 40), generator=torch.Generator().manual_seed(2))
    ours, theirs = model(ids), spiking(ids).logits
    # at T = 4 by rate a count that falls on the other side is a quarter of full scale
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).mean() > 0.89
