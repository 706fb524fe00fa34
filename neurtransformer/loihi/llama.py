"""What a Llama has on the chip beside a GPT-2: neurons that turn, and neurons that multiply.

Each node stands with its microcode (`microcode.py`), which calls nothing of the integer model.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from neurtransformer.integer.arithmetic import GELU_INDEX_BITS
from neurtransformer.loihi import microcode
from neurtransformer.loihi.chip import Chip, Layer
from neurtransformer.loihi.microcode import (
    FAR,
    Clock,
    Microcode,
    Rescaling,
    Words,
    above_dip,
    length,
    rounded,
    saturate,
    words,
)
from neurtransformer.loihi.nodes import CodingNeurons, Count, Matrix, Neurons, Node, Setting
from neurtransformer.recipe import Coding, Digits


class RotaryCode(microcode.CodingNeurons):
    """Signed neurons, the first `turned` of which are turned in pairs before they fire.

    coarse, fine: cosines and sines with `pair_bits` fraction bits, (entries, dim / 2, 2), of heads
    that are dim wide: of every len(fine)-th position, and of those between. begin: the position of
    the first token.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bias: ArrayLike,
        theta: ArrayLike,
        coarse: ArrayLike,
        fine: ArrayLike,
        turned: int,
        begin: int,
        pair_bits: int,
        receives: Coding,
        sends: Coding,
        most: int,
        digits: Digits = "binary",
    ) -> None:
        super().__init__(
            clock,
            bias=bias,
            theta=theta,
            unsigned=0,
            receives=receives,
            sends=sends,
            most=most,
            digits=digits,
        )
        self.coarse, self.fine = words(coarse), words(fine)
        self.channels, self.pair_bits = turned, pair_bits
        self.position = words([begin])

    def membrane(self) -> Words:
        x = self.u.copy()
        pairs = x[: self.channels].reshape(-1, 2, self.fine.shape[1])
        position = int(self.position[0])
        self.position += 1
        high = position // len(self.fine)
        if high < len(self.coarse):  # else a sequence is over
            self.turn(pairs, self.coarse[high])
            self.turn(pairs, self.fine[position - high * len(self.fine)])
        return x

    def turn(self, pairs: Words, by: Words) -> None:
        """Heads (n, 2, dim / 2), in place. A product of 24 bits by 15 is two of 12 by 15."""
        cos, sin = by[:, 0], by[:, 1]
        above, below = pairs >> 12, pairs & 4095
        half = np.int32(1 << (self.pair_bits - 1))
        for i, (first, other, sign) in enumerate(((0, 1, -1), (1, 0, 1))):
            large = above[:, first] * cos + sign * (above[:, other] * sin)
            small = below[:, first] * cos + sign * (below[:, other] * sin) + half
            pairs[:, i] = (large + (small >> 12)) >> (self.pair_bits - 12)
        saturate(pairs)


def shortened(x: Words, bits: int) -> tuple[Words, Words]:
    """The leading bits of x, rounded, and by how many bits it was longer."""
    more = np.maximum(length(np.abs(x)) - bits, 0)
    return rounded(x, more), more


class SwigluCode(microcode.CodingNeurons):
    """Signed neurons that fire the product of a gate's SiLU and another membrane, less a centre.

    bias: (2 n,), of the gates first. theta, mantissa, shift, center: (n,); see `GeluNeurons`, as
    for table. drop: (n,), bits that a product is too long. leading_bits: of each factor. limit:
    spikes after which a neuron is silent until it fires for the next token, 0 for no such number.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bias: ArrayLike,
        theta: ArrayLike,
        mantissa: ArrayLike,
        shift: ArrayLike,
        drop: ArrayLike,
        center: ArrayLike,
        table: ArrayLike,
        index_shift: int,
        leading_bits: int,
        receives: Coding,
        sends: Coding,
        most: int,
        digits: Digits = "binary",
        limit: int = 0,
        carry: ArrayLike = 0,
    ) -> None:
        super().__init__(
            clock,
            bias=bias,
            theta=theta,
            unsigned=0,
            receives=receives,
            sends=sends,
            most=most,
            digits=digits,
            carry=carry,
        )
        self.limit, self.sent = limit, np.zeros_like(self.theta)
        self.outputs = len(self.theta)
        self.v, self.spikes = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.sign, self.signed = np.ones_like(self.theta), np.ones_like(self.theta)
        self.rescaling = Rescaling(mantissa, shift)
        self.center, self.table, self.drop = words(center), words(table), words(drop)
        self.index_shift, self.leading_bits = index_shift, leading_bits

    def membrane(self) -> Words:
        gate = self.rescaling.of(self.u[: self.outputs])
        y = above_dip(gate, self.table, self.index_shift)
        y = self.times(y, self.u[self.outputs :])
        y -= self.center
        saturate(y)
        return y

    def hand_over(self) -> None:
        super().hand_over()
        self.sent[:] = 0

    def fire(self, step: int) -> Words:
        before = self.v.copy()
        spikes = super().fire(step)
        if self.limit:
            silent = self.sent >= self.limit
            self.v[silent] = before[silent]
            spikes[silent] = 0
            self.sent += spikes
        return spikes

    def times(self, a: Words, b: Words) -> Words:
        """Products of the leading bits, shifted to where they belong."""
        (a, over), (b, more) = (shortened(x, self.leading_bits) for x in (a, b))
        right = self.drop - over - more
        x = rounded(a * b, np.clip(right, 0, FAR))
        saturate(x)
        for bit in range(np.maximum(-right, 0).max(initial=0)):
            x += np.where(-right > bit, x, 0)
            saturate(x)
        return x


class RotaryNeurons(CodingNeurons):
    """Those of query, key and value where positions are rotary: the membranes of the first `turned`
    of them, in heads of pairs, turn by the angle of the token's position before they fire. Tensors:
    theta, coarse, fine (`integer/rotary.py`).

    dim: of a head. begin: the position of a text's first token. coarse, fine: entries of these
    tables."""

    kind: Literal["rotary_neurons"] = "rotary_neurons"  # type: ignore[assignment]
    dim: Count
    turned: Count
    begin: Count
    coarse: Count
    fine: Count
    pair_bits: Literal[14] = 14

    def microcode(self, setting: Setting) -> Microcode:
        return RotaryCode(
            setting.clock(self),
            bias=self.each(setting, self.bias),
            **self.own(setting, "theta"),
            coarse=setting.tensor(f"{self.name}.coarse"),
            fine=setting.tensor(f"{self.name}.fine"),
            turned=self.turned,
            begin=self.begin,
            pair_bits=self.pair_bits,
            receives=self.receives,
            sends=self.sends,
            most=self.most,
            digits=self.digits,
        )

    def layers(self, name: str, matrices: Sequence[Matrix], beside: int, chip: Chip) -> list[Layer]:
        """A core holds the tables of one head: a cosine and a sine for a pair of channels."""
        (layer,) = super().layers(name, matrices, beside, chip)
        tables = (self.coarse + self.fine) * self.dim * 16
        return [replace(layer, table_bits=tables)]


class SwigluNeurons(Neurons):
    """Neurons with two membranes, of a gate and of another input, that fire for the product of the
    gate's SiLU and the other, -most..most times a phase. Gates come first. Tensors: mantissa,
    shift, drop, center, theta, table.

    leading_bits: of each factor that reach the product. limit: spikes after which a neuron is
    silent for the rest of its phase, which a counter finds; 0 where none is. Those have a tensor
    carry, see `CodingNeurons`. On a chip the second membrane is that of a compartment of its own.
    """

    kind: Literal["swiglu_neurons"] = "swiglu_neurons"
    sends: Coding
    most: Count
    fraction_bits: Literal[14] = 14
    table_entries: Literal[512] = 512
    leading_bits: Literal[11] = 11
    limit: Count = 0

    table_bits: ClassVar[int] = 512 * 16

    @property
    def words(self) -> int:
        """Of each of the two compartments: bias, threshold, centre, mantissa, shift and dropped
        bits beside u and v, and of those that stop the counter and what their spikes carry."""
        return super().words + (6 if self.limit else 4)

    def shape(self, quantity: str, tokens: int) -> tuple[int, ...]:
        return (2 * self.outputs,) if quantity == "u" else (self.outputs,)

    def microcode(self, setting: Setting) -> Microcode:
        names = ["theta", "mantissa", "shift", "drop", "center", *(["carry"] if self.limit else [])]
        return SwigluCode(
            setting.clock(self),
            bias=setting.tensor(self.bias),
            **self.own(setting, *names),
            table=setting.tensor(f"{self.name}.table"),
            index_shift=self.fraction_bits - GELU_INDEX_BITS,
            leading_bits=self.leading_bits,
            receives=self.receives,
            sends=self.sends,
            most=self.most,
            digits=self.digits,
            limit=self.limit,
        )


NODES: tuple[type[Node], ...] = (RotaryNeurons, SwigluNeurons)
