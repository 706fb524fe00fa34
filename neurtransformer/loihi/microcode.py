"""What neurons, LayerNorm and the residual stream do in a time step, in the manner of microcode.

Words of 32 bits, of which a state takes 24: additions, shifts, comparisons, products by a few bits,
look-ups. Nothing here calls `integer/arithmetic.py`, which says the same in closed forms: where the
two are compared, step by step, a wrong formula on either side shows. No Lava is needed; the process
that runs these in Lava is `processes.Population`.

Time is cut into phases. One phase handles one token, and every population is one or more phases
behind the one before it, as in a pipeline (`Clock`).

- A neuron *integrates* the spikes of a phase in u, which its bias joins in the last step; when the
  next phase begins, u is handed to v, from which the neuron *fires* in the first steps of that
  phase, its slots (soft reset), while u integrates the next token. On the chip these are the two
  states of one neuron. Where phase-coded spikes arrive u doubles each step; where they are sent the
  threshold halves each step, or two do, if digits are signed.

The residual stream, what LayerNorm makes of it and keys are sent in the last step of a phase. A
signed population sends spikes of +1 and -1, a staggered pair of +1 and +2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neurtransformer.recipe import Coding, Digits

Words = NDArray[np.int32]

LIMIT = 2**23 - 1
"""Largest magnitude of a state."""

FAR = 28
"""A product of 24 by 3 bits that is shifted so far, or farther, rounds to 0."""


@dataclass(frozen=True)
class Clock:
    """When a population does what. start: time steps before its first phase. slots: steps of a
    phase, the first, in which neurons fire."""

    phase: int
    slots: int
    start: int

    def step(self, now: int) -> int:
        """Step of a phase that time step `now`, from 0, is: -1 before the first phase."""
        return (now - self.start) % self.phase if now >= self.start else -1

    def token(self, now: int) -> int:
        """The phase that time step `now` belongs to, from 0."""
        return (now - self.start) // self.phase

    def is_last(self, now: int) -> bool:
        """Whether `now` is the last step of a phase."""
        return self.step(now) == self.phase - 1


def words(x: ArrayLike) -> Words:
    """A copy in words."""
    return np.array(x, dtype=np.int32)


def saturate(x: Words) -> None:
    """Clip to 24 bits, in place."""
    np.clip(x, -LIMIT, LIMIT, out=x)


def rounded(x: Words, right: ArrayLike) -> Words:
    """x shifted to the right, 0 bits or more, halves rounded up."""
    right = np.asarray(right, dtype=np.int32)
    return (x + (np.left_shift(np.int32(1), right) >> 1)) >> right


def total(x: Words) -> Words:
    """Sum over the last axis of what is never negative, up to 2^23: pair by pair, in a tree."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        left, rest = x[..., :half] + x[..., half : 2 * half], x[..., 2 * half :]
        x = np.concatenate([left, rest], axis=-1)
        np.minimum(x, LIMIT + 1, out=x)
    return x[..., 0]


def length(x: Words) -> Words:
    """Bits of numbers that are not negative: how often they can be halved."""
    bits, left = np.zeros_like(x), x.copy()
    while left.any():
        bits += left > 0
        left >>= 1
    return bits


def counted(v: Words, theta: Words, most: int) -> Words:
    """How often theta goes into v, 0..most, by comparing; v loses so many of them, in place.

    The thresholds that are compared with are theta times a power of two, the highest first.
    """
    count = np.zeros_like(v)
    for bit in reversed(range(most.bit_length())):
        weight = 1 << bit
        fires = (v >= theta << bit) & (count + weight <= most)
        count += fires * np.int32(weight)
        v -= np.where(fires, theta << bit, 0)
    return count


class Microcode:
    """A population. Its arrays are its state and its parameters, and stay where they are.

    inputs: width of each input port. outputs: how many neurons send.
    """

    inputs: Mapping[str, int]
    outputs: int

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        """One time step, from 0: what arrives at each port to what is sent."""
        raise NotImplementedError

    @property
    def arrays(self) -> dict[str, Words]:
        """Its arrays by name."""
        return {name: x for name, x in vars(self).items() if isinstance(x, np.ndarray)}


class Integrating(Microcode):
    """A membrane u that integrates the spikes of a phase, and starts again with the next.

    bias: (n,). receives: the code of what arrives, which is shifted left by `shift_in`. One that
    doubles saturates.
    """

    def __init__(self, clock: Clock, bias: ArrayLike, receives: Coding, shift_in: int = 0) -> None:
        super().__init__(clock)
        self.bias = words(bias)
        self.u = np.zeros_like(self.bias)
        self.doubles = receives == "phase"
        self.shift_in = shift_in
        self.outputs = len(self.bias)
        self.inputs = {"a_in": self.outputs}

    def integrate(self, now: int, arriving: Words) -> None:
        """One step of a phase."""
        step = self.clock.step(now)
        if step == 0:
            self.u[:] = 0
        elif self.doubles and step < self.clock.slots:
            self.u += self.u
        self.u += arriving << self.shift_in
        if self.doubles:
            saturate(self.u)
        if self.clock.is_last(now):
            self.u += self.bias
            if self.doubles:
                saturate(self.u)


class CodingNeurons(Integrating):
    """Soft-reset neurons. bias, theta: (n,). The first `unsigned` of them are unsigned.

    receives, sends: the codes of the spikes that arrive and leave. most: the largest count that
    leaves. digits: of counts that leave digit by digit. carry: (n,) or one for all, what spikes
    carry is 2^carry times as much.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bias: ArrayLike,
        theta: ArrayLike,
        unsigned: int,
        receives: Coding,
        sends: Coding,
        most: int,
        digits: Digits = "binary",
        shift_in: int = 0,
        carry: ArrayLike = 0,
    ) -> None:
        super().__init__(clock, bias, receives, shift_in)
        self.theta = words(theta)
        self.has_signs = digits == "signed" and clock.slots > 1
        if self.has_signs:
            self.low = np.zeros_like(self.theta)
        self.carry = words(np.broadcast_to(carry, self.theta.shape))
        self.signed = words(np.arange(self.outputs) >= unsigned)
        self.v, self.spikes = np.zeros_like(self.bias), np.zeros_like(self.bias)
        self.sign = np.ones_like(self.bias)
        self.sends, self.most = sends, most

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        step = self.clock.step(now)
        if step < 0:
            return self.spikes
        if step == 0 and self.clock.token(now) > 0:
            self.hand_over()
        self.integrate(now, arriving["a_in"])
        self.spikes[:] = 0
        if step < self.clock.slots:
            self.spikes[:] = self.sign * (self.fire(step) << self.carry)
        return self.spikes

    def membrane(self) -> Words:
        """What they fire from."""
        return self.u

    def hand_over(self) -> None:
        """From integrating to firing: the sign is kept apart, half a threshold makes it round."""
        u = self.membrane()
        negative = (self.signed > 0) & (u < 0)
        self.sign[:] = np.where(negative, -1, 1)
        self.v[:] = np.minimum(np.where(negative, -u, u) + (self.theta >> 1), LIMIT)
        if self.has_signs:
            np.maximum(self.v, 0, out=self.v)

    def fire(self, step: int) -> Words:
        """Spikes of one slot, without their sign."""
        slots = self.clock.slots
        if self.sends == "rate":
            return counted(self.v, self.theta, self.most // slots)
        if slots == 1:  # a graded spike carries the count, else its binary digits come one by one
            return counted(self.v, self.theta, self.most)
        digit = slots - 1 - step
        if digit >= self.most.bit_length():
            return np.zeros_like(self.v)
        if self.has_signs:
            return self.fire_signed(digit)
        return counted(self.v, self.theta << digit, 1)

    def fire_signed(self, digit: int) -> Words:
        """The same of signed digits. The threshold of -1 is `low` below 0, that of 1 is theta more
        above it; low, in thetas, is the number 1010... in binary, cut off at this digit."""
        if digit == self.most.bit_length() - 1:
            self.low[:] = 0
            for bit in range(digit + 1):
                self.low += self.low + (self.theta if bit % 2 else 0)
        else:
            # a number that ends in 1, as it does at every second digit, loses it
            self.low -= self.theta if digit % 2 == 0 else 0
            self.low >>= 1
        spikes = words(self.v >= self.low + self.theta) - words(self.v < -self.low)
        self.v -= spikes * (self.theta << digit)
        return spikes


class Rescaling:
    """Membranes times mantissa / 2^shift, rounded and saturated. Both (n,)."""

    def __init__(self, mantissa: ArrayLike, shift: ArrayLike) -> None:
        shifts = words(shift)
        self.mantissa = words(mantissa)
        self.right = np.clip(shifts, 0, FAR)
        self.left = np.maximum(-shifts, 0)

    def of(self, u: Words) -> Words:
        """The product has 27 bits: two words of 24, on the chip."""
        x = rounded(u * self.mantissa, self.right)
        saturate(x)
        for bit in range(self.left.max(initial=0)):
            x += np.where(self.left > bit, x, 0)
            saturate(x)
        return x


def above_dip(x: Words, table: Words, index_shift: int) -> Words:
    """ReLU(x) less what a table holds for its magnitude, an entry for each 2^index_shift of it, and
    nothing beyond."""
    index = np.abs(x) >> index_shift
    beyond = index >= len(table)
    index[beyond] = 0
    return np.where(x > 0, x, 0) - np.where(beyond, 0, table[index])


class GeluNeurons(CodingNeurons):
    """Unsigned neurons that fire the GELU of their membrane, less a centre.

    mantissa, shift: (n,), see `Rescaling`. center: (n,). table: how far a GELU is below its ReLU,
    an entry for each 2^index_shift of a membrane's magnitude, and 0 beyond it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bias: ArrayLike,
        theta: ArrayLike,
        mantissa: ArrayLike,
        shift: ArrayLike,
        center: ArrayLike,
        table: ArrayLike,
        index_shift: int,
        receives: Coding,
        sends: Coding,
        most: int,
        digits: Digits = "binary",
    ) -> None:
        super().__init__(
            clock,
            bias=bias,
            theta=theta,
            unsigned=len(np.asarray(bias)),
            receives=receives,
            sends=sends,
            most=most,
            digits=digits,
        )
        self.rescaling = Rescaling(mantissa, shift)
        self.center, self.table = words(center), words(table)
        self.index_shift = index_shift

    def membrane(self) -> Words:
        y = above_dip(self.rescaling.of(self.u), self.table, self.index_shift)
        y -= self.center
        saturate(y)
        return y


class KeyNeurons(Integrating):
    """Unsigned neurons that send twice their count, 0..most, in the last step of a phase.

    bias, theta: (n,). The learning engine takes half a payload as its trace.
    """

    def __init__(
        self, clock: Clock, *, bias: ArrayLike, theta: ArrayLike, most: int, shift_in: int
    ) -> None:
        super().__init__(clock, bias, "rate", shift_in)
        self.theta = words(theta)
        self.v, self.spikes = np.zeros_like(self.bias), np.zeros_like(self.bias)
        self.most = most

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        step = self.clock.step(now)
        if step < 0:
            return self.spikes
        if step == 0 and self.clock.token(now) > 0:
            self.v[:] = np.minimum(self.u + (self.theta >> 1), LIMIT)
        self.integrate(now, arriving["a_in"])
        self.spikes[:] = 0
        if self.clock.is_last(now):
            self.spikes[:] = counted(self.v.copy(), self.theta, self.most) << 1
        return self.spikes


class Accumulator(Integrating):
    """Membranes that do not fire: they add what they integrate to the residual stream.

    bias, mantissa, shift: (n,), see `Rescaling`. delay: phases that the stream, which comes by
    `x_in` in the last step of a phase, waits for the membranes of the same token; 0 if none comes.
    Sends the sum in the last step of a phase, else 0.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        bias: ArrayLike,
        mantissa: ArrayLike,
        shift: ArrayLike,
        receives: Coding,
        delay: int,
    ) -> None:
        super().__init__(clock, bias, receives)
        self.rescaling = Rescaling(mantissa, shift)
        self.x = np.zeros_like(self.bias)
        self.waiting = np.zeros((delay + 1, self.outputs), dtype=np.int32)
        self.waits = delay > 0
        self.inputs = {"a_in": self.outputs, "x_in": self.outputs}

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        phase, places = self.clock.phase, len(self.waiting)
        if self.waits and (now + 1) % phase == 0:
            # the stream comes when its network's phases end, not when this one's do
            self.waiting[now // phase % places] = arriving["x_in"]
        self.x[:] = 0
        if self.clock.step(now) >= 0:
            self.integrate(now, arriving["a_in"])
        if self.clock.is_last(now):
            self.x += self.waiting[self.clock.token(now) % places]
            self.x += self.rescaling.of(self.u)
            saturate(self.x)
        return self.x


class Norm(Microcode):
    """LayerNorm of the stream but for mean, gain and bias: the stream over its length.

    epsilon: in squared units of the stream. shifts: of the channels before they are squared, the
    first with which the sum fits is taken. roots: inverse roots by the leading bits of that sum.
    What arrives in a phase's last step leaves in that step, with `fraction_bits`.
    """

    ROOT_BITS: ClassVar[int] = 11
    """Of a root of the table, beside those that the index has."""

    def __init__(
        self,
        clock: Clock,
        *,
        width: int,
        epsilon: int,
        shifts: tuple[int, ...],
        roots: ArrayLike,
        fraction_bits: int,
    ) -> None:
        super().__init__(clock)
        self.epsilon, self.shifts, self.fraction_bits = epsilon, shifts, fraction_bits
        self.roots = words(roots)
        self.y = np.zeros(width, dtype=np.int32)
        self.inputs, self.outputs = {"x_in": width}, width

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        self.y[:] = self.normed(arriving["x_in"]) if self.clock.is_last(now) else 0
        return self.y

    def squares(self, x: Words) -> tuple[int, int]:
        """(sum of the squares of x / 2^e, e), for the first shift e with which it fits."""
        root = int(LIMIT**0.5)
        for shift in self.shifts:
            small = np.abs(rounded(x, shift))
            fits = bool((small <= root).all())
            if fits and (square := int(total(small * small))) <= LIMIT:
                return square, shift
        raise AssertionError("squares of a stream of 24 bits fit with the last shift")

    def normed(self, x: Words) -> Words:
        square, shift = self.squares(x)
        square = min(max(square + (self.epsilon >> (2 * shift)), 1), LIMIT)
        half = (square.bit_length() + 1) // 2
        # 7 or 8 leading bits, an even number of bits cut off
        cut = 2 * half - 8
        index = (square >> cut if cut >= 0 else square << -cut) - 64
        # three more bits than the shift leaves leave 24 for the product
        fine = rounded(x, shift - 3) if shift > 3 else x << (3 - shift)
        product = fine * self.roots[index]
        right = half + self.ROOT_BITS - 1 - self.fraction_bits
        return rounded(product, right) if right > 0 else product << -right
