"""The fast-weight matrix: recurrent against parallel, steps against counts, bounds."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neurtransformer.spiking.attention import (
    MEAN_BITS,
    NO_FORGETTING,
    STATE_BITS,
    SpikingSelfAttention,
    age_weights,
    normalise,
    ssa_parallel,
    ssa_recurrent,
    state_format,
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
    mean = normalise(read, timesteps) * 2.0**-MEAN_BITS
    expected = ssa_parallel(query, key, value, forgetting, timesteps)
    # one rounding of the state and one of the read per key, relative to the sum of the weights
    write_shift, read_shift = state_format(timesteps, 8)
    weights = age_weights(*forgetting, length) * (query @ key.transpose(-1, -2))
    rounding = (2.0**-write_shift * length + 2.0 ** (read_shift - write_shift)) * query.sum(-1)
    bound = 0.02 + 3 * (1 + timesteps) * rounding / (weights.sum(-1) + 2.0**-write_shift)
    assert bool(((mean - expected).abs() <= bound.unsqueeze(-1) + 0.01 * timesteps).all())


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
    """The worst case: every neuron fires all the time, for 600 tokens."""
    full = torch.full((1, 1, 600, key_dim), float(timesteps))
    forgetting = torch.tensor([shift]), torch.tensor([present])
    read, state = recurrent(full.unsqueeze(0), full, -full, forgetting, timesteps)
    limit = 2 ** (STATE_BITS - 1)
    for tensor in (read, state):
        assert torch.equal(tensor, tensor.round())
        assert float(tensor.abs().max()) < limit


@given(st.integers(0, 2**23 - 1), st.integers(-(2**23) + 1, 2**23 - 1), st.sampled_from([4, 8, 16]))
def test_normalise_divides(total: int, part: int, timesteps: int) -> None:
    part = max(-timesteps * total, min(timesteps * total, part))
    mean = normalise(torch.tensor([float(part), float(total)]), timesteps) * 2.0**-MEAN_BITS
    exact = part / (total + 1)
    assert abs(float(mean[0]) - exact) <= abs(exact) / 200 + 2 * 2.0**-MEAN_BITS


def test_a_head_can_see_just_the_token_before() -> None:
    weights = age_weights(torch.tensor([0]), torch.tensor([0.0]), 5)[0]
    assert torch.equal(weights, torch.eye(5).roll(1, 0).tril(-1))


@given(st.integers(1, 5), st.integers(0, 100))
def test_attention_never_looks_ahead_and_continues_from_its_state(cut: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention = SpikingSelfAttention(32, 2, 4).eval()
    attention.shift.copy_(torch.tensor([2, 0]))
    x = torch.randn(2, 6, 32)
    with torch.no_grad():
        whole, last = attention(x)
        first, state = attention(x[:, :cut])
        rest, end = attention(x[:, cut:], state=state)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert last is not None and end is not None and torch.equal(last, end)


def test_padding_is_not_written() -> None:
    torch.manual_seed(0)
    attention = SpikingSelfAttention(32, 2, 4).eval()
    attention.shift.fill_(NO_FORGETTING)
    x = torch.randn(1, 6, 32)
    mask = torch.tensor([[0.0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        padded, _ = attention(x, mask=mask)
        alone, _ = attention(x[:, 2:])
    assert torch.equal(padded[:, 2:], alone)
