"""Spiking model -> the tensors of the integer model: weights of 8 bits, integer thresholds.

Weights come first and everything is expressed in their units. A row of a projection has one float
scale s, what a unit of its membrane is worth; thresholds, biases and centres are rounded in that
unit, and the value of a spike is then what the rounded threshold says, not what it was meant to be,
so that no rounding of a threshold becomes an error of gain in the next projection.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT, WEIGHT_LIMIT
from neurtransformer.spiking.attention import MEAN_BITS, SpikingSelfAttention
from neurtransformer.spiking.feedforward import SpikingFeedForward
from neurtransformer.spiking.neuron import SpikeLinear

Floats = NDArray[np.float64]
Tensors = dict[str, NDArray]

_SMALLEST = 1e-12


@dataclass(frozen=True)
class Rows:
    """A quantised projection: weight (out, in) int16, bias (out,) int32, scale (out,) float64."""

    weight: NDArray[np.int16]
    bias: NDArray[np.int32]
    scale: Floats

    def tensors(self, name: str) -> Tensors:
        return {
            f"{name}.weight": self.weight,
            f"{name}.bias": self.bias,
            f"{name}.scale": self.scale.astype(np.float32),
        }


def worst_sums(weight: NDArray, bias: NDArray, most: int) -> NDArray:
    """The largest magnitude a membrane can reach in a phase: (out,) from (out, in) and (out,).

    most: the largest count of the neurons in front.
    """
    return most * np.abs(weight).sum(1, dtype=np.int64) + np.abs(bias)


def quantise_rows(
    weight: Floats,
    bias: Floats,
    most: int,
    *,
    spike_value: Floats | None = None,
    snap: Callable[[Floats], Floats] = lambda scale: scale,
    gain: int = 1,
) -> Rows:
    """Even weights of 8 bits, one scale per row, such that no membrane leaves 24 bits.

    weight: (out, in), the spike values of the presynaptic neurons folded in. bias: (out,).
    most: the largest count of those neurons. spike_value: (out,), thresholds of the neurons
    driven, whose integers must fit beside the membrane. snap: rounds scales up to those that are
    allowed. gain: what the membrane is multiplied by at most before it is shifted.
    A row whose worst sum ``most * sum|w| + |bias| + theta`` would not fit has its scale raised
    until it does: coarser weights in place of an overflow.
    """
    scale = np.abs(weight).max(axis=1) / WEIGHT_LIMIT
    step = spike_value if spike_value is not None else np.zeros_like(scale)
    # a row without weights, or nearly so: bias and threshold decide
    scale = np.maximum(scale, np.maximum(np.abs(bias), step) * gain / LIMIT)
    scale = snap(np.maximum(scale, _SMALLEST))
    while True:
        integers = 2 * np.rint(weight / (2 * scale[:, None]))
        bias_integers = np.rint(bias / scale)
        worst = worst_sums(integers, bias_integers, most) + step / scale + 1
        excess = worst * gain / LIMIT
        if (excess <= 1).all():
            return Rows(integers.astype(np.int16), bias_integers.astype(np.int32), scale)
        scale = snap(np.where(excess > 1, scale * np.maximum(excess, 1.05), scale))


def quantise_threshold(spike_value: Floats, unit: Floats | float, most: int) -> Floats:
    """Integer thresholds (n,) in the given unit; `most` of them, the largest count, fit a state."""
    return np.clip(np.rint(spike_value / unit), 1, LIMIT // most)


def gelu_scale(scale: Floats) -> Floats:
    """The next larger scale that is a GELU mantissa times a power of two."""
    mantissa, exponent = np.frexp(scale)  # 0.5 <= mantissa < 1
    return np.ldexp(np.ceil(mantissa * 8 - 1e-9) / 8, exponent)


def gelu_multiplier(scale: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(mantissa, shift) with ``scale * 2^GELU_BITS == mantissa * 2^-shift`` for a snapped scale."""
    mantissa, exponent = np.frexp(scale)
    return np.rint(mantissa * 8).astype(np.int64), 3 - arithmetic.GELU_BITS - exponent


def gelu_table(activation: Callable[[Tensor], Tensor]) -> NDArray[np.int64]:
    """``ReLU(x) - activation(x)`` in the middle of each of GELU_ENTRIES intervals of \\|x\\|."""
    x = (torch.arange(arithmetic.GELU_ENTRIES, dtype=torch.float64) + 0.5) / (
        1 << arithmetic.GELU_INDEX_BITS
    )
    return np.rint((x - activation(x)).numpy() * (1 << arithmetic.GELU_BITS)).astype(np.int64)


def quantise_attention(attention: SpikingSelfAttention, name: str) -> Tensors:
    """Tensors of one SSA network, keys beginning with `name`."""
    timesteps, encode = attention.timesteps, attention.encode
    neurons = attention.query, attention.key, attention.value
    spike_value = np.concatenate([_floats(neuron.spike_value) for neuron in neurons])
    center = np.concatenate([_floats(neuron.center) for neuron in neurons])
    weight, bias = _folded(attention.c_attn, _floats(encode.spike_value))
    c_attn = quantise_rows(weight, bias - center, encode.most, spike_value=spike_value)
    theta = quantise_threshold(spike_value, c_attn.scale, timesteps)

    value_spike = (theta * c_attn.scale)[-len(_floats(attention.value.center)) :]
    unit = value_spike * 2.0 ** -(MEAN_BITS + arithmetic.MERGE_SHIFT)
    merged = attention.merged
    merged_theta = quantise_threshold(_floats(merged.spike_value), unit, merged.most)
    most = arithmetic.MERGED_CENTER_LIMIT
    merged_center = np.rint(_floats(merged.center) / unit).clip(-most, most)
    c_proj = quantise_rows(*_folded(attention.c_proj, merged_theta * unit), merged.most)
    present = _floats(attention.present) * (1 << arithmetic.PRESENT_BITS)
    return {
        f"{name}.encode.threshold": _floats(encode.threshold).astype(np.float32),
        f"{name}.encode.center": _floats(encode.center).astype(np.float32),
        **c_attn.tensors(f"{name}.c_attn"),
        f"{name}.qkv.theta": theta.astype(np.int32),
        f"{name}.ssa.shift": attention.shift.numpy().astype(np.int32),
        f"{name}.ssa.present": np.rint(present).clip(0, 255).astype(np.int32),
        f"{name}.merged.theta": merged_theta.astype(np.int32),
        f"{name}.merged.bias": -merged_center.astype(np.int32),
        **c_proj.tensors(f"{name}.c_proj"),
    }


def quantise_feedforward(mlp: SpikingFeedForward, name: str) -> Tensors:
    """Tensors of one feed-forward network, keys beginning with `name`."""
    encode, hidden = mlp.encode, mlp.hidden
    assert hidden.activation is not None
    weight, bias = _folded(mlp.c_fc, _floats(encode.spike_value))
    c_fc = quantise_rows(
        weight, bias, encode.most, snap=gelu_scale, gain=arithmetic.GELU_MANTISSAS[-1]
    )
    mantissa, shift = gelu_multiplier(c_fc.scale)
    unit = 2.0**-arithmetic.GELU_BITS
    theta = quantise_threshold(_floats(hidden.spike_value), unit, hidden.most)
    center = arithmetic.saturate(np.rint(_floats(hidden.center) / unit).astype(np.int64))
    c_proj = quantise_rows(*_folded(mlp.c_proj, theta * unit), hidden.most)
    return {
        f"{name}.encode.threshold": _floats(encode.threshold).astype(np.float32),
        f"{name}.encode.center": _floats(encode.center).astype(np.float32),
        **c_fc.tensors(f"{name}.c_fc"),
        f"{name}.hidden.mantissa": mantissa.astype(np.int32),
        f"{name}.hidden.shift": shift.astype(np.int32),
        f"{name}.hidden.center": center.astype(np.int32),
        f"{name}.hidden.theta": theta.astype(np.int32),
        f"{name}.hidden.table": gelu_table(hidden.activation).astype(np.int32),
        **c_proj.tensors(f"{name}.c_proj"),
    }


def _folded(linear: SpikeLinear, spike_value: Floats) -> tuple[Floats, Floats]:
    return _floats(linear.weight) * spike_value, _floats(linear.bias)


def _floats(x: Tensor) -> Floats:
    return x.detach().double().cpu().numpy()
