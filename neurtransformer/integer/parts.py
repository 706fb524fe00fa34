"""What the networks of an IntegerGPT2 are built from: synapses, encoders, neurons, accumulators.

Each part has its integers from the tensors of the model (layout.py) and two forms: counts, for any
batch at once, and steps, what the chip does in each time step of one sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.packed import KEPT
from neurtransformer.recipe import Code, Coding

Tensors = Mapping[str, NDArray]
Trace = dict[str, Integers]
"""`node.quantity` -> (tokens, phase, ...), nodes as in loihi/nodes.py; what is the same in all
steps of a phase, such as the state after a token has been written, (tokens, ...)."""


def integers(tensors: Tensors, name: str) -> Integers:
    """One tensor as int64."""
    return tensors[name].astype(np.int64)


def carry_of(tensors: Tensors, name: str) -> Integers | int:
    """Exponents of what the spikes of the neurons `name` carry, 0 where it is their count alone."""
    return integers(tensors, f"{name}.carry") if f"{name}.carry" in tensors else 0


def by_token(trace: Trace) -> Trace:
    """(phase, tokens, ...) to (tokens, phase, ...)."""
    return {key: x.swapaxes(0, 1) for key, x in trace.items()}


def at_the_end(x: Integers, phase: int) -> Integers:
    """What is sent in the last step of a phase alone: (..., n) to (phase, ..., n)."""
    sent = np.zeros((phase, *x.shape), dtype=np.int64)
    sent[-1] = x
    return sent


@dataclass(frozen=True)
class Projection:
    """Synapses and the membranes they drive: ``u = weight @ spikes + bias``.

    bias: (out,). No sum over a phase can leave 24 bits (see quantise.py), so sums in float32 are
    exact in any order. saturates: but in this one, whose membranes are clipped; its sums are made
    in float64.
    """

    tensors: Tensors
    name: str
    bias: Integers
    saturates: bool = False

    @classmethod
    def of(cls, tensors: Tensors, name: str, *, saturates: bool = False) -> "Projection":
        return cls(tensors, name, integers(tensors, f"{name}.bias"), saturates)

    @property
    def weight(self) -> Integers:
        """(out, in), even, 8 bits."""
        return self.tensors[f"{self.name}.weight"]

    def _transposed(self) -> NDArray:
        return self.weight.T.astype(np.float64 if self.saturates else np.float32)

    @cached_property
    def _large(self) -> bool:
        return self.weight.size > KEPT

    @cached_property
    def _kept(self) -> NDArray:
        return self._transposed()

    def synapses(self, spikes: Integers) -> Integers:
        """Spikes or counts (..., in) to what they add to the membranes, (..., out)."""
        # of a large network floats kept beside the weights would take four times their room
        transposed = self._transposed() if self._large else self._kept
        return (spikes.astype(transposed.dtype) @ transposed).astype(np.int64)

    def counts(self, counts: Integers) -> Integers:
        """Counts (..., in) to membranes (..., out) at the end of a phase."""
        total = self.synapses(counts)
        return arithmetic.saturated(total, self.bias) if self.saturates else total + self.bias

    def steps(self, spikes: Integers, coding: Coding, slots: int) -> Integers:
        """Spikes (phase, ..., in) to membranes (phase, ..., out) after each step."""
        return arithmetic.integrate(self.synapses(spikes), self.bias, coding, slots)


@dataclass(frozen=True)
class Encoder:
    """LayerNorm and the signed neurons that code its result: residual stream to spikes.

    theta, bias: (n,), in units of `arithmetic.normed`. code: of the spikes that leave. carry: those
    carry 2^carry, (n,).
    """

    epsilon: int
    theta: Integers
    bias: Integers
    code: Code
    carry: Integers | int = 0

    @classmethod
    def of(cls, tensors: Tensors, name: str, code: Code) -> "Encoder":
        """Of the network `name`."""
        return cls(
            int(tensors[f"{name}.norm.epsilon"][0]),
            integers(tensors, f"{name}.encode.theta"),
            integers(tensors, f"{name}.encode.bias"),
            code,
            carry_of(tensors, f"{name}.encode"),
        )

    def counts(self, x: Integers) -> Integers:
        """Stream (..., n) to counts (..., n)."""
        u = arithmetic.normed(x, self.epsilon) + self.bias
        return arithmetic.fire_counts(u, self.theta, self.code.most, signed=True) << self.carry

    def steps(self, x: Integers, phase: int, slots: int) -> Trace:
        """Stream (tokens, n) to all that happens, (phase, tokens, n)."""
        y = at_the_end(arithmetic.normed(x, self.epsilon), phase)
        u = arithmetic.integrate(y, self.bias, "rate", slots)
        _, coding, digits = self.code
        spikes, v = arithmetic.fire_steps(
            u[-1], self.theta, self.code.most, True, phase, slots, coding, digits=digits
        )
        return {"norm.y": y, "encode.u": u, "encode.spikes": spikes << self.carry, "encode.v": v}


@dataclass(frozen=True)
class GeluNeurons:
    """Coding neurons whose membrane passes a GELU before they fire. All (n,), table apart."""

    carry: ClassVar[int] = 0
    mantissa: Integers
    shift: Integers
    center: Integers
    theta: Integers
    table: Integers

    @classmethod
    def of(cls, tensors: Tensors, name: str) -> "GeluNeurons":
        names = ("mantissa", "shift", "center", "theta", "table")
        return cls(*(integers(tensors, f"{name}.{part}") for part in names))

    def membrane(self, u: Integers) -> Integers:
        """What they fire from, for the integrated membrane u (..., n)."""
        x = arithmetic.rescale(u, self.mantissa, self.shift)
        return arithmetic.saturate(arithmetic.gelu(x, self.table) - self.center)


@dataclass(frozen=True)
class SwigluNeurons:
    """Coding neurons of two membranes, the gate's and another, that fire for the product of the
    gate's SiLU and the other. All (n,), table apart. drop: bits that a product is too long. carry:
    their spikes carry 2^carry."""

    mantissa: Integers
    shift: Integers
    drop: Integers
    center: Integers
    theta: Integers
    table: Integers
    carry: Integers | int = 0

    @classmethod
    def of(cls, tensors: Tensors, name: str) -> "SwigluNeurons":
        names = ("mantissa", "shift", "drop", "center", "theta", "table")
        parts = {part: integers(tensors, f"{name}.{part}") for part in names}
        return cls(**parts, carry=carry_of(tensors, name))

    def membrane(self, u: Integers) -> Integers:
        """What they fire from, (..., n), for the integrated membranes u (..., 2 n), gates first."""
        gate, x = np.split(u, 2, axis=-1)
        gate = arithmetic.gelu(arithmetic.rescale(gate, self.mantissa, self.shift), self.table)
        return arithmetic.saturate(arithmetic.product(gate, x, self.drop) - self.center)


@dataclass(frozen=True)
class Accumulator:
    """Membranes that do not fire: they add what they integrated, in its unit, to a stream.

    mantissa, shift: (n,), see `arithmetic.rescale`.
    """

    mantissa: Integers
    shift: Integers

    @classmethod
    def of(cls, tensors: Tensors, name: str) -> "Accumulator":
        return cls(integers(tensors, f"{name}.mantissa"), integers(tensors, f"{name}.shift"))

    def add(self, u: Integers, x: Integers | int = 0) -> Integers:
        """Membranes (..., n) at the end of a phase, and the stream so far, to the stream."""
        return arithmetic.saturate(x + arithmetic.rescale(u, self.mantissa, self.shift))
