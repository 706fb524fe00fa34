"""The coding neuron and the synapse in front of it, as modules: counts or steps.

Between modules travel *spikes*: in counts form a tensor (..., channels) of integers held in floats,
in steps form (T, ..., channels) of single spikes. `steps=True` selects the second; the two are
equal neuron for neuron in eval mode. In training mode gradients flow through the counts by the
surrogate of `coding.surrogate_counts`. All of it is float32 whatever type the weights have: counts,
membranes and states are whole numbers that a half has no room for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurtransformer.codes import largest_count
from neurtransformer.recipe import Coding, Digits
from neurtransformer.spiking import fused
from neurtransformer.spiking.coding import (
    counts_from_total,
    exact_type,
    limited_counts_from_total,
    phase_spikes_from_total,
    signed_spikes_from_total,
    snap_current,
    snap_weights,
    spikes_from_total,
    spikes_in,
    surrogate_counts,
)

T = TypeVar("T")


@contextmanager
def lasting() -> Iterator[None]:
    """For tensors that are kept: they have no gradient, but go with others that have, which what is
    made in inference mode does not."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def same(kept: Tensor, x: Tensor) -> bool:
    """Whether x has the type, the place and the numbers of what was kept."""
    return kept.dtype == x.dtype and kept.device == x.device and torch.equal(kept, x)


class Keeping(nn.Module):
    """A module that keeps what it has computed from its parameters, in `_kept`, which is neither
    saved with it nor copied."""

    _kept: Any = None
    _unchanging = _sure = False

    def keep(self, valid: Callable[[Any], bool], make: Callable[[], T]) -> T:
        """What was kept, made anew where there is nothing or it is no longer valid."""
        if self._kept is None or not (self._sure or valid(self._kept)):
            self._kept = None  # before there is another of its size
            with lasting():
                self._kept = make()
        self._sure = self._unchanging
        return cast("T", self._kept)

    def __getstate__(self) -> dict[str, Any]:
        left = ("_kept", "_unchanging", "_sure")
        return {name: x for name, x in self.__dict__.items() if name not in left}


@contextmanager
def unchanging(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `model` changes: what was kept is compared once, not at each call."""
    modules = [module for module in model.modules() if isinstance(module, Keeping)]
    for module in modules:
        module._unchanging, module._sure = True, False
    try:
        yield
    finally:
        for module in modules:
            module._unchanging = module._sure = False


class Curve(NamedTuple):
    """What a layer's counts follow from, and that from which it was made, to compare.

    spike_value, divisor: (channels,); the divisor is what a spike is worth, or for analogue neurons
    the threshold. offset: the center, (channels,), None where it is 0.
    """

    threshold: Tensor
    center: Tensor
    spike_value: Tensor
    divisor: Tensor
    offset: Tensor | None


class CodingNeuron(Keeping):
    """A layer of rate- or phase-coding neurons with one threshold per channel.

    The count n codes the value ``center + n * spike_value`` with ``spike_value = threshold / most``
    and `most` the largest count, so `threshold` is the largest distance from `center` that can be
    told (NeurTransformer, arXiv 2510.00133, sec. 3; soft reset and the half-threshold start as in
    QCFS, arXiv 2303.04347).

    signed: pairs of neurons, counts -T..T. per_step: most spikes of a channel in a step; 1, or 2
    for a staggered pair, counts 0..2T (see `coding`). Neither: single neurons, counts 0..T.
    coding: phase makes 2^T - 1 of T, for pairs that are signed and for single neurons.
    limit: phase-coding neurons stop after so many spikes. digits: of phase-coding neurons that do
    not.
    analogue: driven by a constant current (the code of a real-valued activation) and not by spikes.
    activation: applied to the membrane between integrating and firing.
    """

    threshold: nn.Parameter
    center: Tensor

    def __init__(
        self,
        channels: int,
        timesteps: int,
        *,
        signed: bool,
        per_step: int = 1,
        coding: Coding = "rate",
        limit: int | None = None,
        digits: Digits = "binary",
        analogue: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.signed = signed
        self.per_step = per_step
        self.coding = coding
        self.limit = limit
        self.digits = digits
        self.most = largest_count(timesteps, coding, per_step, limit)
        self.analogue = analogue
        self.activation = activation
        self.threshold = nn.Parameter(torch.ones(channels))
        self.register_buffer("center", torch.zeros(channels))

    @property
    def spike_value(self) -> Tensor:
        """What one spike is worth, (channels,), float32, always positive.

        In eval mode it has no gradient, and is the same tensor as long as the thresholds are the
        same; training or not, it is not to be changed.
        """
        return self._spike_value() if self.training else self.curve.spike_value

    @property
    def curve(self) -> Curve:
        """Of today's thresholds and centers; not in training mode."""

        def valid(kept: Curve) -> bool:
            return same(kept.threshold, self.threshold) and same(kept.center, self.center)

        def make() -> Curve:
            value, center = self._spike_value(), self.spread(self.center.float())
            divisor = value * self.most if self.analogue else value
            offset = center if bool(center.any()) else None
            return Curve(self.threshold.clone(), self.center.clone(), value, divisor, offset)

        return self.keep(valid, make)

    def _spike_value(self) -> Tensor:
        return self.spread(self.threshold.float().abs().clamp_min(1e-6) / self.most)

    def spread(self, x: Tensor) -> Tensor:
        """What is known of each threshold, to each channel: there may be fewer of the former."""
        return x

    def samples(self, x: Tensor) -> Tensor:
        """Samples (n, channels) to samples (m, thresholds)."""
        return x

    def total(self, x: Tensor) -> Tensor:
        """Membrane total in thresholds after integrating the value x of shape (..., channels)."""
        if self.activation is not None:
            x = self.activation(x)
        if self.training:
            return (x - self.spread(self.center.float())) / self.spike_value
        curve = self.curve
        z = x / curve.divisor if curve.offset is None else (x - curve.offset).div_(curve.divisor)
        return snap_current(z).mul_(self.most) if self.analogue else z

    def counts(self, z: Tensor) -> Tensor:
        """Membrane totals in thresholds to counts, of the same shape; no gradient."""
        if self.limit is not None:
            return limited_counts_from_total(z, self.timesteps, self.limit, self.signed)
        return counts_from_total(z, self.most, self.signed)

    def spikes_of(self, counts: Tensor) -> Tensor:
        """How many spikes send each count."""
        return spikes_in(counts, self.coding, self.timesteps, self.digits)

    def fused(self, x: Tensor) -> Tensor:
        """`counts(total(x))` in one pass of compiled code."""
        if self.activation is not None:
            x = self.activation(x)
        curve = self.curve
        return fused.counts(
            x, curve.offset, curve.divisor, self.most, signed=self.signed, analogue=self.analogue
        )

    def forward(self, x: Tensor, steps: bool = False) -> Tensor:
        """Values (..., channels) to counts (..., channels), or to spikes (T, ..., channels)."""
        if self.training:
            z = self.total(x)
            return surrogate_counts(z, self.counts(z.detach()), self.most, self.signed)
        with torch.no_grad():
            if not steps and self.limit is None and fused.usable(x):
                return self.fused(x)
            z = self.total(x)
            if not steps:
                return self.counts(z)
            if self.digits == "signed":
                return signed_spikes_from_total(z, self.timesteps, self.signed)
            if self.coding == "phase":
                return phase_spikes_from_total(z, self.timesteps, self.signed, self.limit)
            return spikes_from_total(z, self.timesteps, self.signed, self.per_step)


class Snapped:
    """Snapped weights, and what tells whether they are still those of a weight matrix.

    weight: float32, whatever type the sums have. What float32 holds, it also holds rounded to a
    coarser grid, and a finer grid changes nothing.

    A tensor counts how often it is changed in place, but not by way of `.data`, and it does not
    when it was made in inference mode. So a diagonal is compared as well, which meets every row and
    column: what could go unseen is a change of a few single weights in such a way.
    """

    def __init__(self, weight: Tensor, spike_value: Tensor, kind: torch.dtype, most: int) -> None:
        self.of, self.version = weight, self._version_of(weight)
        # a view from the first row on downwards, and begun anew where it leaves the matrix; as long
        # as it is held, no other tensor can come to lie where the weights lie
        self.diagonal = weight.detach().flatten()[:: weight.shape[1] + 1]
        self.diagonal_then = self.diagonal.clone()
        self.spike_value = spike_value.detach().clone()
        scaled = weight.detach().float() * spike_value.detach()
        self.weight = snap_weights(scaled.to(kind), most).float()

    @staticmethod
    def _version_of(weight: Tensor) -> int:
        return 0 if weight.is_inference() else weight._version

    def is_of(self, weight: Tensor, spike_value: Tensor) -> bool:
        """Whether they are what would be made of these."""
        return (
            weight is self.of
            and self._version_of(weight) == self.version
            and weight.data_ptr() == self.diagonal.data_ptr()
            and same(self.diagonal_then, self.diagonal)
            and same(self.spike_value, spike_value)
        )


@contextmanager
def snapping_anew(model: nn.Module) -> Iterator[None]:
    """Inside, no layer of `model` keeps its snapped weights: they are as large as the weights."""

    def forget(layer: nn.Module, *_: object) -> None:
        layer.train(layer.training)

    layers = [module for module in model.modules() if isinstance(module, SpikeLinear)]
    hooks = [layer.register_forward_hook(forget) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class SpikeLinear(Keeping):
    """Synapses from one layer of coding neurons to the membranes of the next.

    Integrates spikes to the value ``sum_i weight_ji spike_value_i n_i + bias_j``; a membrane that
    phase-coded spikes drive doubles each step. In eval mode the weights are snapped so that counts
    and steps agree exactly (`coding.snap_weights`), once, and kept until they or the spike values
    change. They are no part of a state dict or of a copy.

    most, coding: the largest count of the neurons in front, and how they send it.
    """

    def __init__(
        self, in_features: int, out_features: int, most: int, coding: Coding = "rate"
    ) -> None:
        super().__init__()
        self.most = most
        self.gain = 2.0 if coding == "phase" else 1.0
        self.exact = exact_type(in_features, most)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.normal_(self.weight, std=0.02)

    def scaled_weight(self, spike_value: Tensor) -> Tensor:
        """Weights with the presynaptic spike values folded in, (out, in), float32 or, where only
        that makes sums exact, float64. They have a gradient in training mode alone."""
        if self.training:
            return self.weight.float() * spike_value

        def valid(kept: Snapped) -> bool:
            whole = kept.weight.dtype == self.exact or not self._unchanging
            return whole and kept.is_of(self.weight, spike_value)

        def make() -> Snapped:
            snapped = Snapped(self.weight, spike_value, self.exact, self.most)
            if self._unchanging:  # for so many calls that a conversion for each would be dear
                snapped.weight = snapped.weight.to(self.exact)
            return snapped

        return self.keep(valid, make).weight.to(self.exact)

    def train(self, mode: bool = True) -> Self:
        self._kept = None  # much memory, and of no use in training
        return super().train(mode)

    def forward(self, spikes: Tensor, spike_value: Tensor, steps: bool = False) -> Tensor:
        """Spikes in counts or steps form to membrane values (..., out_features)."""
        weight = self.scaled_weight(spike_value)
        if not steps:
            return F.linear(spikes.to(weight.dtype), weight).float().add_(self.bias.float())
        membrane = torch.zeros((), device=spikes.device, dtype=weight.dtype)
        for spike in spikes.to(weight.dtype):
            membrane = membrane * self.gain + F.linear(spike, weight)
        return membrane.float() + self.bias.float()
