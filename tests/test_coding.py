"""Counts and steps are one code: neuron for neuron, for every float and every grouping in time."""

import copy
import math
import pickle
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based.surrogate import MultiLevelSpikeCount
from torch import Tensor

from neurtransformer import codes
from neurtransformer.recipe import Coding
from neurtransformer.spiking import coding
from neurtransformer.spiking.neuron import (
    CodingNeuron,
    Snapped,
    SpikeLinear,
    snapping_anew,
    unchanging,
)

TIMESTEPS = st.integers(1, 64)
SIGNED = st.booleans()
# any float32, and the edges where a count changes
TOTALS = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.integers(-70, 70).map(lambda n: n + 0.5),
    st.integers(-70, 70).map(float),
)


def totals(values: list[float]) -> Tensor:
    z = torch.tensor(values, dtype=torch.float32)
    return torch.cat([z, torch.nextafter(z, z + 1), torch.nextafter(z, z - 1)])


@given(st.lists(TOTALS, min_size=1, max_size=20), TIMESTEPS)
def test_a_staggered_pair_is_two_neurons_of_twice_the_threshold(
    values: list[float], timesteps: int
) -> None:
    z = totals(values)
    spikes = coding.spikes_from_total(z, timesteps, signed=False, per_step=2)
    assert torch.equal(spikes.sum(0), coding.counts_from_total(z, 2 * timesteps, signed=False))
    first = coding.spikes_from_total((z.double() + 0.5) / 2, timesteps, signed=False)
    second = coding.spikes_from_total((z.double() - 0.5) / 2, timesteps, signed=False)
    # float32 rounds z + 1/2 up to 1 just below; the two halves in float64 do not
    clear = z != torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
    assert torch.equal(spikes[:, clear], (first + second)[:, clear].float())


@given(st.lists(TOTALS, min_size=1, max_size=20), TIMESTEPS, SIGNED)
def test_steps_add_up_to_counts(values: list[float], timesteps: int, signed: bool) -> None:
    z = totals(values)
    spikes = coding.spikes_from_total(z, timesteps, signed)
    assert spikes.shape == (timesteps, *z.shape)
    assert set(spikes.unique().tolist()) <= ({-1.0, 0.0, 1.0} if signed else {0.0, 1.0})
    assert torch.equal(spikes.sum(0), coding.counts_from_total(z, timesteps, signed))


@given(st.lists(TOTALS, min_size=1, max_size=20), st.integers(1, 8), SIGNED)
def test_phase_spikes_are_the_digits_of_the_count(
    values: list[float], timesteps: int, signed: bool
) -> None:
    z = totals([*values, 2.0**timesteps - 1, 2.0**timesteps])
    spikes = coding.phase_spikes_from_total(z, timesteps, signed)
    assert set(spikes.unique().tolist()) <= ({-1.0, 0.0, 1.0} if signed else {0.0, 1.0})
    most = codes.largest_count(timesteps, "phase")
    counts = coding.counts_from_total(z, most, signed)
    digits = [f"{int(n):0{timesteps}b}" for n in counts.abs()]
    expected = torch.tensor([[float(digit) for digit in row] for row in digits]).T
    assert torch.equal(spikes.abs(), expected)
    assert torch.equal(spikes * counts < 0, torch.zeros_like(spikes, dtype=torch.bool))
    assert torch.equal(coding.spikes_in(counts, "phase", timesteps), expected.sum(0))


@given(st.lists(TOTALS, min_size=1, max_size=20), TIMESTEPS)
def test_facilitated_spikes_add_up_to_the_square(values: list[float], timesteps: int) -> None:
    z = totals(values)
    spikes = coding.spikes_from_total(z, timesteps, signed=False)
    counts = coding.counts_from_total(z, timesteps, signed=False)
    payloads = coding.facilitated(spikes)
    assert torch.equal(payloads.sum(0), counts**2)
    assert torch.equal(coding.facilitated(counts[None]), counts[None] ** 2)
    # the n-th spike of the first neuron
    sent = payloads[:, 0][spikes[:, 0] > 0]
    assert sent.tolist() == [2 * n + 1 for n in range(int(counts[0]))]


@given(st.lists(st.floats(-80, 80, width=32), min_size=1), TIMESTEPS)
def test_count_is_the_formula(values: list[float], timesteps: int) -> None:
    z = torch.tensor(values, dtype=torch.float64)
    expected = torch.floor(z + 0.5).clamp(0, timesteps)
    assert torch.equal(coding.counts_from_total(z, timesteps, signed=False), expected)
    both = coding.counts_from_total(z, timesteps, signed=False) - coding.counts_from_total(
        -z, timesteps, signed=False
    )
    assert torch.equal(coding.counts_from_total(z, timesteps, signed=True), both)


@given(
    st.lists(st.floats(-(2.0**17), 2.0**17, width=32), min_size=1),
    st.integers(1, 16),
    st.integers(1, 16),
    SIGNED,
)
def test_neurons_that_stop_keep_the_leading_digits(
    values: list[float], timesteps: int, limit: int, signed: bool
) -> None:
    """Counts, against strings of binary digits; and steps, spike by spike."""
    limit = min(limit, timesteps)
    z = torch.tensor([*values, 0.0, 0.49, 0.5, 2.0**timesteps - 0.5, -(2.0**timesteps)])
    counts = coding.limited_counts_from_total(z, timesteps, limit, signed)

    def kept(total: float) -> int:
        whole = min(max(math.floor(total + 0.5), 0), 2**timesteps - 1)
        digits = f"{whole:0{timesteps}b}"
        ones = [i for i, digit in enumerate(digits) if digit == "1"][:limit]
        return sum(2 ** (timesteps - 1 - i) for i in ones)

    # the half is added in float32, as the neurons do it
    half = [(float(x.abs() + 0.5) - 0.5) * (1 if x >= 0 else -1) for x in z]
    expected = [(kept(x) - kept(-x) if signed else kept(x)) for x in half]
    assert counts.tolist() == expected
    most = codes.largest_count(timesteps, "phase", limit=limit)
    assert counts.abs().max() <= most == kept(2.0**timesteps)
    spikes = coding.phase_spikes_from_total(z, timesteps, signed, limit)
    assert spikes.abs().sum(0).max() <= limit
    digits = 2.0 ** torch.arange(timesteps - 1, -1, -1)
    assert torch.equal((spikes * digits[:, None]).sum(0), counts)
    assert torch.equal(coding.spikes_in(counts, "phase", timesteps), spikes.abs().sum(0))


@given(st.lists(st.floats(-3, 12, width=32), min_size=1), st.integers(1, 10))
def test_surrogate_is_spikingjellys(values: list[float], timesteps: int) -> None:
    z = torch.tensor(values, requires_grad=True)
    other = z.detach().clone().requires_grad_()
    counts = coding.counts_from_total(z.detach(), timesteps, signed=False)
    coding.surrogate_counts(z, counts, timesteps, signed=False).sum().backward()
    MultiLevelSpikeCount(timesteps, grad_window=(-0.5, timesteps + 0.5))(other).sum().backward()
    edge = ((z - (timesteps + 0.5)).abs() < 1e-6) | ((z + 0.5).abs() < 1e-6)
    assert z.grad is not None and other.grad is not None
    assert torch.equal(z.grad[~edge], other.grad[~edge])


@given(st.lists(st.floats(-90, 90, width=32), min_size=1), TIMESTEPS, SIGNED)
def test_surrogate_is_one_where_a_neuron_can_count(
    values: list[float], most: int, signed: bool
) -> None:
    z = torch.tensor([*values, 0.25, -most - 0.75, -most - 0.25, most + 0.25, most + 0.75])
    z.requires_grad_()
    found = coding.counts_from_total(z.detach(), most, signed)
    counts = coding.surrogate_counts(z, found, most, signed)
    assert torch.equal(counts, coding.counts_from_total(z, most, signed))
    counts.sum().backward()
    inside = (z > (-most if signed else 0) - 0.5) & (z < most + 0.5)
    assert z.grad is not None and torch.equal(z.grad, inside.float())


@given(st.integers(1, 96), st.integers(1, 8), TIMESTEPS, st.integers(0, 2**16), st.floats(-12, 6))
def test_integration_is_exact_in_any_order(
    inputs: int, outputs: int, timesteps: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 10.0**scale
    snapped = coding.snap_weights(weight, timesteps)
    spikes = torch.randint(-1, 2, (timesteps, inputs), generator=generator).float()
    at_once = spikes.sum(0) @ snapped.T
    one_by_one = torch.zeros(outputs)
    for spike in spikes[torch.randperm(timesteps, generator=generator)]:
        one_by_one = one_by_one + spike @ snapped.T
    exact = (spikes.sum(0).double() @ snapped.double().T).float()
    assert torch.equal(at_once, exact) and torch.equal(one_by_one, exact)
    error = (snapped - weight).abs().amax(1)
    assert bool((error <= weight.abs().amax(1) * inputs * timesteps * 2.0**-22).all())


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1), st.one_of(TIMESTEPS, st.just(255)))
def test_constant_current_adds_up_exactly(values: list[float], timesteps: int) -> None:
    current = coding.snap_current(torch.tensor(values))
    membrane = torch.zeros_like(current)
    for _ in range(timesteps):
        membrane = membrane + current
    assert torch.equal(membrane, current * timesteps)
    # hardly rounded, up to four times what saturates a neuron
    expected = torch.tensor([*values, 3.7, -3.7]).clamp(-4, 4)
    snapped = coding.snap_current(torch.tensor([*values, 3.7, -3.7]))
    assert bool(((snapped - expected).abs() <= 2.0**-15).all())


CODES = st.one_of(
    st.tuples(st.integers(1, 64), st.just("rate")), st.tuples(st.integers(1, 8), st.just("phase"))
)


@given(CODES, st.integers(0, 2**16), SIGNED)
def test_layer_of_neurons_steps_equal_counts(
    code: tuple[int, Coding], seed: int, signed: bool
) -> None:
    timesteps, name = code
    torch.manual_seed(seed)
    first = CodingNeuron(12, timesteps, signed=True, coding=name, analogue=True).eval()
    synapse = SpikeLinear(12, 9, first.most, name).eval()
    gelu = torch.nn.GELU("tanh")
    second = CodingNeuron(9, timesteps, signed=signed, coding=name, activation=gelu).eval()
    with torch.no_grad():
        first.threshold.uniform_(0.1, 3)
        first.center.normal_()
        second.threshold.uniform_(0.01, 0.2)
        second.center.normal_(std=0.05)
        synapse.bias.normal_()
        x = torch.randn(5, 12) * 2
        counts, steps = first(x), first(x, steps=True)
        weight = 1.0 if name == "rate" else 2.0 ** torch.arange(timesteps).flip(0)[:, None, None]
        assert torch.equal((steps * weight).sum(0), counts)
        membrane = synapse(counts, first.spike_value)
        assert torch.equal(synapse(steps, first.spike_value, steps=True), membrane)
        assert torch.equal((second(membrane, steps=True) * weight).sum(0), second(membrane))


@given(CODES, st.integers(0, 2**16), SIGNED, st.sampled_from([1, 2]))
def test_neurons_count_in_training_as_they_do_in_use(
    code: tuple[int, Coding], seed: int, signed: bool, per_step: int
) -> None:
    """And pass gradients on; what drives an analogue neuron is rounded in use alone."""
    timesteps, name = code
    if signed or name == "phase":
        per_step = 1
    torch.manual_seed(seed)
    x = torch.randn(20, 7, requires_grad=True)
    neuron = CodingNeuron(7, timesteps, signed=signed, per_step=per_step, coding=name)
    with torch.no_grad():
        neuron.threshold.uniform_(0.5, 3)
        neuron.center.normal_()
    counts = neuron.train()(x)
    assert torch.equal(counts, neuron.eval()(x))
    expected = (x - neuron.center) * codes.largest_count(timesteps, name, per_step)
    expected = coding.counts_from_total(expected / neuron.threshold, neuron.most, signed)
    assert float((counts - expected).detach().abs().max()) <= 1  # they divide in another order
    assert float(counts.detach().abs().max()) <= neuron.most
    counts.sum().backward()
    assert x.grad is not None and bool((x.grad >= 0).all())
    analogue = CodingNeuron(7, timesteps, signed=signed, coding=name, analogue=True)
    analogue.load_state_dict(neuron.state_dict())
    off = analogue.train()(x.detach()) - analogue.eval()(x.detach())
    assert float(off.abs().max()) <= 1 and float((off != 0).float().mean()) < 0.15


def test_a_spike_is_never_worth_nothing_or_less() -> None:
    """Whatever training made of a threshold."""
    neuron = CodingNeuron(3, 4, signed=True).eval()
    with torch.no_grad():
        neuron.threshold.copy_(torch.tensor([-2.0, 0.0, 8.0]))
        assert neuron.spike_value.tolist() == pytest.approx([0.5, 0.25e-6, 2.0])
        assert neuron(torch.tensor([1.0, 0.0, 4.0])).tolist() == [2, 0, 2]


def changed_by_an_optimizer(synapse: SpikeLinear) -> None:
    synapse.weight.grad = torch.ones_like(synapse.weight)
    torch.optim.SGD([synapse.weight], lr=0.1).step()


def changed_in_one_place(synapse: SpikeLinear) -> None:
    with torch.no_grad():
        synapse.weight[1, 3] += 0.5


def changed_in_inference_mode(synapse: SpikeLinear) -> None:
    with torch.inference_mode():
        synapse.weight[1, 3] += 0.5


def moved_and_back(synapse: SpikeLinear) -> None:
    """To where they lay, rounded."""
    synapse.half()
    synapse.float()


def replaced(synapse: SpikeLinear) -> None:
    synapse.weight = torch.nn.Parameter(synapse.weight.detach() * 2)


CHANGES = [
    changed_by_an_optimizer,
    changed_in_one_place,
    changed_in_inference_mode,
    moved_and_back,
    replaced,
    lambda synapse: synapse.double(),
    lambda synapse: synapse.bfloat16(),
    lambda synapse: synapse.load_state_dict({k: 2 * v for k, v in synapse.state_dict().items()}),
    lambda synapse: synapse.load_state_dict(
        {k: 2 * v for k, v in synapse.state_dict().items()}, assign=True
    ),
    lambda synapse: synapse.weight.data.mul_(2),
    lambda synapse: synapse.weight.data[2].mul_(2),
    lambda synapse: synapse.weight.data[:, 5].mul_(2),
    lambda synapse: setattr(synapse.weight, "data", 2 * synapse.weight.data),
    lambda synapse: synapse.train(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_snapped_weights_are_never_those_of_other_weights(change: Any, mode: Any) -> None:
    torch.manual_seed(0)
    synapse, worth = SpikeLinear(7, 11, 8).eval(), torch.rand(7)
    with mode():
        before = synapse.scaled_weight(worth)
        assert synapse.scaled_weight(worth.clone()) is before
        assert not torch.equal(synapse.scaled_weight(worth * 1.5), before)
        synapse.scaled_weight(worth)
    change(synapse)
    expected = synapse.weight.detach().float() * worth
    if not synapse.training:
        expected = coding.snap_weights(expected, 8)
    with mode():
        assert torch.equal(synapse.scaled_weight(worth), expected)
        worth.mul_(2)
        expected = expected * 2
        assert torch.equal(synapse.scaled_weight(worth), expected)


def test_snapped_weights_made_in_inference_mode_serve_gradients() -> None:
    synapse, worth, spikes = SpikeLinear(7, 11, 8).eval(), torch.rand(7), torch.ones(2, 7)
    with torch.inference_mode():
        synapse(spikes, worth)
    spikes.requires_grad_()
    synapse(spikes, worth).sum().backward()
    assert spikes.grad is not None and synapse.bias.grad is not None


def test_weights_born_in_inference_mode_are_snapped_too() -> None:
    with torch.inference_mode():
        synapse, worth = SpikeLinear(7, 11, 8).eval(), torch.rand(7)
        synapse.scaled_weight(worth)
        synapse.weight.mul_(2)
        expected = coding.snap_weights(synapse.weight * worth, 8)
        assert torch.equal(synapse.scaled_weight(worth), expected)


def test_snapped_weights_are_neither_saved_nor_copied() -> None:
    synapse, worth = SpikeLinear(7, 11, 8).eval(), torch.rand(7)
    kept = synapse.scaled_weight(worth)
    assert synapse.state_dict().keys() == {"weight", "bias"}
    copied = copy.deepcopy(synapse)
    assert len(pickle.dumps(synapse)) == len(pickle.dumps(copied))
    assert copied._kept is None and synapse.scaled_weight(worth) is kept
    with torch.no_grad():
        copied.weight.mul_(2)
    assert torch.equal(copied.scaled_weight(worth), 2 * kept)


@given(
    st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(-100, 20)), min_size=1, max_size=9),
    st.integers(1, 4095),
)
def test_float32_holds_weights_that_were_snapped_in_float64(
    numbers: list[tuple[float, int]], most: int
) -> None:
    weight = torch.tensor([[x * 2.0**exponent for x, exponent in numbers]], dtype=torch.float32)
    snapped = coding.snap_weights(weight.double(), most)
    assert torch.equal(snapped.float().double(), snapped)


def test_while_nothing_changes_weights_are_kept_in_the_type_of_their_sums() -> None:
    synapse, worth = SpikeLinear(1024, 3, 255).eval(), torch.rand(1024)
    assert synapse.exact == torch.float64
    short, kept = synapse.scaled_weight(worth), cast("Snapped", synapse._kept).weight
    assert (short.dtype, kept.dtype) == (torch.float64, torch.float32)
    with unchanging(synapse):
        long = synapse.scaled_weight(worth)
        assert synapse.scaled_weight(worth) is long
    assert torch.equal(short, long) and long.dtype == torch.float64


def test_snapped_weights_are_let_go_where_memory_is_short() -> None:
    layers = torch.nn.ModuleList(SpikeLinear(7, 7, 8) for _ in range(2)).eval()
    spikes, worth = torch.ones(2, 7), torch.rand(7)
    with snapping_anew(layers):
        outputs = [layer(spikes, worth) for layer in layers]
        assert all(layer._kept is None for layer in layers)
    for layer, output in zip(layers, outputs, strict=True):
        assert torch.equal(layer(spikes, worth), output) and layer._kept is not None
