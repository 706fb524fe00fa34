"""What one token costs in operations: the dense model's and the spiking model's, pure counts.

Every multiply-accumulate (MAC), every accumulate (AC) and every 32-bit word moved to or from memory
is counted, for one token at batch 1. Spikes are binary, T steps each (`--spikes binary`): a spike
visits all its synapses, one AC each; -1 or 1 of a signed population at the same price. `graded`
turns the counts into those of graded spikes.

Where a choice is open, the dearer one is taken for the spiking side and the cheaper one for the
dense side. Biases are counted on neither side: accumulators and membranes start from them. Memory
is weights, cache, the attention's state and membranes; accumulators and activations stay in
registers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from neurtransformer.codes import HIDDEN_SPIKES
from neurtransformer.measure.attention import KINDS
from neurtransformer.measure.counts import LayerSpikes, Ops, Part, Shape, total
from neurtransformer.recipe import Code, Coding
from neurtransformer.spiking.attention import KINDS as ATTENTIONS

LAYER_NORM_MACS = 4
"""Per channel: mean, variance, scaling, gain and bias."""
GELU_MACS = 4
"""Per hidden neuron: the cubic (3) and the gate (1); the tanh is left out, in both models alike."""
SWIGLU_MACS = 2
"""Per hidden neuron: the gate and the product; the sigmoid is left out, in both models alike."""
ROTARY_MACS = 2
"""Per channel of a query and a key: cosine and sine."""
RMS_NORM_MACS = 2
"""Per channel: the square, and scaling by length and gain."""
SOFTMAX_MACS = 2
"""Per attention weight: the exponential and the division at one MAC each, which is a floor."""


# --- operations of the dense model ---


def dense_projection(inputs: int, outputs: int) -> Ops:
    """A matrix-vector product; each weight is read once."""
    return Ops(mac=inputs * outputs, words=inputs * outputs)


def dense_attention(s: Shape) -> dict[str, Ops]:
    """Softmax attention of one block with a key-value cache, at the mean of all positions."""
    pairs = s.width * s.seen
    return {
        "c_attn": dense_projection(s.width, s.width + 2 * s.kv_width),
        **rotary(s, s.width + s.kv_width),
        "cache": Ops(words=2 * s.kv_width),
        "q k": Ops(mac=pairs, words=pairs),
        "softmax": Ops(mac=SOFTMAX_MACS * s.heads * s.seen),
        "a v": Ops(mac=pairs, words=pairs),
        "c_proj": dense_projection(s.width, s.width),
    }


def dense_feed_forward(s: Shape) -> dict[str, Ops]:
    """The MLP of one block."""
    return {
        "c_fc": dense_projection(s.width, (1 + s.gated) * s.hidden),
        **activation(s),
        "c_proj": dense_projection(s.hidden, s.width),
    }


def activation(s: Shape) -> dict[str, Ops]:
    """The activation of the hidden neurons, the same in both models."""
    if s.gated:
        return {"swiglu": Ops(mac=SWIGLU_MACS * s.hidden)}
    return {"gelu": Ops(mac=GELU_MACS * s.hidden)}


def rotary(s: Shape, channels: int) -> dict[str, Ops]:
    """Turning `channels` of queries and keys by their position, if that is how a model does it."""
    return {"rotary": Ops(mac=ROTARY_MACS * channels)} if s.rotary else {}


def shared(s: Shape) -> dict[str, Ops]:
    """What both models do alike: norms and residual additions of all blocks, embeddings, head."""
    norms = 2 * s.layers + 1
    if s.rotary:  # no positions to add, and RMSNorm, with neither mean nor bias
        embeddings = Ops(words=s.width)
        normed = Ops(mac=norms * RMS_NORM_MACS * s.width, words=norms * s.width)
    else:
        embeddings = Ops(ac=s.width, words=2 * s.width)
        normed = Ops(mac=norms * LAYER_NORM_MACS * s.width, words=norms * 2 * s.width)
    return {
        "embeddings": embeddings,
        "layer norms": normed,
        "residuals": Ops(ac=2 * s.layers * s.width),
        "lm_head": dense_projection(s.width, s.vocab),
    }


# --- operations of the spiking model ---


def synapses(spikes: float, fan_out: float) -> Ops:
    """Each spike adds one weight to each neuron it reaches, and reads that weight to do so."""
    return Ops(ac=spikes * fan_out, words=spikes * fan_out)


def neurons(
    channels: int,
    spikes: float,
    timesteps: int,
    *,
    pairs: bool,
    receives: Coding = "rate",
    fires: int | None = None,
) -> Ops:
    """Updates of a population: T steps of integrating, then T of firing, or another number of them.

    Per neuron one AC a step to add the synaptic current to the membrane, one a step to compare it
    with the threshold (two in pairs, signed or staggered), and one per spike for the reset; where
    phase-coded spikes arrive, one more a step, a shift, to double the membrane. Each of the steps
    reads and writes the membrane.
    """
    fires = fires or timesteps
    each = timesteps * (1 + (receives == "phase")) + fires * (2 if pairs else 1)
    return Ops(ac=channels * each + spikes, words=2 * (timesteps + fires) * channels)


def spiking_attention(s: Shape, n: LayerSpikes) -> dict[str, Ops]:
    """Spiking self-attention of one block: synapses, neurons, and the core of its kind."""
    timesteps, coding = s.attention
    kind = ATTENTIONS[s.kind]
    own = kind.qkv_code(s.attention).timesteps
    coded = neurons(s.width, n.encode, timesteps, pairs=True)
    populations = zip(s.qkv, (n.query, n.key, n.value), kind.signed, strict=True)
    for channels, spikes, signed in populations:
        coded += neurons(channels, spikes, own, pairs=signed, receives=coding)
    coded += neurons(s.width, n.merged, timesteps, pairs=True)
    return {
        "c_attn": synapses(n.encode, sum(s.qkv)),
        **rotary(s, s.qkv[0] + s.qkv[1]),
        **KINDS[s.kind].core(s, n),
        "c_proj": synapses(n.merged, s.width),
        "neurons": coded,
    }


def spiking_feed_forward(s: Shape, n: LayerSpikes) -> dict[str, Ops]:
    """The spiking MLP of one block; its GELU acts once on each membrane."""
    timesteps, coding = s.code
    coded = neurons(s.width, n.mlp_encode, timesteps, pairs=True)
    pairs = s.gated or HIDDEN_SPIKES[coding] == 2
    coded += neurons(
        s.hidden, n.hidden, timesteps, pairs=pairs, receives=coding, fires=s.hidden_timesteps
    )
    if s.gated:  # a membrane of its own integrates the gate
        gate = s.hidden * timesteps * (1 + (coding == "phase"))
        coded += Ops(ac=gate, words=2 * timesteps * s.hidden)
    return {
        "c_fc": synapses(n.mlp_encode, (1 + s.gated) * s.hidden),
        **activation(s),
        "c_proj": synapses(n.hidden, s.width),
        "neurons": coded,
    }


# --- graded spikes, and the sum of all blocks ---

SYNAPTIC = ("c_attn", "c_fc", "c_proj", "scores")
"""Operations of binary spikes that carry a count when they are graded."""


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
    once = Code(1, "rate")
    one_step = replace(s, code=once, attention=once, hidden_timesteps=1)
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
