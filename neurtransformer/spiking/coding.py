"""Rate and phase coding as pure functions: membrane totals, spike counts, spike trains.

A rate-coding neuron integrates for T steps and then fires for T steps with soft reset (the
threshold is subtracted). With the membrane total ``z``, in thresholds, its spike count is

    count(z) = clip(floor(z + 1/2), 0, T)

so the same layer exists twice: as *counts* (one number per neuron) and as *steps* (one spike per
neuron and time step). Both start from the same ``z``; `spikes_from_total(z).sum(0)` equals
`counts_from_total(z)` for every float, which `tests/test_coding.py` proves.

A channel may hold a pair of such neurons. A *signed* pair is driven by ``z`` and ``-z``; its count
is the difference, -T..T, and ties round away from zero. A *staggered* pair counts one way: both
have twice the threshold, the second starts half of it lower, so that they take turns and together
count 0..2T, two spikes a step at most. In all functions `most` is the largest count of a channel.

*Phase coding* sends a count 0..2^T - 1 by its binary digits: the spike of step t = 0..T-1 weighs
2^(T-1-t). The neuron that sends it fires at a threshold that is halved each step, from 2^(T-1)
times its own; the one that receives it doubles its membrane each step before it adds what arrives
(weighted spikes, Kim et al. 2018). Same steps, 2^T levels for T + 1.

A phase-coding neuron may stop after k spikes: its count is then the k leading digits of what it
would have been, a floating-point number in spikes. Many steps give it range, few spikes precision
(FS neurons, Stoeckl and Maass 2021, arXiv 2002.00860, choose both freely).

Or it may send *signed digits*, -1, 0 or 1, of which fewer are not 0 (`signed_digit`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from neurtransformer.errors import UserError
from neurtransformer.recipe import Coding, Digits

FLOAT32_BITS = 24
CURRENT_BITS = 14

PART = 2**17
"""Neurons that are simulated together: what they hold stays in a processor's cache."""


def counts_from_total(z: Tensor, most: int, signed: bool) -> Tensor:
    """Spike counts of rate-coding neurons; no gradient.

    z: membrane totals after integration, in units of the threshold, any shape.
    Returns integers as floats of the same shape, 0..most, or -most..most for a signed pair.
    """
    if signed:
        return z.abs().add_(0.5).floor_().clamp_(max=most).copysign_(z)
    return (z + 0.5).floor_().clamp_(0, most)


def leading_digits(counts: Tensor, spikes: int) -> Tensor:
    """Whole numbers 0..2^23 in float32 without all but their `spikes` leading binary digits that
    are 1."""
    left, kept = counts, torch.zeros_like(counts)
    for _ in range(spikes):
        # the largest power of two that is in it: a float without its fraction; 0 of 0
        digit = (left.view(torch.int32) & 0x7F800000).view(torch.float32)
        kept, left = kept + digit, left - digit
    return kept


def limited_counts_from_total(z: Tensor, timesteps: int, spikes: int, signed: bool) -> Tensor:
    """Counts of phase-coding neurons that stop after so many spikes; no gradient.

    z: as in `counts_from_total`. Returns integers as floats, 0..2^T - 2^(T - spikes), or of both
    signs for a pair.
    """
    size = counts_from_total(z.abs() if signed else z, 2**timesteps - 1, signed=False)
    kept = leading_digits(size.float(), spikes)
    return kept.copysign(z) if signed else kept


def soft_reset_neuron() -> Any:
    """SpikingJelly's `IFNode` with soft reset and a threshold of 1, which steps are made of.

    SpikingJelly is imported here and nowhere else: counts, all of training among them, do without.
    Raises UserError if it is not installed.
    """
    try:
        from spikingjelly.activation_based.neuron import IFNode
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "spikingjelly":
            raise  # installed, but something that it needs is not
        raise UserError(
            "SpikingJelly, which simulates time steps, is not installed: type "
            "`neurtx install spikingjelly`"
        ) from error
    return IFNode(v_threshold=1.0, v_reset=None, step_mode="s")


def spikes_from_total(z: Tensor, timesteps: int, signed: bool, per_step: int = 1) -> Tensor:
    """The same neurons step by step: the firing phase, by SpikingJelly's soft-reset `IFNode`.

    per_step: 2 for a staggered pair. Its two neurons take turns at every multiple of z's threshold,
    which is one soft-reset neuron that is asked twice a step.
    Returns spikes of shape (T, *z.shape): 0..per_step, or -1, 0, 1 for a signed pair.
    Raises UserError without SpikingJelly.
    """
    if signed:
        # the neuron of the other sign starts below its threshold, and nothing drives it
        return spikes_from_total(z.abs(), timesteps, signed=False).mul_(z.sign())
    neuron = soft_reset_neuron()
    spikes = z.new_empty(timesteps, z.numel())
    for total, sent in zip(z.flatten().split(PART), spikes.split(PART, dim=1), strict=True):
        neuron.v = total + 0.5
        silence = torch.zeros_like(total)
        for step in sent:
            step.copy_(neuron(silence))
            for _ in range(per_step - 1):
                step.add_(neuron(silence))
    return spikes.view(timesteps, *z.shape)


def signed_digit(v: Tensor, weight: int) -> Tensor:
    """What neurons with signed digits send in the step whose spikes weigh `weight`: -1, 0 or 1.

    v: membranes ``r + rest`` in thresholds, with a whole number r, what is left to send of the
    count, and 0 <= rest < 1. Such a neuron fires the sign of r if ``|r| > 2/3 weight``, and a spike
    takes `weight` from its membrane. That is ``r >= m + 1`` or ``r <= -(m + 1)`` with
    ``m = floor(2/3 weight)``, since no r is 2/3 of a power of two, or of a membrane v >= m + 1 or
    v < -m.

    All of a count is sent. Before the step of weight w, ``|r| <= 2 w - 1``: so it is at first, for
    a count below 2^T, and so it stays. Who fires has ``|r| - w`` left, which is at most ``w - 1``,
    and more than ``2/3 w - w``. Who does not has at most 2/3 w. Whole numbers all, they are
    ``w - 1`` at most in magnitude, the bound of the next step, in which w is half as large. Behind
    the last step, w = 1, that is 0.

    Where ``|r| <= 4/3 w``, who fires has at most w / 3 left, which is two thirds of the next w: the
    next digit is 0. And who does not fire has at most 2/3 w, four thirds of the next, so that it is
    as true then. With no two digits side by side that are not 0 this is the non-adjacent form,
    which has the fewest such digits of all (Reitwieser 1960). It is that of all counts up to
    2^(T+1) / 3; larger ones begin with ones until they are there.
    """
    most = 2 * weight // 3
    return (v >= most + 1).to(v.dtype) - (v < -most).to(v.dtype)


def signed_spikes_from_total(z: Tensor, timesteps: int, signed: bool) -> Tensor:
    """Phase-coding neurons with signed digits step by step. Arguments and result are as in
    `phase_spikes_from_total`; single neurons send -1 too.

    No SpikingJelly here: its neurons fire at the very threshold that a spike takes away, these at
    two thirds of it. A membrane that is lifted by the third in each step would be rounded.
    """
    size = z.abs() if signed else z
    # without a count nothing is left to send, though the membrane is below 0
    v = (size + 0.5).clamp(0.0, 2.0**timesteps - 0.5)
    spikes = z.new_empty(timesteps, *z.shape)
    for step, sent in enumerate(spikes):
        weight = 2 ** (timesteps - 1 - step)
        sent.copy_(signed_digit(v, weight))
        # exact: what is half of `weight` to twice as much loses no bit by it (Sterbenz), and so
        # much a membrane has that fires, but for -1 in the last step, after which none matters
        v = v - sent * weight
    return spikes.mul_(z.sign()) if signed else spikes


def phase_spikes_from_total(
    z: Tensor, timesteps: int, signed: bool, limit: int | None = None
) -> Tensor:
    """Phase-coding neurons step by step: the binary digits of their count, the highest first.

    Soft reset, and a threshold that halves each step; SpikingJelly's `IFNode` asked with the
    membrane in units of that threshold. limit: spikes after which a neuron is silent. Returns
    spikes (T, *z.shape): 0, 1, or -1 too for a pair. Raises UserError without SpikingJelly.
    """
    if signed:
        # the neuron of the other sign never reaches its threshold: see `spikes_from_total`
        return phase_spikes_from_total(z.abs(), timesteps, False, limit).mul_(z.sign())
    neuron = soft_reset_neuron()
    spikes = z.new_empty(timesteps, z.numel())
    for total, sent in zip(z.flatten().split(PART), spikes.split(PART, dim=1), strict=True):
        # a neuron that fires in every step, 2^T - 1, is full
        neuron.v = (total + 0.5).clamp(max=2.0**timesteps - 0.5) * 2.0 ** (1 - timesteps)
        silence, so_far = torch.zeros_like(total), torch.zeros_like(total)
        for step in sent:
            fired = neuron(silence)
            if limit is not None:
                fired = fired * (so_far < limit)
                so_far += fired
            step.copy_(fired)
            neuron.v = neuron.v * 2
    return spikes.view(timesteps, *z.shape)


def spikes_in(counts: Tensor, coding: Coding, timesteps: int, digits: Digits = "binary") -> Tensor:
    """How many spikes send each count: the count itself, or its digits that are not 0."""
    left = counts.abs()
    if coding == "rate":
        return left
    spikes = torch.zeros_like(left)
    if digits == "signed":
        for step in range(timesteps):
            weight = 2 ** (timesteps - 1 - step)
            fires = 3 * left > 2 * weight
            spikes += fires
            # of what is left the sign does not matter: that of its digits is turned with it
            left = torch.where(fires, (left - weight).abs(), left)
        return spikes
    for _ in range(timesteps):
        spikes += left % 2
        left = torch.floor(left / 2)
    return spikes


def facilitated(spikes: Tensor) -> Tensor:
    """What spikes deposit through synapses that facilitate linearly: n spikes deposit n^2.

    The n-th spike of a neuron weighs 2n - 1, and 1 + 3 + 5 + ... + (2n - 1) = n^2. spikes: of
    unsigned neurons, (phase, ...), one a step or graded; a graded spike of m is m of them at once,
    so a single one deposits m^2. Returns payloads of the same shape.
    """
    return spikes * (2 * spikes.cumsum(0) - spikes)


class _SurrogateCount(torch.autograd.Function):
    """Counts forward; backward the sum over all levels of a rectangular surrogate of width one.

    The rectangles tile the firing range, so their sum is 1 inside it and 0 outside: what
    SpikingJelly's `MultiLevelSpikeCount` uses for unsigned counts.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, counts: Tensor, most: int, signed: bool) -> Tensor:
        low = -most - 0.5 if signed else -0.5
        ctx.save_for_backward((z > low) & (z < most + 0.5))
        return counts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None


def surrogate_counts(z: Tensor, counts: Tensor, most: int, signed: bool) -> Tensor:
    """`counts` of totals z with a surrogate gradient to them, for training."""
    return _SurrogateCount.apply(z, counts, most, signed)


def exact_type(inputs: int, most: int) -> torch.dtype:
    """The float type in which sums of `inputs` weighted counts of up to `most` are made.

    Sums are to be exact, and what bits they take the weights cannot have: float32, where that
    leaves a weight of average size 7 bits or more, else float64, at twice the work.
    """
    return torch.float32 if most * inputs <= 2 ** (FLOAT32_BITS - 7) else torch.float64


def snap_weights(weight: Tensor, most: int) -> Tensor:
    """Round each row of a weight matrix to a grid on which sums of spikes in its type are exact.

    weight: (out, in), float32 or float64, whose significand has 24 or 53 bits. The grid of row j is
    the power of two g with ``most * sum|w_j| <= 2^(bits - 1) g``. Every partial sum of
    ``w_ji * n_i`` with abs(n_i) <= most, in any order and any grouping in time, is then a multiple
    of g below 2^bits g, hence a number of that type: integrating spike by spike and multiplying by
    the counts at once give the same number, not nearly the same.
    """
    bits = 1 - round(math.log2(torch.finfo(weight.dtype).eps))
    bound = most * weight.abs().sum(dim=1, keepdim=True).clamp_min(1e-30)
    grid = torch.exp2(torch.ceil(torch.log2(bound)) - (bits - 1))
    return torch.round(weight / grid) * grid


def snap_current(current: Tensor) -> Tensor:
    """Round an analogue input, a share of what saturates a neuron, so that T steps of it and any
    count add up exactly. The range is four times what saturates it.
    """
    scale = float(1 << CURRENT_BITS)
    return current.clamp(-4.0, 4.0).mul_(scale).round_().div_(scale)
