"""The graph of a GPT-2's netlist: which nodes each network has, how wired, and when they start.

Everything here follows from the sizes of the model; a manifest holds it so that others can read it,
and is believed only if it says the same. Networks follow one another: embed, h.0.attn, h.0.mlp and
so on, head. What leaves one, the residual stream, is what enters the next.
"""

from collections.abc import Iterator

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import STATE_BITS
from neurtransformer.integer.config import FINAL_MOST, IntegerConfig
from neurtransformer.loihi.nodes import (
    SSA,
    Accumulator,
    AnyNode,
    CodingNeurons,
    GeluNeurons,
    Network,
    Norm,
    Silent,
    Source,
    Spikes,
    Synapses,
    chain,
)
from neurtransformer.recipe import Coding
from neurtransformer.spiking.attention.linear import KEY_EXPANSION, MEAN_BITS, level_bits, qkv_sizes


def networks(config: IntegerConfig, spikes: Spikes, silent: Silent) -> list[Network]:
    """The graph of a model, in the order of the data."""
    return [
        _embedding(config, silent),
        *(
            network
            for block in range(config.layers)
            for network in (
                _attention(config, f"h.{block}.attn", spikes, silent),
                _feedforward(config, f"h.{block}.mlp", spikes, silent),
            )
        ),
        _head(config, silent),
    ]


def phase_steps(config: IntegerConfig, spikes: Spikes) -> int:
    """Time steps of a phase in a block: T binary spikes, or one graded spike."""
    return config.timesteps if spikes == "rate" else 1


def _bits(most: int, phase: int, coding: Coding, signed: bool) -> int:
    """Width of a spike of a neuron that sends counts up to `most` in `phase` steps."""
    largest = most if phase == 1 else most // phase if coding == "rate" else 1
    return largest.bit_length() + signed


def _synapses(
    network: str, name: str, shape: tuple[int, int], start: int, silent: Silent
) -> Synapses:
    file = f"netx/{network}.{name}.net"
    outputs, inputs = shape
    return Synapses(
        name=name,
        outputs=outputs,
        inputs=inputs,
        start=start,
        file=file,
        silent_inputs=silent.get(file, 0),
    )


def _stream_in(config: IntegerConfig, most: int, coding: Coding, phase: int) -> Iterator[AnyNode]:
    """From the residual stream to spikes, which leave one phase after it has come."""
    width = config.width
    yield Source(name="stream", outputs=width, start=0, payload_bits=STATE_BITS)
    yield Norm(name="norm", outputs=width, start=0, payload_bits=arithmetic.NORM_BITS + 2)
    yield CodingNeurons(
        name="encode",
        outputs=width,
        start=0,
        payload_bits=_bits(most, phase, coding, signed=True),
        receives="rate",
        sends=coding,
        most=most,
        unsigned=0,
        input_shift=0,
        bias="encode.bias",
    )


def _accumulator(
    name: str, outputs: int, start: int, receives: Coding, bias: str, bits: int, delay: int = 0
) -> Accumulator:
    return Accumulator(
        name=name,
        outputs=outputs,
        start=start,
        payload_bits=STATE_BITS,
        receives=receives,
        bias=bias,
        delay=delay,
        fraction_bits=bits,
    )


def _residual(config: IntegerConfig, start: int, phase: int) -> Accumulator:
    """The end of a network that the stream goes through: phases begun by then, it waits."""
    delay = -(-start // phase)
    receives, bits = config.coding, config.stream_bits
    return _accumulator("residual", config.width, start, receives, "c_proj.bias", bits, delay)


def _embedding(config: IntegerConfig, silent: Silent) -> Network:
    inputs = config.vocabulary + config.positions
    return chain(
        "embed",
        1,
        Source(name="tokens", outputs=inputs, start=0, payload_bits=1),
        _synapses("embed", "table", (config.width, inputs), 0, silent),
        _accumulator("stream", config.width, 1, "rate", "table.bias", config.stream_bits),
    )


def _attention(config: IntegerConfig, name: str, spikes: Spikes, silent: Silent) -> Network:
    width, steps, coding = config.width, config.timesteps, config.coding
    phase, dim = phase_steps(config, spikes), width // config.heads
    queries, keys, values = qkv_sizes(width)
    rows = queries + keys + values
    return chain(
        name,
        phase,
        *_stream_in(config, config.most, coding, phase),
        _synapses(name, "c_attn", (rows, width), phase, silent),
        CodingNeurons(
            name="qkv",
            outputs=rows,
            start=phase + 1,
            payload_bits=_bits(steps, phase, "rate", signed=True),
            receives=coding,
            sends="rate",
            most=steps,
            unsigned=queries + keys,
            input_shift=0,
            bias="c_attn.bias",
        ),
        SSA(
            name="ssa",
            outputs=width,
            start=2 * phase + 1,
            payload_bits=level_bits(steps) + MEAN_BITS + 2,
            heads=config.heads,
            dim=dim,
            key_dim=KEY_EXPANSION * dim,
            level_bits=level_bits(steps),
            mean_bits=MEAN_BITS,
        ),
        # the SSA reads, and its mean arrives, one phase after the spikes of key and value
        CodingNeurons(
            name="merged",
            outputs=width,
            start=3 * phase + 1,
            payload_bits=_bits(config.most, phase, coding, signed=True),
            receives="rate",
            sends=coding,
            most=config.most,
            unsigned=0,
            input_shift=arithmetic.MERGE_SHIFT,
            bias="merged.bias",
        ),
        _synapses(name, "c_proj", (width, width), 4 * phase + 1, silent),
        _residual(config, 4 * phase + 2, phase),
    )


def _feedforward(config: IntegerConfig, name: str, spikes: Spikes, silent: Silent) -> Network:
    width, hidden, coding = config.width, config.hidden, config.coding
    phase = phase_steps(config, spikes)
    return chain(
        name,
        phase,
        *_stream_in(config, config.most, coding, phase),
        _synapses(name, "c_fc", (hidden, width), phase, silent),
        GeluNeurons(
            name="hidden",
            outputs=hidden,
            start=phase + 1,
            payload_bits=_bits(config.hidden_most, phase, coding, signed=False),
            receives=coding,
            sends=coding,
            most=config.hidden_most,
            bias="c_fc.bias",
        ),
        _synapses(name, "c_proj", (width, hidden), 2 * phase + 1, silent),
        _residual(config, 2 * phase + 2, phase),
    )


def _head(config: IntegerConfig, silent: Silent) -> Network:
    return chain(
        "head",
        1,
        *_stream_in(config, FINAL_MOST, "rate", 1),
        _synapses("head", "lm_head", (config.vocabulary, config.width), 1, silent),
        _accumulator("logits", config.vocabulary, 2, "rate", "lm_head.bias", arithmetic.LOGIT_BITS),
    )
