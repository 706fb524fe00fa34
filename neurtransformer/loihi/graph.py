"""The graph of a netlist: which nodes each network of a block has, how wired, and when they start.

Everything here follows from the sizes of the model; a manifest holds it so that others can read it,
and is believed only if it says the same.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from neurtransformer.integer import arithmetic
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.recipe import Coding
from neurtransformer.spiking.attention import KEY_EXPANSION, MEAN_BITS, level_bits, qkv_sizes
from neurtransformer.spiking.feedforward import HIDDEN_SPIKES

Spikes = Literal["rate", "graded"]
Count = Annotated[int, Field(strict=True, ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(Strict):
    """What all nodes have. start: time steps before its first phase begins."""

    name: str
    outputs: Count
    start: Count


class Source(Node):
    """Spikes from the host: signed counts of the neurons that encode the residual stream."""

    kind: Literal["source"] = "source"


class Synapses(Node):
    """A projection in a netx file. Spikes take one step to pass, as in Lava's Dense."""

    kind: Literal["synapses"] = "synapses"
    file: str
    inputs: Count
    weight_bits: Literal[8] = 8
    silent_inputs: Literal[0, 1] = 0


class Integrating(Node):
    """What integrates spikes in a membrane. Tensor: bias, which joins in a phase's last step.

    receives: the code of the spikes that arrive; a membrane that phase-coded ones drive doubles
    each step."""

    receives: Coding
    state_bits: Literal[24] = 24
    bias: str


class CodingNeurons(Integrating):
    """Soft-reset neurons; what arrives is shifted left. Tensor: theta.

    sends: the code of their own spikes; of phase-coding ones the threshold of step t is theta times
    2^(T-1-t)."""

    kind: Literal["coding_neurons"] = "coding_neurons"
    sends: Coding
    unsigned: Count
    """The first so many send spikes 0 or 1, the others -1, 0 or 1."""
    input_shift: Count


class GeluNeurons(Integrating):
    """Neurons that fire the GELU of their membrane. Tensors: mantissa, shift, center, theta,
    table."""

    kind: Literal["gelu_neurons"] = "gelu_neurons"
    sends: Coding
    spikes_per_step: Literal[1, 2]
    fraction_bits: Literal[14] = 14
    table_entries: Literal[256] = 256


class SSA(Node):
    """Spiking self-attention with its plastic state, (heads, dim + 1, key_dim). Tensors: shift,
    present.

    Spikes of query and key facilitate: the n-th carries 2n - 1. A product enters the state of a
    head shifted left by what follows from its shift and level_bits, the bits of a count
    (`arithmetic.write_shift`); a read drops as many bits as the sum of the token's query payloads
    has (`arithmetic.read_shift`)."""

    kind: Literal["ssa"] = "ssa"
    heads: Count
    dim: Count
    key_dim: Count
    level_bits: Count
    mean_bits: Count
    state_bits: Literal[24] = 24


class Readout(Integrating):
    """Membranes that the host reads when a phase ends and adds, times `scale`, to the stream."""

    kind: Literal["readout"] = "readout"


AnyNode = Annotated[
    Source | Synapses | CodingNeurons | GeluNeurons | SSA | Readout, Field(discriminator="kind")
]


class Network(Strict):
    """One Lava network. The node `x` of network `h.0.attn` has its tensors under `h.0.attn.x.`"""

    name: str
    block: Count
    nodes: list[AnyNode]
    wires: list[tuple[str, str]]
    latency: Count
    """Steps from the first spike of a token to the first step in which its result integrates."""


def phase_steps(config: IntegerConfig, spikes: Spikes) -> int:
    """Time steps of a phase: T binary spikes, or one graded spike."""
    return config.timesteps if spikes == "rate" else 1


def networks(
    config: IntegerConfig, spikes: Spikes, silent: Mapping[str, Literal[0, 1]]
) -> list[Network]:
    """The graph of a model. silent: netx file -> silent inputs, where there are any."""
    phase = phase_steps(config, spikes)
    found = []
    for block in range(config.layers):
        found.append(_attention(config, block, phase, silent))
        found.append(_feedforward(config, block, phase, silent))
    return found


def _synapses(
    network: str, name: str, shape: tuple[int, int], start: int, silent: Mapping[str, Literal[0, 1]]
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


def _attention(
    config: IntegerConfig, block: int, phase: int, silent: Mapping[str, Literal[0, 1]]
) -> Network:
    name, width = f"h.{block}.attn", config.width
    dim = width // config.heads
    queries, keys, values = qkv_sizes(width)
    rows = queries + keys + values
    nodes: list[AnyNode] = [
        Source(name="encode", outputs=width, start=0),
        _synapses(name, "c_attn", (rows, width), 0, silent),
        CodingNeurons(
            name="qkv",
            outputs=rows,
            start=1,
            receives=config.coding,
            sends="rate",
            unsigned=queries + keys,
            input_shift=0,
            bias="c_attn.bias",
        ),
        SSA(
            name="ssa",
            outputs=width,
            start=1 + phase,
            heads=config.heads,
            dim=dim,
            key_dim=KEY_EXPANSION * dim,
            level_bits=level_bits(config.timesteps),
            mean_bits=MEAN_BITS,
        ),
        # the SSA reads, and its mean arrives, one phase after the spikes of key and value
        CodingNeurons(
            name="merged",
            outputs=width,
            start=1 + 2 * phase,
            receives="rate",
            sends=config.coding,
            unsigned=0,
            input_shift=arithmetic.MERGE_SHIFT,
            bias="merged.bias",
        ),
        _synapses(name, "c_proj", (width, width), 1 + 3 * phase, silent),
        Readout(
            name="readout",
            outputs=width,
            start=2 + 3 * phase,
            receives=config.coding,
            bias="c_proj.bias",
        ),
    ]
    return _chain(name, block, nodes)


def _feedforward(
    config: IntegerConfig, block: int, phase: int, silent: Mapping[str, Literal[0, 1]]
) -> Network:
    name, width, hidden = f"h.{block}.mlp", config.width, config.hidden
    nodes: list[AnyNode] = [
        Source(name="encode", outputs=width, start=0),
        _synapses(name, "c_fc", (hidden, width), 0, silent),
        GeluNeurons(
            name="hidden",
            outputs=hidden,
            start=1,
            receives=config.coding,
            sends=config.coding,
            spikes_per_step=HIDDEN_SPIKES[config.coding],
            bias="c_fc.bias",
        ),
        _synapses(name, "c_proj", (width, hidden), 1 + phase, silent),
        Readout(
            name="readout",
            outputs=width,
            start=2 + phase,
            receives=config.coding,
            bias="c_proj.bias",
        ),
    ]
    return _chain(name, block, nodes)


def _chain(name: str, block: int, nodes: list[AnyNode]) -> Network:
    names = [node.name for node in nodes]
    wires = list(pairwise(names))
    return Network(name=name, block=block, nodes=nodes, wires=wires, latency=nodes[-1].start)
