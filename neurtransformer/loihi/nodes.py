"""The kinds of node that a network of a netlist is made of, as they stand in a manifest, and what
each needs to be run: ports, latency, microcode, what is logged of it, what it asks of a chip.

What an attention consists of is in `attention/`, one file a kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.loihi import microcode
from neurtransformer.loihi.chip import Chip, Layer, Way, demand
from neurtransformer.loihi.microcode import Clock, Microcode
from neurtransformer.recipe import Coding, Digits

Spikes = Literal["binary", "graded"]
Count = Annotated[int, Field(strict=True, ge=0)]
Silent = Mapping[str, Literal[0, 1]]
"""netx file -> its silent inputs, where there are any."""


class Log(NamedTuple):
    """A quantity that is logged. later: whether it is of the token of the phase before. once:
    whether it stands for a whole phase, as it is at the end of one."""

    later: bool = False
    once: bool = False


@dataclass(frozen=True)
class Setting:
    """What the microcode of a node is made of. tensor: of its network, by name. tokens: how many
    pass in this run."""

    tensor: Callable[[str], Integers]
    phase: int
    slots: int
    tokens: int

    def clock(self, node: "Node") -> Clock:
        return Clock(self.phase, self.slots, node.start)


class Wire(NamedTuple):
    """From an output port of one node to an input port of another."""

    source: str
    output: str
    target: str
    input: str


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(Strict):
    """What all nodes have. start: time steps before its first phase begins, see `network.timed`.

    inputs, output: its ports, as its Lava process has them. is_matrix: whether it is synapses,
    which belong to the neurons that they lead to. table_bits: what a core that has such neurons
    holds once.
    """

    name: str
    outputs: Count
    start: Count = 0

    ports: ClassVar[tuple[str, ...]] = ()
    output: ClassVar[str] = "s_out"
    logged: ClassVar[Mapping[str, Log]] = {}
    is_matrix: ClassVar[bool] = False
    table_bits: ClassVar[int] = 0

    def latency(self, phase: int) -> int:
        """Steps from the first of a token's phase here to that of the phase in which it leaves."""
        return 0

    def shape(self, quantity: str, tokens: int) -> tuple[int, ...]:
        """Of a logged quantity, in one time step of a run of so many tokens."""
        return (self.outputs,)

    @property
    def firing(self) -> int:
        """How many neurons of it send spikes of their own."""
        return 0

    @property
    def words(self) -> int:
        """Words of state and parameters that a neuron has on a chip: at least u and v."""
        return 2

    def layers(
        self, name: str, matrices: Sequence["Matrix"], beside: int, chip: Chip
    ) -> list[Layer]:
        """What its neurons, and the synapses that lead to them, ask of a chip: see `chip.demand`.

        The last of them sends what the node sends.
        """
        return [demand(name, self, matrices, beside, chip)]


class Sending(Node):
    """A node that sends spikes. payload_bits: width of what a spike carries, sign included."""

    payload_bits: Count


class Source(Sending):
    """What enters a network: the residual stream, or what the host sends (tokens, drawings,
    labels)."""

    kind: Literal["source"] = "source"


class Matrix(Node):
    """Synapses of a kind that Lava has. Spikes take one step to pass."""

    inputs: Count
    weight_bits: Literal[8] = 8

    ports: ClassVar[tuple[str, ...]] = ("s_in",)
    output: ClassVar[str] = "a_out"
    is_matrix: ClassVar[bool] = True
    traces: ClassVar[int] = 0
    """Bits of the trace that learning synapses need for each input, and for each neuron."""

    def latency(self, phase: int) -> int:
        return 1

    @property
    def in_files(self) -> int:
        """How many of its weights stand in a file."""
        return 0

    @property
    def extent(self) -> tuple[int, int, int]:
        """Groups, rows and columns of its matrices on a chip."""
        return 1, self.outputs, self.inputs

    def way(self, offset: int) -> Way:
        """How its inputs are heard, where so many columns of other matrices are before its own."""
        return Way("columns", -offset)


class Synapses(Matrix):
    """A projection in a netx file."""

    kind: Literal["synapses"] = "synapses"
    file: str
    silent_inputs: Literal[0, 1] = 0

    @property
    def in_files(self) -> int:
        return self.inputs * self.outputs


class Convolution(Matrix):
    """A convolution in a netx file, over square pictures. Its neurons and those before it are in
    Lava's order: column, row, channel, the channel fastest."""

    kind: Literal["convolution"] = "convolution"
    file: str
    in_channels: Count
    out_channels: Count
    side: Count
    """Of the pictures that enter."""
    kernel: Count
    stride: Count
    padding: Count

    @property
    def fan_in(self) -> int:
        """Synapses of a neuron that is not at the edge."""
        return self.in_channels * self.kernel**2

    @property
    def positions(self) -> int:
        """Of the kernel: neurons of one channel."""
        return self.outputs // self.out_channels

    @property
    def in_files(self) -> int:
        """Those of a kernel count once."""
        return self.out_channels * self.fan_in

    @property
    def extent(self) -> tuple[int, int, int]:
        return self.positions, self.out_channels, self.fan_in

    def way(self, offset: int) -> Way:
        return Way("fields", kernel=self)


class PlasticSynapses(Matrix):
    """Excitatory synapses that start at 0 and learn by the rule ``dw = 2^0 x0 x1 y1`` in every time
    step, as in Lava's LearningDense. x0: a spike arrives; x1: half its payload, without decay; y1:
    what the teacher sends in that step. A product drops 3 bits; weights saturate at 0 and 255. What
    a spike reads was written before it."""

    kind: Literal["plastic_synapses"] = "plastic_synapses"
    teacher: str
    """The node that sends y1, one value for each row."""
    rule: Literal["2^0*x0*x1*y1"] = "2^0*x0*x1*y1"
    signs: Literal["excitatory"] = "excitatory"
    trace_bits: Literal[7] = 7

    ports: ClassVar[tuple[str, ...]] = ("s_in", "s_in_y1")
    logged: ClassVar[Mapping[str, Log]] = {"weight": Log()}
    traces: ClassVar[int] = 7

    def shape(self, quantity: str, tokens: int) -> tuple[int, ...]:
        return self.outputs, self.inputs


class Programmed(Sending):
    """Neurons that run microcode of ours."""

    def microcode(self, setting: Setting) -> Microcode:
        raise NotImplementedError

    def each(self, setting: Setting, name: str) -> Integers:
        """A tensor of its neurons; one of channels is the same for every position."""
        x = setting.tensor(name)
        return np.tile(x, self.outputs // len(x))

    def first(self, setting: Setting) -> tuple[Integers, Integers]:
        """Key and value of an attention's innate token."""
        key, value = (setting.tensor(f"{self.name}.first_{part}") for part in ("key", "value"))
        return key, value

    def own(self, setting: Setting, *names: str) -> dict[str, Any]:
        """Those of its tensors, under its own name."""
        return {name: self.each(setting, f"{self.name}.{name}") for name in names}


class Norm(Programmed):
    """RMSNorm, or LayerNorm without its mean: the stream over its length (`arithmetic.normed`), in
    the step in which the stream arrives. Tensor: epsilon."""

    kind: Literal["norm"] = "norm"
    state_bits: Literal[24] = 24
    fraction_bits: Literal[14] = 14
    table_entries: Literal[192] = 192

    ports: ClassVar[tuple[str, ...]] = ("x_in",)
    logged: ClassVar[Mapping[str, Log]] = {"y": Log()}
    table_bits: ClassVar[int] = 192 * 8

    @property
    def words(self) -> int:
        """The channel, until the sum is there."""
        return 1

    def microcode(self, setting: Setting) -> Microcode:
        return microcode.Norm(
            setting.clock(self),
            width=self.outputs,
            epsilon=int(setting.tensor(f"{self.name}.epsilon")[0]),
            shifts=arithmetic.NORM_SHIFTS,
            roots=arithmetic.ROOTS,
            fraction_bits=self.fraction_bits,
        )


class Integrating(Programmed):
    """What integrates spikes in a membrane. Tensor: bias, which joins in a phase's last step.

    receives: the code of the spikes that arrive; a membrane that phase-coded ones drive doubles
    each step."""

    receives: Coding
    state_bits: Literal[24] = 24
    bias: str

    ports: ClassVar[tuple[str, ...]] = ("a_in",)


class Neurons(Integrating):
    """What fires in the phase after the one in which it integrates."""

    digits: Digits = "binary"
    """Of counts that it sends digit by digit. With signed ones the threshold of -1 is a state."""

    logged: ClassVar[Mapping[str, Log]] = {
        "u": Log(),
        "v": Log(later=True),
        "spikes": Log(later=True),
    }

    @property
    def firing(self) -> int:
        return self.outputs

    def latency(self, phase: int) -> int:
        return phase

    @property
    def words(self) -> int:
        """Bias and threshold beside u and v."""
        return 4 + (self.digits == "signed")


class CodingNeurons(Neurons):
    """Soft-reset neurons; what arrives is shifted left. Tensor: theta.

    sends: the code of their own spikes; of phase-coding ones the threshold of step t is theta times
    2^(T-1-t). most: the largest count that one sends in a phase. A channel is one compartment, even
    if its spikes are signed: a graded spike of one bit and sign carries those. carries: whether
    there is a tensor carry, and a spike carries 2^carry."""

    kind: Literal["coding_neurons"] = "coding_neurons"
    sends: Coding
    most: Count
    unsigned: Count
    """The first so many send no negative spikes."""
    input_shift: Count
    carries: Annotated[bool, Field(strict=True)] = False

    @property
    def words(self) -> int:
        return super().words + int(self.carries)

    def microcode(self, setting: Setting) -> Microcode:
        return microcode.CodingNeurons(
            setting.clock(self),
            bias=self.each(setting, self.bias),
            **self.own(setting, "theta", *(["carry"] if self.carries else [])),
            unsigned=self.unsigned,
            receives=self.receives,
            sends=self.sends,
            most=self.most,
            digits=self.digits,
            shift_in=self.input_shift,
        )


class GeluNeurons(Neurons):
    """Neurons that fire the GELU of their membrane, 0..most times a phase. Tensors: mantissa,
    shift, center, theta, table."""

    kind: Literal["gelu_neurons"] = "gelu_neurons"
    sends: Coding
    most: Count
    fraction_bits: Literal[14] = 14
    table_entries: Literal[256] = 256

    table_bits: ClassVar[int] = 256 * 16

    @property
    def words(self) -> int:
        """Centre, and mantissa with shift, beside the rest."""
        return super().words + 2

    def microcode(self, setting: Setting) -> Microcode:
        return microcode.GeluNeurons(
            setting.clock(self),
            bias=self.each(setting, self.bias),
            **self.own(setting, "theta", "mantissa", "shift", "center"),
            table=setting.tensor(f"{self.name}.table"),
            index_shift=self.fraction_bits - arithmetic.GELU_INDEX_BITS,
            receives=self.receives,
            sends=self.sends,
            most=self.most,
            digits=self.digits,
        )


class KeyNeurons(Neurons):
    """Unsigned neurons that send one graded spike a phase, in its last step: twice their count,
    0..most, because plastic synapses halve it. What arrives is shifted left. Tensor: theta."""

    kind: Literal["key_neurons"] = "key_neurons"
    most: Count
    input_shift: Count

    def microcode(self, setting: Setting) -> Microcode:
        return microcode.KeyNeurons(
            setting.clock(self),
            bias=self.each(setting, self.bias),
            **self.own(setting, "theta"),
            most=self.most,
            shift_in=self.input_shift,
        )


class Accumulator(Integrating):
    """Membranes that do not fire: in a phase's last step they send the stream so far and what they
    integrated, times mantissa / 2^shift. Tensors: mantissa, shift.

    delay: phases that the stream waits for them, 0 if none comes in. fraction_bits: of what they
    send."""

    kind: Literal["accumulator"] = "accumulator"
    delay: Count = 0
    fraction_bits: Count

    ports: ClassVar[tuple[str, ...]] = ("a_in", "x_in")
    logged: ClassVar[Mapping[str, Log]] = {"u": Log(), "x": Log()}

    @property
    def words(self) -> int:
        """u, bias, mantissa and shift, the stream that waits."""
        return 3 + self.delay

    def microcode(self, setting: Setting) -> Microcode:
        return microcode.Accumulator(
            setting.clock(self),
            bias=self.each(setting, self.bias),
            **self.own(setting, "mantissa", "shift"),
            receives=self.receives,
            delay=self.delay,
        )


NODES: tuple[type[Node], ...] = (
    Source,
    Synapses,
    Convolution,
    PlasticSynapses,
    Norm,
    CodingNeurons,
    GeluNeurons,
    KeyNeurons,
    Accumulator,
)
"""Those that every kind of attention may use."""
