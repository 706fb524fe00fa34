"""The graph of a language model's netlist: which nodes a network has, how wired, when they start.

Everything here follows from the sizes of the model; a manifest holds it so that others can read it,
and is believed only if it says the same. Networks follow one another: embed, h.0.attn, h.0.mlp and
so on, head. What leaves one, the residual stream, is what enters the next.
"""

from collections.abc import Sequence

from neurtransformer.integer import arithmetic, rotary
from neurtransformer.integer.arithmetic import STATE_BITS
from neurtransformer.integer.attention import KINDS as INTEGERS
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.loihi import attention
from neurtransformer.loihi.llama import RotaryNeurons, SwigluNeurons
from neurtransformer.loihi.network import Network, in_line, timed, wired
from neurtransformer.loihi.nodes import (
    Accumulator,
    CodingNeurons,
    GeluNeurons,
    Node,
    Norm,
    Silent,
    Source,
    Spikes,
    Synapses,
)
from neurtransformer.recipe import Code, Coding, Digits


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


def digits_of(code: Code, slots: int) -> Digits:
    """The digits of the counts of a code where they are sent in so many steps: a graded spike is
    none."""
    return code.digits if slots > 1 else "binary"


def spike_bits(most: int, slots: int, code: Code, signed: bool) -> int:
    """Width of a spike of a neuron that sends counts up to `most` in so many steps, sign included
    where there is one."""
    largest = most if slots == 1 else most // slots if code.coding == "rate" else 1
    return largest.bit_length() + (signed or digits_of(code, slots) == "signed")


def _slots(timesteps: int, spikes: Spikes, carries: bool) -> int:
    """Time steps in which a count is sent: T spikes, or one graded spike. What drives membranes
    that saturate has T in either transport: what arrives in a step has to fit."""
    return timesteps if spikes == "binary" or carries else 1


def _synapses(network: str, name: str, shape: tuple[int, int], silent: Silent) -> Synapses:
    file = f"netx/{network}.{name}.net"
    outputs, inputs = shape
    return Synapses(
        name=name,
        outputs=outputs,
        inputs=inputs,
        file=file,
        silent_inputs=silent.get(file, 0),
    )


def _carried(carries: bool) -> int:
    """Bits of a spike more where it carries a power of two."""
    return arithmetic.MOST_CARRIED if carries else 0


def _stream_in(config: IntegerConfig, code: Code, slots: int) -> list[Node]:
    """From the residual stream to spikes."""
    width, carries = config.width, config.carries(code.coding)
    return [
        Source(name="stream", outputs=width, payload_bits=STATE_BITS),
        Norm(name="norm", outputs=width, payload_bits=arithmetic.NORM_BITS + 2),
        CodingNeurons(
            name="encode",
            outputs=width,
            payload_bits=spike_bits(code.most, slots, code, signed=True) + _carried(carries),
            receives="rate",
            sends=code.coding,
            most=code.most,
            digits=digits_of(code, slots),
            unsigned=0,
            input_shift=0,
            bias="encode.bias",
            carries=carries,
        ),
    ]


def _accumulator(name: str, outputs: int, receives: Coding, bias: str, bits: int) -> Accumulator:
    return Accumulator(
        name=name,
        outputs=outputs,
        payload_bits=STATE_BITS,
        receives=receives,
        bias=bias,
        fraction_bits=bits,
    )


def _residual(config: IntegerConfig, receives: Coding) -> Accumulator:
    """The end of a network that the stream goes by."""
    return _accumulator("residual", config.width, receives, "c_proj.bias", config.stream_bits)


def _block(name: str, nodes: Sequence[Node], phase: int, slots: int) -> Network:
    """Nodes one after another; the stream also goes by them to the accumulator at the end."""
    wires = [*in_line(nodes), wired(nodes[0], nodes[-1], "x_in")]
    return timed(name, nodes, wires, phase, slots)


def _embedding(config: IntegerConfig, silent: Silent) -> Network:
    inputs = config.rows_in
    nodes = [
        Source(name="tokens", outputs=inputs, payload_bits=1),
        _synapses("embed", "table", (config.width, inputs), silent),
        _accumulator("stream", config.width, "rate", "table.bias", config.stream_bits),
    ]
    return timed("embed", nodes, in_line(nodes), 1, 1)


def _attention(config: IntegerConfig, name: str, spikes: Spikes, silent: Silent) -> Network:
    kind, integers = attention.KINDS[config.attention], INTEGERS[config.attention]
    width, code = config.width, config.attention_code
    carries = config.carries(code.coding)
    slots = _slots(code.timesteps, spikes, carries)
    rows, qkv = sum(integers.sizes(width, config.kv_width)), integers.qkv_code(code)
    coded = CodingNeurons(
        name="qkv",
        outputs=rows,
        payload_bits=spike_bits(qkv.most, slots, qkv, signed=True),
        receives=code.coding,
        sends=qkv.coding,
        most=qkv.most,
        digits=digits_of(qkv, slots),
        unsigned=integers.unsigned(width),
        input_shift=0,
        bias="c_attn.bias",
    )
    if config.rotary:
        coarse, fine = rotary.table_shapes(config.positions, config.dim)
        coded = RotaryNeurons(
            **coded.model_dump(exclude={"kind"}),
            dim=config.dim,
            turned=config.turned,
            begin=0 if config.first_token is None else 1,
            coarse=coarse[0],
            fine=fine[0],
        )
    nodes = [
        *_stream_in(config, code, slots),
        _synapses(name, "c_attn", (rows, width), silent),
        coded,
        *kind.between(config),
        CodingNeurons(
            name="merged",
            outputs=width,
            payload_bits=spike_bits(code.most, slots, code, signed=True) + _carried(carries),
            receives="rate",
            sends=code.coding,
            most=code.most,
            digits=digits_of(code, slots),
            unsigned=0,
            input_shift=arithmetic.MERGE_SHIFT,
            bias="merged.bias",
            carries=carries,
        ),
        _synapses(name, "c_proj", (width, width), silent),
        _residual(config, code.coding),
    ]
    return _block(name, nodes, kind.phase(slots, config), slots)


def _feedforward(config: IntegerConfig, name: str, spikes: Spikes, silent: Silent) -> Network:
    width, hidden, coding = config.width, config.hidden, config.coding
    carries = config.carries(coding)
    slots = max(_slots(config.timesteps, spikes, carries), config.hidden_timesteps or 1)
    code = config.hidden_code
    payload = spike_bits(config.hidden_most, slots, code, signed=config.gated)
    neurons = SwigluNeurons if config.gated else GeluNeurons
    fires = neurons(
        name="hidden",
        outputs=hidden,
        payload_bits=payload + _carried(carries),
        receives=coding,
        sends=coding,
        most=config.hidden_most,
        digits=digits_of(code, slots),
        bias="c_fc.bias",
    )
    if config.hidden_spikes:
        fires = fires.model_copy(update={"limit": config.hidden_spikes})
    nodes = [
        *_stream_in(config, config.code, slots),
        _synapses(name, "c_fc", ((1 + config.gated) * hidden, width), silent),
        fires,
        _synapses(name, "c_proj", (width, hidden), silent),
        _residual(config, coding),
    ]
    return _block(name, nodes, slots, slots)


def _head(config: IntegerConfig, silent: Silent) -> Network:
    code, slots, size = config.final_code, config.final_slots, config.vocabulary
    nodes = [
        *_stream_in(config, code, slots),
        _synapses("head", "lm_head", (size, config.width), silent),
        _accumulator("logits", size, code.coding, "lm_head.bias", arithmetic.LOGIT_BITS),
    ]
    return timed("head", nodes, in_line(nodes), slots, slots)
