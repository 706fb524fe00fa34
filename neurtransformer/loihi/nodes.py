"""The kinds of node that a network of a netlist is made of, as they stand in a manifest."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from neurtransformer.recipe import Coding

Spikes = Literal["rate", "graded"]
Count = Annotated[int, Field(strict=True, ge=0)]
Silent = Mapping[str, Literal[0, 1]]
"""netx file -> its silent inputs, where there are any."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(Strict):
    """What all nodes have. start: time steps before its first phase begins."""

    name: str
    outputs: Count
    start: Count


class Sending(Node):
    """A node that sends spikes. payload_bits: width of what a spike carries, sign included."""

    payload_bits: Count


class Source(Sending):
    """What enters a network: the residual stream, or what the host sends (tokens, drawings,
    labels)."""

    kind: Literal["source"] = "source"


class Synapses(Node):
    """A projection in a netx file. Spikes take one step to pass, as in Lava's Dense."""

    kind: Literal["synapses"] = "synapses"
    file: str
    inputs: Count
    weight_bits: Literal[8] = 8
    silent_inputs: Literal[0, 1] = 0


class Convolution(Node):
    """A convolution in a netx file, over square pictures. Its neurons and those before it are in
    Lava's order: column, row, channel, the channel fastest. Spikes take one step to pass."""

    kind: Literal["convolution"] = "convolution"
    file: str
    inputs: Count
    in_channels: Count
    out_channels: Count
    side: Count
    """Of the pictures that enter."""
    kernel: Count
    stride: Count
    padding: Count
    weight_bits: Literal[8] = 8

    @property
    def fan_in(self) -> int:
        """Synapses of a neuron that is not at the edge."""
        return self.in_channels * self.kernel**2

    @property
    def positions(self) -> int:
        """Of the kernel: neurons of one channel."""
        return self.outputs // self.out_channels


class PlasticSynapses(Node):
    """Excitatory synapses that start at 0 and learn by the rule ``dw = 2^0 x0 x1 y1`` in every time
    step, as in Lava's LearningDense. x0: a spike arrives; x1: half its payload, without decay; y1:
    what the teacher sends in that step. A product drops 3 bits; weights saturate at 0 and 255. What
    a spike reads was written before it, and arrives one step later."""

    kind: Literal["plastic_synapses"] = "plastic_synapses"
    inputs: Count
    teacher: str
    """The node that sends y1, one value for each row."""
    rule: Literal["2^0*x0*x1*y1"] = "2^0*x0*x1*y1"
    signs: Literal["excitatory"] = "excitatory"
    weight_bits: Literal[8] = 8
    trace_bits: Literal[7] = 7


class Norm(Sending):
    """LayerNorm without its mean: the stream over its length (`arithmetic.normed`), in the step in
    which the stream arrives. Tensor: epsilon."""

    kind: Literal["norm"] = "norm"
    state_bits: Literal[24] = 24
    fraction_bits: Literal[14] = 14
    table_entries: Literal[192] = 192


class Integrating(Sending):
    """What integrates spikes in a membrane. Tensor: bias, which joins in a phase's last step.

    receives: the code of the spikes that arrive; a membrane that phase-coded ones drive doubles
    each step."""

    receives: Coding
    state_bits: Literal[24] = 24
    bias: str


class CodingNeurons(Integrating):
    """Soft-reset neurons; what arrives is shifted left. Tensor: theta.

    sends: the code of their own spikes; of phase-coding ones the threshold of step t is theta times
    2^(T-1-t). most: the largest count that one sends in a phase."""

    kind: Literal["coding_neurons"] = "coding_neurons"
    sends: Coding
    most: Count
    unsigned: Count
    """The first so many send no negative spikes."""
    input_shift: Count


class GeluNeurons(Integrating):
    """Neurons that fire the GELU of their membrane, 0..most times a phase. Tensors: mantissa,
    shift, center, theta, table."""

    kind: Literal["gelu_neurons"] = "gelu_neurons"
    sends: Coding
    most: Count
    fraction_bits: Literal[14] = 14
    table_entries: Literal[256] = 256


class KeyNeurons(Integrating):
    """Unsigned neurons that send one graded spike a phase, in its last step: twice their count,
    0..most, because plastic synapses halve it. What arrives is shifted left. Tensor: theta."""

    kind: Literal["key_neurons"] = "key_neurons"
    most: Count
    input_shift: Count


class SSA(Sending):
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


class Accumulator(Integrating):
    """Membranes that do not fire: in a phase's last step they send the stream so far and what they
    integrated, times mantissa / 2^shift. Tensors: mantissa, shift.

    delay: phases that the stream waits for them, 0 if none comes in. fraction_bits: of what they
    send."""

    kind: Literal["accumulator"] = "accumulator"
    delay: Count
    fraction_bits: Count


AnyNode = Annotated[
    Source
    | Synapses
    | Convolution
    | PlasticSynapses
    | Norm
    | CodingNeurons
    | GeluNeurons
    | KeyNeurons
    | SSA
    | Accumulator,
    Field(discriminator="kind"),
]


class Network(Strict):
    """One Lava network. The node `x` of network `h.0.attn` has its tensors under `h.0.attn.x.`"""

    name: str
    nodes: list[AnyNode]
    wires: list[tuple[str, str]]
    phase: Count
    """Time steps of a phase, in which one token is handled."""
    latency: Count
    """Steps from the first of a token's phase at the source to that at the last node."""

    @property
    def result(self) -> str:
        """What leaves the network, as a trace names it."""
        return f"{self.nodes[-1].name}.x"

    @property
    def sources(self) -> list[str]:
        """The nodes that send what enters."""
        return [node.name for node in self.nodes if isinstance(node, Source)]


def chain(name: str, phase: int, *nodes: AnyNode) -> Network:
    """Nodes one after another; the stream also goes by them to the accumulator at the end."""
    names = [node.name for node in nodes]
    wires = list(pairwise(names))
    if isinstance(nodes[-1], Accumulator) and nodes[-1].delay:
        wires.append((names[0], names[-1]))
    return Network(name=name, nodes=list(nodes), wires=wires, phase=phase, latency=nodes[-1].start)
