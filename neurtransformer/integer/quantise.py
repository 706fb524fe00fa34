"""Spiking model -> the tensors of the integer model: weights of 8 bits, integer thresholds.

Weights come first and everything is expressed in their units. A row of a projection has one float
scale s, what a unit of its membrane is worth; thresholds, biases and centres are rounded in that
unit, and the value of a spike is then what the rounded threshold says, not what it was meant to be,
so that no rounding of a threshold becomes an error of gain in the next projection.

LayerNorm subtracts the mean of the residual stream, so nothing ever sees it: here it is taken out
of the weights of all that writes the stream (`centred`), and only a length is left to divide by, as
in RMSNorm from the start. Gain and bias of a norm become thresholds and biases of the neurons
behind it (`quantise_encoder`).
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from neurtransformer.codes import MEAN_BITS
from neurtransformer.integer import arithmetic, rotary
from neurtransformer.integer.arithmetic import LIMIT, WEIGHT_LIMIT
from neurtransformer.integer.attention import KINDS
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.recipe import Coding

if TYPE_CHECKING:
    from torch import Tensor, nn

    from neurtransformer.spiking.model import SpikingBlock, SpikingLanguageModel
    from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear

Floats = NDArray[np.float64]
Tensors = dict[str, NDArray]

_SMALLEST = 1e-12

PART = 2**22
"""How many weights are quantised together, in float64."""

ENCODE_LIMIT = LIMIT // 4
"""Largest magnitude of an encoder's bias; y and half a threshold fit beside it."""

FINAL_REACH = 8.0
"""How many standard deviations of the stream the neurons in front of the LM head can tell at
least."""

FINAL_ROOM: dict[Coding, float] = {"rate": 1.5, "phase": 4.0}
"""How many times the largest value seen they can tell, by their code: some channels of a real model
are far beyond FINAL_REACH on every text, and farther on real text than on random tokens."""

MEMBRANE_ROOM = 8
"""How many times the largest value seen a membrane can tell that saturates."""

SHIFT_RANGE = (-24, 62)
"""Shifts that a multiplier may have; rows beyond it are zero or always saturated."""


def active_tokens(config: IntegerConfig) -> int:
    """Inputs of the embedding that spike for a token: its own, and its position's if it has one."""
    return 1 if config.rotary else 2


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
        }


def worst_sums(
    weight: NDArray,
    bias: NDArray,
    most: int,
    active: int | None = None,
    carry: NDArray | None = None,
) -> NDArray:
    """The largest magnitude a membrane can reach in a phase: (out,) from (out, in) and (out,).

    most: the largest count of the neurons in front. active: how many of them spike at all, at most;
    None if all may. carry: (in,), their spikes carry 2^carry.
    """
    size = np.abs(weight)
    if carry is not None:
        size = size.astype(np.int64) << carry
    inputs = (
        size.sum(1, dtype=np.int64) if active is None else active * size.max(1).astype(np.int64)
    )
    return most * inputs + np.abs(bias)


def quantise_rows(
    weight: Floats,
    bias: Floats,
    most: int,
    *,
    spike_value: Floats | None = None,
    snap: Callable[[Floats], Floats] = lambda scale: scale,
    active: int | None = None,
    saturating: "Saturating | None" = None,
) -> Rows:
    """Even weights of 8 bits, one scale per row, such that no membrane leaves 24 bits.

    weight: (out, in), the spike values of the presynaptic neurons folded in. bias: (out,).
    most: the largest count of those neurons. spike_value: (out,), thresholds of the neurons
    driven, whose integers must fit beside the membrane. snap: rounds scales up to those that are
    allowed. active: see `worst_sums`.
    A row whose worst sum ``most * sum|w| + |bias| + theta`` would not fit has its scale raised
    until it does: coarser weights in place of an overflow. saturating: of membranes that saturate,
    whose worst sum is that of one step.
    """
    carry = None
    if saturating is not None:
        most, carry = 1, saturating.carry
        weight = weight * 0.5**carry
    scale = np.abs(weight).max(axis=1) / WEIGHT_LIMIT
    step = spike_value if spike_value is not None else np.zeros_like(scale)
    # a row without weights, or nearly so: bias and threshold decide
    scale = np.maximum(scale, np.maximum(np.abs(bias), step) / LIMIT)
    if saturating is not None:
        scale = np.maximum(scale, saturating.reach / LIMIT)
    scale = snap(np.maximum(scale, _SMALLEST))
    while True:
        integers = 2 * np.rint(weight / (2 * scale[:, None]))
        bias_integers = np.rint(bias / scale)
        worst = worst_sums(integers, bias_integers, most, active, carry) + step / scale + 1
        excess = worst / LIMIT
        if (excess <= 1).all():
            return Rows(integers.astype(np.int16), bias_integers.astype(np.int32), scale)
        scale = snap(np.where(excess > 1, scale * np.maximum(excess, 1.05), scale))


def quantise_apart(
    weight: Floats,
    bias: Floats,
    most: int,
    active: int | None = None,
    saturating: "Saturating | None" = None,
) -> Rows:
    """`quantise_rows` with snapped scales, a few rows at a time: what it has of them in float64, of
    a whole vocabulary at once, would be more memory than the network."""
    count = max(1, PART // weight.shape[1])
    parts = []
    for start in range(0, len(weight), count):
        rows = slice(start, start + count)
        some = saturating and replace(saturating, reach=saturating.reach[rows])
        parts.append(
            quantise_rows(
                weight[rows], bias[rows], most, snap=snapped_scale, active=active, saturating=some
            )
        )
    return Rows(*(np.concatenate(x) for x in zip(*map(astuple, parts), strict=True)))


def quantise_threshold(spike_value: Floats, unit: Floats | float, most: int) -> Floats:
    """Integer thresholds (n,) in the given unit; `most` of them, the largest count, fit a state."""
    return np.clip(np.rint(spike_value / unit), 1, LIMIT // most)


def snapped_scale(scale: Floats) -> Floats:
    """The next larger scale that is one of MANTISSAS times a power of two."""
    mantissa, exponent = np.frexp(scale)  # 0.5 <= mantissa < 1
    return np.ldexp(np.ceil(mantissa * 8 - 1e-9) / 8, exponent)


def multiplier(scale: Floats, bits: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(mantissa, shift) with ``scale * 2^bits == mantissa * 2^-shift`` for a snapped scale."""
    mantissa, exponent = np.frexp(scale)
    return np.rint(mantissa * 8).astype(np.int32), (3 - bits - exponent).astype(np.int32)


@dataclass(frozen=True)
class Saturating:
    """Membranes that saturate, and the spikes that drive them. carry: (in,), exponents of what
    these carry. reach: (out,), magnitudes that the membranes are to tell."""

    carry: NDArray[np.int32]
    reach: Floats

    @classmethod
    def of(
        cls, weight: Floats, largest: Floats, config: IntegerConfig, coding: Coding
    ) -> "Saturating | None":
        """For weights (out, in) with the values of spikes folded in and the largest membranes that
        were seen, (out,); None where those of such a code do not saturate."""
        if not config.carries(coding):
            return None
        return cls(carried(weight), MEMBRANE_ROOM * largest)

    def tensors(self, name: str) -> Tensors:
        return {f"{name}.carry": self.carry}


def carried(weight: Floats) -> NDArray[np.int32]:
    """Exponents, (in,), of what the spikes of the neurons in front carry, where the values of their
    spikes differ much: without the powers of two the columns of a weight (out, in) are of nearly
    one size, and no single one takes the 8 bits of a row away from all others."""
    # einsum needs no memory for the squares
    mean = np.einsum("ij,ij->j", weight, weight) / len(weight)
    size = np.maximum(np.sqrt(mean), _SMALLEST)
    # channels that were left out have no synapses, and no say
    exponent = np.rint(np.log2(size / np.median(size[mean > 0] if mean.any() else size)))
    return exponent.clip(0, arithmetic.MOST_CARRIED).astype(np.int32)


def gelu_table(
    activation: "Callable[[Tensor], Tensor]", entries: int = arithmetic.GELU_ENTRIES
) -> NDArray[np.int64]:
    """``ReLU(x) - activation(x)`` in the middle of each of the first `entries` intervals of
    \\|x\\|."""
    import torch

    x = (torch.arange(entries, dtype=torch.float64) + 0.5) / (1 << arithmetic.GELU_INDEX_BITS)
    return np.rint((x - activation(x)).numpy() * (1 << arithmetic.GELU_BITS)).astype(np.int64)


def silu_table() -> NDArray[np.int64]:
    """`gelu_table` of a SiLU."""
    from torch.nn import functional

    return gelu_table(functional.silu, arithmetic.SILU_ENTRIES)


def centred(weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """Rows (out, in) and biases (out,) without what they add to the mean over `out`."""
    return weight - weight.mean(0), bias - bias.mean()


def quantise_encoder(
    norm: "nn.Module", spike_value: Floats, center: Floats, most: int, config: IntegerConfig
) -> tuple[Tensors, Floats]:
    """A norm and the neurons behind it: tensors without a network's name, and the value of one
    of their spikes, (n,), negative where the norm's gain is.

    A count is that of ``(y gain sqrt(n) / 2^NORM_BITS + bias - center) / spike_value`` for the y of
    `arithmetic.normed`: everything is divided by what stands before y. A channel with hardly a gain
    has a threshold as high as a state allows, and its bias says what it counts.
    """
    gain, bias = _norm(norm)
    gain = gain * len(gain) ** 0.5 * 2.0**-arithmetic.NORM_BITS
    gain = np.where(np.abs(gain) < _SMALLEST, _SMALLEST, gain)
    # the bias, up to `most` thresholds, has ENCODE_LIMIT
    theta = quantise_threshold(spike_value, np.abs(gain), 4 * most)
    free = theta < LIMIT // (4 * most)
    spike_value = np.where(free, theta * gain, np.copysign(spike_value, gain))
    drive = (bias - center) / spike_value * theta
    tensors = {
        "norm.epsilon": np.array(
            [min(round(config.epsilon * len(gain) * 4.0**config.stream_bits), LIMIT)], np.int32
        ),
        "encode.theta": theta.astype(np.int32),
        "encode.bias": np.rint(drive).clip(-ENCODE_LIMIT, ENCODE_LIMIT).astype(np.int32),
    }
    return tensors, spike_value


def quantise_neurons(
    norm: "nn.Module", neuron: "CodingNeuron", config: IntegerConfig
) -> tuple[Tensors, Floats]:
    """`quantise_encoder` for the `encode` neurons of a spiking network."""
    values = _floats(neuron.spike_value), _floats(neuron.center)
    return quantise_encoder(norm, *values, neuron.most, config)


def quantise_stream(
    weight: Floats,
    bias: Floats,
    most: int,
    config: IntegerConfig,
    active: int | None = None,
    saturating: "Saturating | None" = None,
) -> tuple[Rows, Tensors]:
    """A projection that writes the stream, and the tensors of the accumulator behind it."""
    if config.model == "gpt2":
        weight, bias = centred(weight, bias)
    rows = quantise_apart(weight, bias, most, active, saturating)
    return rows, _accumulator(rows, config.stream_bits)


def _accumulator(rows: Rows, bits: int) -> Tensors:
    mantissa, shift = multiplier(rows.scale, bits)
    return {"mantissa": mantissa, "shift": shift.clip(*SHIFT_RANGE)}


def quantise_embedding(model: "SpikingLanguageModel", config: IntegerConfig) -> Tensors:
    """Tensors of the network `embed`: one column of synapses per token, then one per position
    where those are embedded."""
    names = ("wte",) if config.rotary else ("wte", "wpe")
    tables = [cast("nn.Embedding", model.transformer[name]) for name in names]
    weight = np.concatenate([_floats(table.weight) for table in tables]).T
    rows, stream = quantise_stream(weight, np.zeros(len(weight)), 1, config, active_tokens(config))
    return {**rows.tensors("embed.table"), **_under("embed.stream", stream)}


def quantise_head(
    model: "SpikingLanguageModel", config: IntegerConfig, largest: Floats, logits: Floats
) -> Tensors:
    """Tensors of the network `head`, where each channel of the last norm, (width,), and each logit,
    (vocabulary,), reached so far on some text, and what the model answers to an innate token alone:
    that is the dense model's hidden state before the LM head, computed here once for all texts."""
    norm = model.transformer["ln_f"]
    gain, bias = _norm(norm)
    most, coding = config.final_code.most, config.final_code.coding
    reach = np.maximum(FINAL_REACH * np.abs(gain) + np.abs(bias), FINAL_ROOM[coding] * largest)
    spike_value = np.maximum(reach, _SMALLEST) / most
    zero = np.zeros_like(spike_value)
    encoder, spike_value = quantise_encoder(norm, spike_value, zero, most, config)
    weight = _floats(model.lm_head.weight)
    first: Tensors = {}
    if config.first_token is not None:
        answer = weight @ _floats(model.first_hidden)
        answer = np.rint(answer * 2.0**arithmetic.LOGIT_BITS).clip(-LIMIT, LIMIT)
        first = {"head.first_logits": answer.astype(np.int32)}
    weight *= spike_value
    into_logits = Saturating.of(weight, logits, config, coding)
    rows = quantise_apart(weight, np.zeros(len(weight)), most, saturating=into_logits)
    return {
        **(into_logits.tensors("head.encode") if into_logits else {}),
        **first,
        **_under("head", encoder),
        **rows.tensors("head.lm_head"),
        **_under("head.logits", _accumulator(rows, arithmetic.LOGIT_BITS)),
    }


def quantise_attention(
    block: "SpikingBlock", name: str, config: IntegerConfig, seen: Mapping[str, Floats]
) -> Tensors:
    """Tensors of one attention network, keys beginning with `name`. seen: the largest membranes of
    each projection, (out,), on some text."""
    attention = block.attn
    encoder, spike = quantise_neurons(block.ln_1, attention.encode, config)
    kind = KINDS[attention.kind]
    neurons = attention.query, attention.key, attention.value
    spike_value = np.concatenate([_floats(neuron.spike_value) for neuron in neurons])
    center = np.concatenate([_floats(neuron.spread(neuron.center)) for neuron in neurons])
    weight, bias = _folded(attention.c_attn, spike)
    most = attention.encode.most
    turned: Tensors = {}
    if config.rotary:
        coarse, fine = rotary.tables(config.positions, config.dim, config.rotary)
        turned = {"qkv.coarse": coarse, "qkv.fine": fine}
    snap = partial(_paired, config=config)
    coding = config.attention_code.coding
    largest = seen[f"{name}.c_attn"] + np.abs(center)
    into_qkv = Saturating.of(weight, largest, config, coding)
    c_attn = quantise_rows(
        weight, bias - center, most, spike_value=spike_value, snap=snap, saturating=into_qkv
    )
    theta = quantise_threshold(spike_value, c_attn.scale, attention.query.most)
    worth = theta * c_attn.scale

    # of a value, once for each head that reads it
    unit = worth[-config.kv_width :].reshape(attention.kv_heads, -1)
    unit = np.repeat(unit, config.shared, axis=0).reshape(-1)
    unit = unit * 2.0 ** -(MEAN_BITS + arithmetic.MERGE_SHIFT)
    merged = attention.merged
    merged_theta = quantise_threshold(_floats(merged.spike_value), unit, merged.most)
    reach = arithmetic.MERGED_CENTER_LIMIT
    merged_center = np.rint(_floats(merged.center) / unit).clip(-reach, reach)
    folded = _folded(attention.c_proj, merged_theta * unit)
    into_stream = Saturating.of(folded[0], seen[f"{name}.c_proj"], config, coding)
    c_proj, residual = quantise_stream(*folded, merged.most, config, saturating=into_stream)
    return {
        **_under(name, encoder),
        **c_attn.tensors(f"{name}.c_attn"),
        f"{name}.qkv.theta": theta.astype(np.int32),
        **_under(name, {**turned, **kind.quantised(attention, worth)}),
        f"{name}.merged.theta": merged_theta.astype(np.int32),
        f"{name}.merged.bias": -merged_center.astype(np.int32),
        **c_proj.tensors(f"{name}.c_proj"),
        **_under(f"{name}.residual", residual),
        **(into_qkv.tensors(f"{name}.encode") if into_qkv else {}),
        **(into_stream.tensors(f"{name}.merged") if into_stream else {}),
    }


def quantise_feedforward(
    block: "SpikingBlock", name: str, config: IntegerConfig, seen: Mapping[str, Floats]
) -> Tensors:
    """Tensors of one feed-forward network, keys beginning with `name`. seen: see
    `quantise_attention`."""
    mlp, hidden = block.mlp, block.mlp.hidden
    assert hidden.activation is not None
    encoder, spike = quantise_neurons(block.ln_2, mlp.encode, config)
    folded = _folded(mlp.c_fc, spike)
    into_hidden = Saturating.of(folded[0], seen[f"{name}.c_fc"], config, config.coding)
    c_fc = quantise_rows(*folded, config.most, snap=snapped_scale, saturating=into_hidden)
    scale = c_fc.scale[: config.hidden]
    mantissa, shift = multiplier(scale, arithmetic.GELU_BITS)
    unit: Floats | float = 2.0**-arithmetic.GELU_BITS
    product: Tensors = {}
    if config.gated:
        # of a gate with GELU_BITS by a membrane in the unit of its row, less what is dropped
        unit = 2.0**-arithmetic.GELU_BITS * c_fc.scale[config.hidden :]
        largest = _floats(hidden.spike_value) * hidden.most + np.abs(_floats(hidden.center))
        drop = np.ceil(np.log2(largest / unit / (LIMIT // 4)))
        drop = drop.clip(0, arithmetic.MOST_DROPPED)
        unit = unit * np.exp2(drop)
        product = {f"{name}.hidden.drop": drop.astype(np.int32)}
        table = silu_table()
    else:
        table = gelu_table(hidden.activation)
    theta = quantise_threshold(_floats(hidden.spike_value), unit, hidden.most)
    center = arithmetic.saturate(np.rint(_floats(hidden.center) / unit).astype(np.int64))
    folded = _folded(mlp.c_proj, theta * unit)
    into_stream = Saturating.of(folded[0], seen[f"{name}.c_proj"], config, config.coding)
    c_proj, residual = quantise_stream(*folded, hidden.most, config, saturating=into_stream)
    return {
        **_under(name, encoder),
        **c_fc.tensors(f"{name}.c_fc"),
        f"{name}.hidden.mantissa": mantissa,
        f"{name}.hidden.shift": shift.clip(*SHIFT_RANGE),
        f"{name}.hidden.center": center.astype(np.int32),
        f"{name}.hidden.theta": theta.astype(np.int32),
        **product,
        f"{name}.hidden.table": table.astype(np.int32),
        **c_proj.tensors(f"{name}.c_proj"),
        **_under(f"{name}.residual", residual),
        **(into_hidden.tensors(f"{name}.encode") if into_hidden else {}),
        **(into_stream.tensors(f"{name}.hidden") if into_stream else {}),
    }


def _under(name: str, tensors: Tensors) -> Tensors:
    return {f"{name}.{key}": x for key, x in tensors.items()}


def _folded(linear: "SpikeLinear", spike_value: Floats) -> tuple[Floats, Floats]:
    return _floats(linear.weight) * spike_value, _floats(linear.bias)


def _paired(scale: Floats, config: IntegerConfig) -> Floats:
    """Scales of the rows of queries, keys and values: what rotary positions turn into one another
    has one unit."""
    if not config.turned:
        return scale
    pairs = scale[: config.turned].reshape(-1, 2, config.dim // 2)
    largest = np.broadcast_to(pairs.max(1, keepdims=True), pairs.shape)
    return np.concatenate([largest.reshape(-1), scale[config.turned :]])


def _norm(norm: "nn.Module") -> tuple[Floats, Floats]:
    """Gain and bias of a norm; an RMSNorm has none of the latter."""
    gain = _floats(cast("Tensor", norm.weight))
    bias = getattr(norm, "bias", None)
    return gain, np.zeros_like(gain) if bias is None else _floats(bias)


def _floats(x: "Tensor") -> Floats:
    return x.detach().double().cpu().numpy()
