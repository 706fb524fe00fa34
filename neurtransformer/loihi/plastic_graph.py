"""The graph of a plastic transformer's netlist: one network, from a drawing to the label's logits.

A token is a drawing and a label; one phase handles it. Its label is sent when its keys arrive at
the plastic synapses, which is several phases after its drawing.
"""

from collections.abc import Iterator

from neurtransformer.integer.arithmetic import NORM_BITS, STATE_BITS
from neurtransformer.integer.plastic import KEY_MOST, KEY_SHIFT, STRIDE, PlasticConfig
from neurtransformer.loihi.network import Network, in_line, timed, wired
from neurtransformer.loihi.nodes import (
    Accumulator,
    CodingNeurons,
    Convolution,
    KeyNeurons,
    Node,
    Norm,
    PlasticSynapses,
    Source,
    Spikes,
)


def plastic_networks(config: PlasticConfig, spikes: Spikes) -> list[Network]:
    """The graph of a plastic transformer: the drawing's way, and the labels that teach."""
    phase = config.timesteps if spikes == "binary" else 1
    encoder = list(_encoder(config, phase))
    labels = Source(name="labels", outputs=config.ways, payload_bits=config.timesteps.bit_length())
    attention = PlasticSynapses(
        name="attention", outputs=config.ways, inputs=config.keys, teacher=labels.name
    )
    logits = _accumulator("logits", config.ways, "logits.bias")
    wires = [*in_line([*encoder, attention, logits]), wired(labels, attention, "s_in_y1")]
    return [timed("decoder", [*encoder, labels, attention, logits], wires, phase, phase)]


def _encoder(config: PlasticConfig, phase: int) -> Iterator[Node]:
    """From the drawing to the keys' spikes, which leave in the last step of a phase."""
    ink, most = (-(-count // phase) for count in (config.timesteps, config.hidden_most))
    yield Source(name="ink", outputs=config.side**2, payload_bits=ink.bit_length())
    last = len(config.convolutions) - 1
    sides = config.sides
    for i, sizes in enumerate(config.convolutions):
        outputs = sizes.outputs * sides[i + 1] ** 2
        yield Convolution(
            name=f"conv{i}",
            outputs=outputs,
            file=f"netx/decoder.conv{i}.net",
            inputs=sizes.inputs * sides[i] ** 2,
            in_channels=sizes.inputs,
            out_channels=sizes.outputs,
            side=sides[i],
            kernel=sizes.kernel,
            stride=STRIDE,
            padding=sizes.padding,
        )
        if i == last:
            yield _accumulator("membranes", outputs, f"conv{i}.bias")
            break
        yield CodingNeurons(
            name=f"neurons{i}",
            outputs=outputs,
            payload_bits=most.bit_length(),
            receives="rate",
            sends="rate",
            most=config.hidden_most,
            unsigned=outputs,
            input_shift=0,
            bias=f"conv{i}.bias",
        )
    yield Norm(name="norm", outputs=config.keys, payload_bits=NORM_BITS + 2)
    yield KeyNeurons(
        name="keys",
        outputs=config.keys,
        payload_bits=(2 * KEY_MOST).bit_length(),
        receives="rate",
        bias="keys.bias",
        most=KEY_MOST,
        input_shift=KEY_SHIFT,
    )


def _accumulator(name: str, outputs: int, bias: str) -> Accumulator:
    return Accumulator(
        name=name,
        outputs=outputs,
        payload_bits=STATE_BITS,
        receives="rate",
        bias=bias,
        fraction_bits=0,
    )
