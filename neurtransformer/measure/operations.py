"""What one token costs in operations: the dense model's and the spiking model's, pure counts.

Every multiply-accumulate (MAC), every accumulate (AC) and every 32-bit word moved to or from memory
is counted, for one token at batch 1. Spikes are binary, T steps each (`--spikes rate`): a spike
visits all its synapses, one AC each; -1 or 1 of a signed population at the same price. Only spikes
of query and key multiply, because they facilitate. `graded` turns the counts into those of graded
spikes.

Where a choice is open, the dearer one is taken for the spiking side and the cheaper one for the
dense side. Biases are counted on neither side: accumulators and membranes start from them. Memory
is weights, cache, SSA state and membranes; accumulators and activations stay in registers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from transformers import GPT2Config

from neurtransformer.recipe import Coding
from neurtransformer.spiking.attention.linear import qkv_sizes
from neurtransformer.spiking.feedforward import HIDDEN_SPIKES

LAYER_NORM_MACS = 4
"""Per channel: mean, variance, scaling, gain and bias."""
GELU_MACS = 4
"""Per hidden neuron: the cubic (3) and the gate (1); the tanh is left out, in both models alike."""
SOFTMAX_MACS = 2
"""Per attention weight: the exponential and the division at one MAC each, which is a floor."""


# --- counts ---


@dataclass(frozen=True)
class Ops:
    """Work for one token. words: 32-bit words read from or written to memory."""

    mac: float = 0.0
    ac: float = 0.0
    words: float = 0.0

    def __add__(self, other: "Ops") -> "Ops":
        return Ops(self.mac + other.mac, self.ac + other.ac, self.words + other.words)


Part = Mapping[str, Ops]
"""A part of a model, operation by operation."""


def total(parts: Iterable[Part]) -> Ops:
    """Everything in `parts` added up."""
    return sum((ops for part in parts for ops in part.values()), Ops())


# --- the geometry and what was measured ---


@dataclass(frozen=True)
class Shape:
    """What of a model's config decides the counts. context: longest sequence, in tokens."""

    width: int
    heads: int
    hidden: int
    layers: int
    vocab: int
    context: int
    timesteps: int
    coding: Coding

    @classmethod
    def of(cls, config: GPT2Config) -> Self:
        hidden = config.n_inner or 4 * config.n_embd
        return cls(
            width=config.n_embd,
            heads=config.n_head,
            hidden=hidden,
            layers=config.n_layer,
            vocab=config.vocab_size,
            context=config.n_positions,
            timesteps=config.timesteps,
            coding=config.coding,
        )

    @property
    def seen(self) -> float:
        """Tokens a causal head looks at, itself included, on average over all positions."""
        return (self.context + 1) / 2

    @property
    def state(self) -> int:
        """Entries of all heads' fast-weight matrices, (head_dim + 1) x key_dim each."""
        return (self.width // self.heads + 1) * self.keys

    @property
    def keys(self) -> int:
        """Key neurons of all heads; there are as many query neurons."""
        return qkv_sizes(self.width)[1]


@dataclass(frozen=True)
class LayerSpikes:
    """Measured spikes per token of one block, summed over each population.

    written: key neurons that fire at all, each of which writes one column of the state; present:
    those of them in heads that let a token attend to itself (u of the SSA not 0).
    """

    encode: float
    query: float
    key: float
    written: float
    present: float
    value: float
    merged: float
    mlp_encode: float
    hidden: float


# --- operations of the dense model ---


def dense_projection(inputs: int, outputs: int) -> Ops:
    """A matrix-vector product; each weight is read once."""
    return Ops(mac=inputs * outputs, words=inputs * outputs)


def dense_attention(s: Shape) -> dict[str, Ops]:
    """Softmax attention of one block with a key-value cache, at the mean of all positions."""
    pairs = s.width * s.seen
    return {
        "c_attn": dense_projection(s.width, 3 * s.width),
        "cache": Ops(words=2 * s.width),
        "q k": Ops(mac=pairs, words=pairs),
        "softmax": Ops(mac=SOFTMAX_MACS * s.heads * s.seen),
        "a v": Ops(mac=pairs, words=pairs),
        "c_proj": dense_projection(s.width, s.width),
    }


def dense_feed_forward(s: Shape) -> dict[str, Ops]:
    """GPT-2's MLP of one block."""
    return {
        "c_fc": dense_projection(s.width, s.hidden),
        "gelu": Ops(mac=GELU_MACS * s.hidden),
        "c_proj": dense_projection(s.hidden, s.width),
    }


def shared(s: Shape) -> dict[str, Ops]:
    """What both models do alike: norms and residual additions of all blocks, embeddings, head."""
    norms = 2 * s.layers + 1
    return {
        "embeddings": Ops(ac=s.width, words=2 * s.width),
        "layer norms": Ops(mac=norms * LAYER_NORM_MACS * s.width, words=norms * 2 * s.width),
        "residuals": Ops(ac=2 * s.layers * s.width),
        "lm_head": dense_projection(s.width, s.vocab),
    }


# --- operations of the spiking model ---


def synapses(spikes: float, fan_out: float) -> Ops:
    """Each spike adds one weight to each neuron it reaches, and reads that weight to do so."""
    return Ops(ac=spikes * fan_out, words=spikes * fan_out)


def neurons(
    channels: int, spikes: float, timesteps: int, *, pairs: bool, receives: Coding = "rate"
) -> Ops:
    """Updates of a population: T steps of integrating, then T of firing.

    Per neuron one AC a step to add the synaptic current to the membrane, one a step to compare it
    with the threshold (two in pairs, signed or staggered), and one per spike for the reset; where
    phase-coded spikes arrive, one more a step, a shift, to double the membrane. Each of the 2 T
    steps reads and writes the membrane.
    """
    each = 1 + (2 if pairs else 1) + (receives == "phase")
    updates = channels * timesteps * each + spikes
    return Ops(ac=updates, words=2 * 2 * timesteps * channels)


def spiking_attention(s: Shape, n: LayerSpikes) -> dict[str, Ops]:
    """Causal SSA of one block.

    write: counting the spikes of key and value costs one AC each; each key that fired is squared,
    and its square times the whole vector of value counts, head_dim values and the witness, zeros
    too, goes into its column of the state, one MAC each. present: that column goes, times u, into
    what this token reads too, in heads that read it. forget: shift and subtract at every entry of
    the state, one AC each, in every head whether it forgets or not; that pass reads and writes the
    state. read: a query spike carries a payload, 2n - 1 (n^2 if graded), at a MAC to form it and
    an AC to add it to the head's sum; each entry of the column that it visits is shifted, an AC,
    and multiplied, a MAC; the shift takes one search for the leading bit of the sum per head.
    normalise: per head one addition, one search for the leading bit and one table look-up (an AC
    each), per value one product with the reciprocal and two rounding shifts.
    """
    column = s.width // s.heads + 1
    steps = s.timesteps
    visited = n.query * column
    coded = neurons(s.width, n.encode, steps, pairs=True)
    coded += neurons(s.keys, n.query, steps, pairs=False, receives=s.coding)
    coded += neurons(s.keys, n.key, steps, pairs=False, receives=s.coding)
    coded += neurons(s.width, n.value, steps, pairs=True, receives=s.coding)
    coded += neurons(s.width, n.merged, steps, pairs=True)
    return {
        "c_attn": synapses(n.encode, sum(qkv_sizes(s.width))),
        "write": Ops(
            mac=n.written * (1 + column), ac=n.key + n.value, words=2 * n.written * column
        ),
        "present": Ops(mac=n.present * column, words=2 * n.present * column),
        "forget": Ops(ac=s.state, words=2 * s.state),
        "read": Ops(mac=visited + n.query, ac=visited + n.query + s.heads, words=visited),
        "normalise": Ops(mac=s.width, ac=2 * s.width + 3 * s.heads, words=s.heads),
        "c_proj": synapses(n.merged, s.width),
        "neurons": coded,
    }


def spiking_feed_forward(s: Shape, n: LayerSpikes) -> dict[str, Ops]:
    """The spiking MLP of one block; its GELU acts once on each membrane."""
    coded = neurons(s.width, n.mlp_encode, s.timesteps, pairs=True)
    pairs = HIDDEN_SPIKES[s.coding] == 2
    coded += neurons(s.hidden, n.hidden, s.timesteps, pairs=pairs, receives=s.coding)
    return {
        "c_fc": synapses(n.mlp_encode, s.hidden),
        "gelu": Ops(mac=GELU_MACS * s.hidden),
        "c_proj": synapses(n.hidden, s.width),
        "neurons": coded,
    }


# --- graded spikes, and the sum of all blocks ---

SYNAPTIC = ("c_attn", "c_fc", "c_proj")
"""Operations of binary spikes; those of the SSA multiply already."""


def graded(part: Part) -> Part:
    """`part`, counted from active neurons in place of spikes, with graded spikes: a spike carries a
    count, so each synapse it visits multiplies."""
    return {
        name: Ops(mac=ops.mac + ops.ac, words=ops.words) if name in SYNAPTIC else ops
        for name, ops in part.items()
    }


Forms = Mapping[str, Part]
"""One part of the model as `dense`, `spiking` (binary spikes) and `graded`."""


def operations(
    s: Shape, spikes: Sequence[LayerSpikes], active: Sequence[LayerSpikes]
) -> dict[str, Forms]:
    """Operations per token, all blocks together, by part of the model.

    spikes: per block the spikes of a token; active: per block the neurons that send any, which is
    the number of graded spikes.
    """
    # a graded spike carries a count, so no membrane doubles
    one_step = replace(s, timesteps=1, coding="rate")
    return {
        "attention": {
            "dense": _sum([dense_attention(s) for _ in spikes]),
            "spiking": _sum([spiking_attention(s, n) for n in spikes]),
            "graded": graded(_sum([spiking_attention(one_step, n) for n in active])),
        },
        "feed_forward": {
            "dense": _sum([dense_feed_forward(s) for _ in spikes]),
            "spiking": _sum([spiking_feed_forward(s, n) for n in spikes]),
            "graded": graded(_sum([spiking_feed_forward(one_step, n) for n in active])),
        },
        "shared": dict.fromkeys(("dense", "spiking", "graded"), shared(s)),
    }


def _sum(layers: Sequence[Part]) -> Part:
    return {name: total([{name: layer[name]} for layer in layers]) for name in layers[0]}
