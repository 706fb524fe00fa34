"""What one token costs in operations: the dense model's and the spiking model's, pure counts.

Every multiply-accumulate (MAC), every accumulate (AC) and every word moved to or from memory is
counted, for one token at batch 1. Spikes are binary, T steps each (`--spikes binary`): a spike
visits all its synapses, one AC each; -1 or 1 of a signed population at the same price. `graded`
turns the counts into those of graded spikes.

Where a choice is open, the dearer one is taken for the spiking side and the cheaper one for the
dense side. Biases are counted on neither side: accumulators and membranes start from them. Memory
is weights, cache, the attention's state, membranes and thresholds. Accumulators and activations of
the dense model stay in registers; what a spike adds to is counted as an event (`Ops.events`), and
the full bill (`bill`) moves it to and from memory.

`tests/test_counted.py` counts the same one by one, as time steps are simulated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from neurtransformer.codes import HIDDEN_SPIKES
from neurtransformer.measure.attention import KINDS
from neurtransformer.measure.counts import NONE_LEFT_OUT, LayerSpikes, Ops, Part, Shape, total
from neurtransformer.recipe import Code
from neurtransformer.spiking.attention import KINDS as ATTENTIONS
from neurtransformer.spiking.attention.base import LeftOut

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
    return Ops(mac=inputs * outputs, weights=inputs * outputs)


def dense_attention(s: Shape, out: LeftOut = NONE_LEFT_OUT) -> dict[str, Ops]:
    """Softmax attention of one block with a key-value cache, at the mean of all positions.

    Heads that share keys and values read them together, once. out: channels that it does without.
    """
    query, merged = s.width - out.query, s.width - out.merged
    key, value = s.kv_width - out.key, s.kv_width - out.value
    return {
        "c_attn": dense_projection(s.width, query + key + value),
        **rotary(s, query + key),
        "cache": Ops(weights=key + value),
        "q k": Ops(mac=query * s.seen, weights=key * s.seen),
        "softmax": Ops(mac=SOFTMAX_MACS * s.heads * s.seen),
        "a v": Ops(mac=merged * s.seen, weights=value * s.seen),
        "c_proj": dense_projection(merged, s.width),
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
        embeddings = Ops(weights=s.width)
        normed = Ops(mac=norms * RMS_NORM_MACS * s.width, weights=norms * s.width)
    else:
        embeddings = Ops(ac=s.width, weights=2 * s.width)
        normed = Ops(mac=norms * LAYER_NORM_MACS * s.width, weights=norms * 2 * s.width)
    return {
        "embeddings": embeddings,
        "layer norms": normed,
        "residuals": Ops(ac=2 * s.layers * s.width),
        "lm_head": dense_projection(s.width, s.vocab),
    }


# --- operations of the spiking model ---


def synapses(spikes: float, fan_out: float) -> Ops:
    """Each spike adds one weight to each neuron it reaches, and reads that weight to do so."""
    events = spikes * fan_out
    return Ops(ac=events, weights=events, events=events)


def integrating(channels: int, arrives: Code) -> Ops:
    """Membranes that spikes drive, T steps: per step one AC to add the synaptic current, and, where
    phase-coded spikes arrive, in all steps but the first a shift, to double the membrane. Each step
    reads and writes the membrane."""
    updates = channels * arrives.timesteps
    doublings = channels * (arrives.timesteps - 1) if arrives.coding == "phase" else 0
    return Ops(ac=updates + doublings, states=2 * updates, updates=updates)


def firing(channels: int, spikes: float, code: Code, *, pairs: bool) -> Ops:
    """Neurons that fire, T steps: per step one AC to compare the membrane with the threshold (two
    in pairs, signed or staggered), and one per spike for the reset. Each step reads and writes the
    membrane and reads the threshold.

    With signed digits a channel, whatever its signs, is one neuron that compares with two
    thresholds, and they are no halves of those of the step before: four ACs, two of which make them
    from the lower one, which is read and written too."""
    updates = channels * code.timesteps
    if code.digits == "signed":
        return Ops(ac=4 * updates + spikes, states=5 * updates, updates=updates)
    return Ops(ac=updates * (2 if pairs else 1) + spikes, states=3 * updates, updates=updates)


ONCE = Code(1, "rate")
"""How a value arrives that no spikes carry: once."""


def spiking_attention(s: Shape, n: LayerSpikes) -> dict[str, Ops]:
    """Spiking self-attention of one block: synapses, neurons, and the core of its kind.

    Neurons that were left out cost nothing: no synapse leads to them, or none from them.
    """
    kind = ATTENTIONS[s.kind]
    own = kind.qkv_code(s.attention)
    rows = n.qkv(s)
    merged = s.width - n.left_out.merged
    # inputs and mean values are no spikes; what c_proj drives goes to the residual stream
    coded = integrating(s.width + merged, ONCE) + integrating(s.width, s.attention)
    coded += firing(s.width + merged, n.encode + n.merged, s.attention, pairs=True)
    populations = zip(rows, (n.query, n.key, n.value), kind.signed, strict=True)
    for channels, spikes, signed in populations:
        coded += integrating(channels, s.attention)
        coded += firing(channels, spikes, own, pairs=signed)
    return {
        "c_attn": synapses(n.encode, sum(rows)),
        **rotary(s, rows[0] + rows[1]),
        **KINDS[s.kind].core(s, n),
        "c_proj": synapses(n.merged, s.width),
        "neurons": coded,
    }


def spiking_feed_forward(s: Shape, n: LayerSpikes) -> dict[str, Ops]:
    """The spiking MLP of one block; its activation acts once on each membrane."""
    # of a gated neuron a membrane of its own integrates the gate
    membranes = (1 + s.gated) * s.hidden
    coded = integrating(s.width, ONCE) + integrating(membranes, s.code)
    coded += integrating(s.width, s.hidden_code)
    coded += firing(s.width, n.mlp_encode, s.code, pairs=True)
    pairs = s.gated or HIDDEN_SPIKES[s.code.coding] == 2
    coded += firing(s.hidden, n.hidden, s.hidden_code, pairs=pairs)
    return {
        "c_fc": synapses(n.mlp_encode, membranes),
        **activation(s),
        "c_proj": synapses(n.hidden, s.width),
        "neurons": coded,
    }


def spiking_shared(s: Shape) -> dict[str, Ops]:
    """As `shared`; each neuron in front of the LM head sends it one graded spike."""
    head = dense_projection(s.width, s.vocab)
    return {**shared(s), "lm_head": replace(head, events=head.mac)}


# --- graded spikes, and the sum of all blocks ---

SYNAPTIC = ("c_attn", "c_fc", "c_proj", "scores")
"""Operations of binary spikes that carry a count when they are graded."""


def graded(part: Part) -> Part:
    """`part`, counted from active neurons in place of spikes, with graded spikes: a spike carries a
    count, so each synapse it visits multiplies."""
    return {
        name: replace(ops, mac=ops.mac + ops.ac, ac=0.0) if name in SYNAPTIC else ops
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
    one_step = replace(s, code=ONCE, attention=ONCE, hidden_code=ONCE)
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
        "shared": {
            "dense": shared(s),
            "spiking": spiking_shared(s),
            "graded": spiking_shared(s),
        },
    }


def _sum(layers: Sequence[Part]) -> Part:
    return {name: total([{name: layer[name]} for layer in layers]) for name in layers[0]}
