"""Compiled code and tensor operations give the same numbers, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurtransformer.codes import KEY_LIMIT, level_bits
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code, Coding
from neurtransformer.spiking import fused
from neurtransformer.spiking.attention.ttfs import RaceAttention
from neurtransformer.spiking.neuron import CodingNeuron, unchanging

pytestmark = pytest.mark.skipif(
    fused.library() is None, reason="fused.c was not compiled: install with a C compiler"
)


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing is compiled."""
    monkeypatch.setattr(fused, "library", lambda: None)


def bits_of(x: Tensor) -> list[int]:
    return x.contiguous().view(torch.int32).flatten().tolist()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 70),
    rows=st.integers(0, 5),
    timesteps=st.integers(1, 8),
    coding=st.sampled_from(["rate", "phase"]),
    signed=st.booleans(),
    analogue=st.booleans(),
    centred=st.booleans(),
    grid=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_counts_of_neurons(
    seed: int,
    channels: int,
    rows: int,
    timesteps: int,
    coding: Coding,
    signed: bool,
    analogue: bool,
    centred: bool,
    grid: float,
) -> None:
    torch.manual_seed(seed)
    neuron = CodingNeuron(channels, timesteps, signed=signed, coding=coding, analogue=analogue)
    with torch.no_grad():
        own = torch.rand(channels) * 3 - 1
        neuron.threshold.copy_(torch.full_like(own, neuron.most) if grid else own)
        if centred:
            neuron.center.copy_(torch.randn(channels))
    neuron.eval()
    x = torch.randn(rows, 2, channels) * 10 ** (4 * torch.rand(()) - 2)
    if grid:  # totals that are ties
        x = (x / grid).round() * grid
    edges = [0.0, -0.0, 1e30, -1e30, float("inf"), float("-inf"), 1e-40]
    x.view(-1)[: len(edges)] = torch.tensor(edges)[: x.numel()]
    with torch.no_grad():
        assert bits_of(neuron(x)) == bits_of(neuron.counts(neuron.total(x)))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 3),
    dim=st.sampled_from([1, 2, 7, 16, 64]),
    past=st.integers(0, 40),
    timesteps=st.integers(1, 8),
    spread=st.sampled_from([0.0, 0.3, 3.0, 300.0, 1e9]),
    innate=st.booleans(),
    padded=st.booleans(),
)
def test_races_of_one_token(
    seed: int,
    batch: int,
    kv_heads: int,
    shared: int,
    dim: int,
    past: int,
    timesteps: int,
    spread: float,
    innate: bool,
    padded: bool,
) -> None:
    torch.manual_seed(seed)
    heads = kv_heads * shared
    sizes = Sizes(
        layers=1, width=heads * dim, hidden=4, heads=heads, kv_heads=kv_heads, context=64,
        vocabulary=8, gated=False,
    )  # fmt: skip
    attention = RaceAttention(sizes, Code(timesteps, "phase"), innate=innate).eval()
    most = attention.query.most

    def counts(n: int, *shape: int) -> Tensor:
        return torch.randint(-most, most + 1, (batch, n, *shape, dim)).float()

    with torch.no_grad():
        attention.scaling.fill_(spread * dim**-0.5)
        for part in (attention.query, attention.key):
            part.threshold.copy_(torch.rand_like(part.threshold) + 0.1)
        if innate:
            attention.first_key.copy_(torch.randn(kv_heads * dim))  # type: ignore[union-attr]
            attention.first_value.copy_(torch.randn(kv_heads * dim))  # type: ignore[union-attr]
        limit = min(most, 2**15 - 1)
        state = attention.new_state(batch)
        keys = torch.randint(-KEY_LIMIT, KEY_LIMIT + 1, (batch, kv_heads, past, dim))
        values = torch.randint(-limit, limit + 1, (batch, kv_heads, past, dim))
        written = torch.rand(batch, past) < 0.7 if padded else torch.ones(batch, past).bool()
        state = (
            torch.cat([state[0], keys.to(state[0])], -2),
            torch.cat([state[1], values.to(state[1])], -2),
            torch.cat([state[2], written], -1),
        )
        token = counts(heads, 1), counts(kv_heads, 1), counts(kv_heads, 1)
        mask = (torch.rand(batch, 1) < 0.5).float() if padded else None
        assert attention.fusible(token[0])
        got, after = attention.mix(*token, False, state, mask)
        # whoever listens to the token neurons gets tensor operations
        hook = attention.neurons.register_forward_hook(lambda *_: None)
        wanted, after_too = attention.mix(*token, False, state, mask)
        hook.remove()
    assert torch.equal(got, wanted)
    assert all(torch.equal(a, b) for a, b in zip(after, after_too, strict=True))


def test_the_widest_state_at_full_scale() -> None:
    """Sums of 2,048 token neurons of equal score and the largest values, 8 bits each."""
    past, dim, bits = 2048, 64, level_bits(255)
    query = torch.full((1, 1, 1, dim), 255.0)
    synapses = torch.full((1, 1, past, dim), 127, dtype=torch.int8)
    values = torch.full((1, 1, past, dim), -255, dtype=torch.int16)
    there = torch.ones(1, past).bool()
    reciprocals = torch.ones(128)
    width = torch.tensor([float(2**23 - 1)])
    out = fused.races(query, synapses, values, width, there, reciprocals, bits)
    assert bool((out < 0).all()) and len(out.unique()) == 1


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="channels"):
        fused.counts(x, None, torch.ones(4), 1, signed=False, analogue=False)
    with pytest.raises(ValueError, match="fit each other"):
        fused.races(
            torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4),
            torch.ones(1), torch.ones(1, 2).bool(), torch.ones(128), 5,
        )  # fmt: skip


def test_only_plain_tensors_of_a_cpu() -> None:
    assert fused.usable(torch.zeros(1))
    assert not fused.usable(torch.zeros(1, dtype=torch.float64))
    assert not fused.usable(torch.zeros(1, device="meta"))
    assert not fused.usable(torch.nn.Parameter(torch.zeros(1)))


def test_without_a_compiler_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron = CodingNeuron(5, 4, signed=True).eval()
    x = torch.randn(3, 5)
    compiled = neuron(x)
    without(monkeypatch)
    assert not fused.usable(x) and torch.equal(neuron(x), compiled)


def test_what_is_kept_is_compared_again_afterwards() -> None:
    neuron = CodingNeuron(3, 4, signed=True).eval()
    x = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad(), unchanging(neuron):
        before = neuron(x)
    with torch.no_grad():
        neuron.threshold.mul_(2)
        assert not torch.equal(neuron(x), before)
        # and once at the beginning of each
        neuron.threshold.div_(2)
        with unchanging(neuron):
            assert torch.equal(neuron(x), before)
