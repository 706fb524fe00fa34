"""Rate coding as pure functions: membrane totals, spike counts, spike trains.

A rate-coding neuron integrates for T steps and then fires for T steps with soft reset (the
threshold is subtracted). With the membrane total ``z``, in thresholds, its spike count is

    count(z) = clip(floor(z + 1/2), 0, T)

so the same layer exists twice: as *counts* (one number per neuron) and as *steps* (one spike per
neuron and time step). Both start from the same ``z``; `spikes_from_total(z).sum(0)` equals
`counts_from_total(z)` for every float, which `tests/test_coding.py` proves.

A signed population is a pair of such neurons, driven by ``z`` and ``-z``; its count is the
difference, -T..T, and ties round away from zero.
"""

from typing import Any

import torch
from spikingjelly.activation_based.neuron import IFNode
from torch import Tensor

FLOAT32_BITS = 24
CURRENT_BITS = 14


def counts_from_total(z: Tensor, timesteps: int, signed: bool) -> Tensor:
    """Spike counts of rate-coding neurons; no gradient.

    z: membrane totals after integration, in units of the threshold, any shape.
    Returns integers as floats of the same shape, 0..T, or -T..T for a signed population.
    """
    if signed:
        return (z.abs() + 0.5).floor_().clamp_(max=timesteps).copysign_(z)
    return (z + 0.5).floor_().clamp_(0, timesteps)


def spikes_from_total(z: Tensor, timesteps: int, signed: bool) -> Tensor:
    """The same neurons step by step: the firing phase, by SpikingJelly's soft-reset `IFNode`.

    Returns spikes of shape (T, *z.shape): 0 or 1, or -1, 0, 1 for a signed population.
    """
    if signed:
        positive = spikes_from_total(z, timesteps, signed=False)
        return positive - spikes_from_total(-z, timesteps, signed=False)
    neuron = IFNode(v_threshold=1.0, v_reset=None, step_mode="s")
    neuron.v = z + 0.5
    silence = torch.zeros_like(z)
    return torch.stack([neuron(silence) for _ in range(timesteps)])


def facilitated(spikes: Tensor) -> Tensor:
    """What spikes deposit through synapses that facilitate linearly: n spikes deposit n^2.

    The n-th spike of a neuron weighs 2n - 1, and 1 + 3 + 5 + ... + (2n - 1) = n^2. spikes: of
    unsigned neurons, (phase, ...), one a step or graded; a graded spike of m is m of them at once,
    so a single one deposits m^2. Returns payloads of the same shape.
    """
    return spikes * (2 * spikes.cumsum(0) - spikes)


class _SurrogateCount(torch.autograd.Function):
    """Counts forward; backward the sum over the T levels of a rectangular surrogate of width one.

    The T rectangles tile the firing range, so their sum is 1 inside it and 0 outside: what
    SpikingJelly's `MultiLevelSpikeCount` uses for unsigned counts.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, timesteps: int, signed: bool) -> Tensor:
        low = -timesteps - 0.5 if signed else -0.5
        ctx.save_for_backward((z > low) & (z < timesteps + 0.5))
        return counts_from_total(z, timesteps, signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def surrogate_counts(z: Tensor, timesteps: int, signed: bool) -> Tensor:
    """`counts_from_total` with a surrogate gradient, for training."""
    return _SurrogateCount.apply(z, timesteps, signed)


def snap_weights(weight: Tensor, timesteps: int) -> Tensor:
    """Round each row of a weight matrix to a grid on which float32 sums of spikes are exact.

    weight: (out, in). The grid of row j is the power of two g with T * sum|w_j| <= 2^23 g. Every
    partial sum of ``w_ji * n_i`` with abs(n_i) <= T, in any order and any grouping in time, is then
    a multiple of g below 2^24 g, hence a float32: integrating spike by spike and multiplying by the
    counts at once give the same number, not nearly the same. What is lost is below 2^-13 of the
    largest weight for rows of up to about 1,000 inputs.
    """
    bound = timesteps * weight.abs().sum(dim=1, keepdim=True).clamp_min(1e-30)
    grid = torch.exp2(torch.ceil(torch.log2(bound)) - (FLOAT32_BITS - 1))
    return torch.round(weight / grid) * grid


def snap_current(current: Tensor) -> Tensor:
    """Round an analogue input current, in thresholds per step, so that T of them add up exactly.

    The range of four thresholds per step is four times what saturates a neuron.
    """
    scale = float(1 << CURRENT_BITS)
    return (current.clamp(-4.0, 4.0) * scale).round_() / scale
