"""The fast-weight matrix: recurrent against parallel, steps against counts, bounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neurtransformer.codes import MEAN_BITS, NO_FORGETTING, STATE_BITS, level_bits, witness
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code
from neurtransformer.spiking.attention.base import normalise
from neurtransformer.spiking.attention.linear import (
    LinearAttention,
    age_weights,
    read_shift,
    ssa_parallel,
    ssa_recurrent,
    ssa_weights,
    write_shift,
)

SHIFTS = st.sampled_from([0, 1, 2, 3, 5, 7, NO_FORGETTING])
PRESENTS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
TIMESTEPS = st.sampled_from([1, 2, 3, 4, 8, 16, 64])


def counts(
    shape: tuple[int, ...], timesteps: int, signed: bool, generator: torch.Generator
) -> Tensor:
    low = -timesteps if signed else 0
    return torch.randint(low, timesteps + 1, shape, generator=generator).float()


def recurrent(
    query: Tensor, key: Tensor, value: Tensor, forgetting: tuple[Tensor, Tensor], timesteps: int
) -> tuple[Tensor, Tensor]:
    state = torch.zeros(*key.shape[:2], value.shape[-1] + 1, key.shape[-1])
    return ssa_recurrent(query, key, value, forgetting, timesteps, state)


@given(SHIFTS, PRESENTS, TIMESTEPS, st.integers(1, 12), st.integers(0, 2**16))
def test_recurrent_is_parallel_up_to_rounding(
    shift: int, present: float, timesteps: int, length: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, length, 8)
    query, key = (counts(shape, timesteps, False, generator) for _ in range(2))
    value = counts(shape, timesteps, True, generator)
    forgetting = torch.full((3,), shift), torch.full((3,), present)
    read, _ = recurrent(query.unsqueeze(0), key, value, forgetting, timesteps)
    mean = normalise(read, level_bits(timesteps)) * 2.0**-MEAN_BITS
    expected = ssa_parallel(query, key, value, forgetting, timesteps)
    # in units of the state, at every key: half of one for each time it forgot, one for the share of
    # the present, and half of what a read drops
    unit = torch.exp2(-write_shift(timesteps, forgetting[0]).float())[:, None]
    dropped = torch.exp2(read_shift(query.square()).float())
    rounding = unit * (length / 2 + 1 + dropped / 2) * query.square().sum(-1)
    weights = ssa_weights(query, key, forgetting).sum(-1)
    finer = 1 / witness(timesteps)
    least = (weights - rounding * finer).clamp_min(0) + unit * dropped * finer
    bound = 2 * rounding / least
    # and what the division is wrong by
    bound = bound + 0.01 * timesteps + 0.02
    assert bool(((mean - expected).abs() <= bound.unsqueeze(-1)).all())


def test_rounding_is_small_at_the_usual_counts() -> None:
    """Half of 128 keys silent, most others at 2 or 3 of T = 8: errors far below one count."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 128, 128)
    query, key = (torch.randn(shape, generator=generator).mul(2.5).round() for _ in range(2))
    query, key = query.clamp(0, 8), key.clamp(0, 8)
    value = torch.randn(2, 4, 128, 64, generator=generator).mul(3).round().clamp(-8, 8)
    forgetting = torch.tensor([0, 2, 5, NO_FORGETTING]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    read, _ = recurrent(query.unsqueeze(0), key, value, forgetting, 8)
    mean = normalise(read, level_bits(8)) * 2.0**-MEAN_BITS
    error = mean - ssa_parallel(query, key, value, forgetting, 8)
    assert float(error.square().mean((0, 2, 3)).sqrt().max()) < 0.05


@given(SHIFTS, PRESENTS, TIMESTEPS, st.integers(0, 2**16))
def test_weights_are_products_of_squares(
    shift: int, present: float, timesteps: int, seed: int
) -> None:
    """Against the sum written out, pair by pair."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (counts((1, 1, 4, 3), timesteps, False, generator) for _ in range(2))
    forgetting = torch.tensor([shift]), torch.tensor([present])
    weights = ssa_weights(query, key, forgetting)[0, 0]
    for i in range(4):
        for j in range(4):
            products = [float(query[0, 0, i, f] ** 2 * key[0, 0, j, f] ** 2) for f in range(3)]
            keep = 0.0 if j > i else present if j == i else (1 - 2.0**-shift) ** (i - j - 1)
            assert float(weights[i, j]) == pytest.approx(keep * sum(products), rel=1e-5)


@given(st.integers(1, 2**20))
def test_a_read_drops_the_fewest_bits_that_do(total: int) -> None:
    bits = int(read_shift(torch.tensor([[float(total), 0.0]]))[0])
    assert 2**bits >= total and (bits == 0 or 2 ** (bits - 1) < total)


@pytest.mark.parametrize("timesteps", range(1, 65))
def test_a_state_holds_what_a_head_remembers(timesteps: int) -> None:
    """2^s products of full scale and the present twice; 256 or, if there is no bit left, 32."""
    shift = torch.tensor([0, 1, 4, 7, NO_FORGETTING])
    full = timesteps**3 * torch.exp2(write_shift(timesteps, shift).double())
    least = torch.tensor([3.0, 4, 18, 130, 256]).clamp_max(256 if timesteps <= 32 else 32)
    assert bool((least * full <= 2 ** (STATE_BITS - 1)).all())


@given(SHIFTS, PRESENTS, TIMESTEPS, st.integers(0, 2**16))
def test_reads_by_spikes_equal_one_read_by_counts(
    shift: int, present: float, timesteps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 2, 6, 16)
    spikes = torch.randint(0, 2, (timesteps, *shape), generator=generator).float()
    key = counts(shape, timesteps, False, generator)
    value = counts(shape, timesteps, True, generator)
    forgetting = torch.full((2,), shift), torch.full((2,), present)
    by_counts, state = recurrent(spikes.sum(0, keepdim=True), key, value, forgetting, timesteps)
    by_spikes, same = recurrent(spikes, key, value, forgetting, timesteps)
    assert torch.equal(by_counts, by_spikes) and torch.equal(state, same)


@given(SHIFTS, PRESENTS, TIMESTEPS, st.sampled_from([1, 32, 64, 128]))
def test_everything_stays_an_integer_of_24_bits(
    shift: int, present: float, timesteps: int, key_dim: int
) -> None:
    """The worst case: every neuron fires all the time, for 300 tokens."""
    full = torch.full((1, 1, 300, key_dim), float(timesteps))
    forgetting = torch.tensor([shift]), torch.tensor([present])
    read, state = recurrent(full.unsqueeze(0), full, -full, forgetting, timesteps)
    limit = 2 ** (STATE_BITS - 1)
    for tensor in (read, state):
        assert torch.equal(tensor, tensor.round())
        assert float(tensor.abs().max()) < limit


@given(st.integers(0, 2**23 - 1), st.integers(-(2**23) + 1, 2**23 - 1), st.sampled_from([4, 8, 16]))
def test_normalise_divides(total: int, part: int, timesteps: int) -> None:
    part = max(-total, min(total, part))
    mean = (
        normalise(torch.tensor([float(part), float(total)]), level_bits(timesteps))
        * 2.0**-MEAN_BITS
    )
    exact = witness(timesteps) * part / (total + 1)
    # the middle of an interval of 1/128, and a reciprocal of 8 bits
    assert abs(float(mean[0]) - exact) <= abs(exact) / 128 + 2.0**-7.5


def test_a_head_can_see_just_the_token_before() -> None:
    weights = age_weights(torch.tensor([0]), torch.tensor([0.0]), 5)[0]
    assert torch.equal(weights, torch.eye(5).roll(1, 0).tril(-1))


SIZES = Sizes(1, 32, 2, 2, 128, 64, 50)


@given(st.integers(1, 5), st.integers(0, 100))
def test_attention_never_looks_ahead_and_continues_from_its_state(cut: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention = LinearAttention(SIZES, Code(4, "rate")).eval()
    attention.shift.copy_(torch.tensor([2, 0]))
    x = torch.randn(2, 6, 32)
    with torch.no_grad():
        whole, last = attention(x)
        first, state = attention(x[:, :cut])
        rest, end = attention(x[:, cut:], state=state)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert last is not None and end is not None and torch.equal(last[0], end[0])


def test_padding_is_not_written() -> None:
    torch.manual_seed(0)
    attention = LinearAttention(SIZES, Code(4, "rate")).eval()
    attention.shift.fill_(NO_FORGETTING)
    x = torch.randn(1, 6, 32)
    mask = torch.tensor([[0.0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        padded, _ = attention(x, mask=mask)
        alone, _ = attention(x[:, 2:])
    assert torch.equal(padded[:, 2:], alone)
