"""Linear attention (SSA): a fast-weight matrix that is read and written by spikes.

It *counts* the spikes of key and value during a phase; when the next phase begins it writes the
product of values and squared keys into its plastic state, and during that phase it *reads* the
state with the query spikes of the same token, which it has delayed by one phase. They facilitate:
the n-th of a neuron carries 2n - 1, and a graded spike of n carries n^2. The innate token, where
there is one, is in the state from the start. The same in Lava's learning engine is `plasticity.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from neurtransformer.codes import (
    HEADROOM_BITS,
    KEY_EXPANSION,
    MEAN_BITS,
    STATE_BITS,
    level_bits,
)
from neurtransformer.integer.arithmetic import PRESENT_BITS
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.loihi.attention.base import Attention, mean_of
from neurtransformer.loihi.chip import Chip, Layer, Way
from neurtransformer.loihi.microcode import (
    Clock,
    Microcode,
    Words,
    length,
    rounded,
    saturate,
    words,
)
from neurtransformer.loihi.nodes import Count, Log, Node, Programmed, Setting


class SSACode(Microcode):
    """Linear attention of all heads of a block, its plastic state included.

    shift, present: (heads,), how fast it forgets and what the present weighs, in quarters. dim,
    key_dim: values and keys of a head. bits: of a count's full scale. first: counts of the innate
    token's keys and values, (heads * key_dim,) and (heads * dim,). Takes the spikes of query,
    key and value, each of all heads, and sends the mean value counts (heads * dim,) in the last
    step of a phase.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        shift: ArrayLike,
        present: ArrayLike,
        dim: int,
        key_dim: int,
        bits: int,
        first: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        super().__init__(clock)
        self.shift, self.present = words(shift), words(present)
        heads = len(self.shift)
        self.dim, self.key_dim, self.bits = dim, key_dim, bits
        spikes = heads * (2 * key_dim + dim)
        self.inputs, self.outputs = {"s_in": spikes}, heads * dim
        self.state = np.zeros((heads, dim + 1, key_dim), dtype=np.int32)
        self.visible = np.zeros_like(self.state)
        self.read = np.zeros((heads, dim + 1), dtype=np.int32)
        self.delayed = np.zeros((clock.slots, spikes), dtype=np.int32)
        self.query = np.zeros((clock.slots, heads, key_dim), dtype=np.int32)
        self.mean = np.zeros(heads * dim, dtype=np.int32)
        # room for 2^s products in a head that forgets by 2^-s, and for the present beside them
        room = np.clip(self.shift + 1, 2, HEADROOM_BITS)
        self.write_shift = words(np.maximum(STATE_BITS - 1 - room - 3 * bits, 0))
        if first is not None:
            key, value = (words(x).reshape(heads, -1) for x in first)
            self.state += self.product(key, value)
            saturate(self.state)

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        step, spikes = self.clock.step(now), arriving["s_in"]
        self.mean[:] = 0
        if step < 0:
            return self.mean
        if self.clock.token(now) > 0:
            if step == 0:
                self.write()
            self.read += (self.visible * self.query[step][:, None]).sum(-1, dtype=np.int32)
            if self.clock.is_last(now):
                self.mean[:] = mean_of(self.read, self.bits).reshape(-1)
        self.delayed[step] = spikes
        return self.mean

    def parts(self, spikes: Words) -> list[Words]:
        """(heads, n) of query, key and value."""
        heads, keys = len(self.shift), len(self.shift) * self.key_dim
        return [x.reshape(heads, -1) for x in np.split(spikes, (keys, 2 * keys))]

    def write(self) -> None:
        """The Hebbian write of the token whose spikes are all there; reading begins anew."""
        count = np.zeros(self.delayed.shape[1], dtype=np.int32)
        for step, spikes in enumerate(self.delayed):
            # the spikes of a neuron from the n-th to the m-th together carry m^2 - (n - 1)^2
            before = self.parts(count)[0].copy()
            count += spikes
            after = self.parts(count)[0]
            self.query[step] = after * after - before * before
        _, key, value = self.parts(count)
        product = self.product(key, value)
        self.look(product)
        self.state -= rounded(self.state, self.shift[:, None, None])
        self.state += product
        saturate(self.state)

    def product(self, key: Words, value: Words) -> Words:
        """What counts of keys (heads, key_dim) and values (heads, dim) add to the state."""
        with_one = np.full((len(value), self.dim + 1), 1 << self.bits, dtype=np.int32)
        with_one[:, :-1] = value
        product = with_one[:, :, None] * (key * key)[:, None, :]
        product <<= self.write_shift[:, None, None]
        return product

    def look(self, product: Words) -> None:
        """What this token's queries read: the past and a share of the present, less the bits that
        the sum of their payloads has."""
        visible = self.state + (product * self.present[:, None, None] >> PRESENT_BITS)
        saturate(visible)
        payloads = self.query.sum((0, 2), dtype=np.int32)
        bits = length(np.maximum(payloads - 1, 0))[:, None, None]
        most = (1 << (STATE_BITS - 1 - bits)) - 1
        self.visible[:] = np.clip(rounded(visible, bits), -most, most)
        self.read[:] = 0


class SSA(Programmed):
    """Spiking self-attention with its plastic state, (heads, dim + 1, key_dim). Tensors: shift,
    present; first_key, first_value.

    innate: how many tokens, whose counts those are, are in the state from the start.

    Spikes of query and key facilitate: the n-th carries 2n - 1. A product enters the state of a
    head shifted left by what follows from its shift and level_bits, the bits of a count
    (`arithmetic.write_shift`); a read drops as many bits as the sum of the token's query payloads
    has (`arithmetic.read_shift`)."""

    kind: Literal["ssa"] = "ssa"
    heads: Count
    dim: Count
    key_dim: Count
    innate: Literal[0, 1] = 0
    level_bits: Count
    mean_bits: Count
    state_bits: Literal[24] = 24

    ports: ClassVar[tuple[str, ...]] = ("s_in",)
    logged: ClassVar[Mapping[str, Log]] = {"read": Log(later=True), "state": Log(later=True)}
    table_bits: ClassVar[int] = 128 * 8

    def latency(self, phase: int) -> int:
        """It reads one phase after the spikes of key and value."""
        return phase

    def shape(self, quantity: str, tokens: int) -> tuple[int, ...]:
        read = self.heads, self.dim + 1
        return read if quantity == "read" else (*read, self.key_dim)

    def microcode(self, setting: Setting) -> Microcode:
        return SSACode(
            setting.clock(self),
            shift=setting.tensor(f"{self.name}.shift"),
            present=setting.tensor(f"{self.name}.present"),
            dim=self.dim,
            key_dim=self.key_dim,
            bits=self.level_bits,
            first=self.first(setting) if self.innate else None,
        )

    def layers(self, name: str, matrices: Sequence[Any], beside: int, chip: Chip) -> list[Layer]:
        keys = self.heads * self.key_dim
        layer = Layer(
            name=name,
            groups=self.heads,
            rows=self.dim,
            columns=self.key_dim,
            synapse_bits=self.state_bits,
            row_bits=self.words * chip.width.state,
            table_bits=self.table_bits,
            column_bits=self.level_bits + 1,
            column_axons=2,
            row_axons=1,
            extra_rows=1,
            plastic=True,
            hears=(Way("columns"), Way("columns", keys), Way("rows", 2 * keys)),
        )
        return [layer]


class Linear(Attention):
    """`attention: linear`."""

    nodes = (SSA,)

    @staticmethod
    def between(config: IntegerConfig) -> list[Node]:
        dim, bits = config.width // config.heads, level_bits(config.attention_code.timesteps)
        ssa = SSA(
            name="ssa",
            outputs=config.width,
            payload_bits=bits + MEAN_BITS + 2,
            heads=config.heads,
            dim=dim,
            key_dim=KEY_EXPANSION * dim,
            innate=0 if config.first_token is None else 1,
            level_bits=bits,
            mean_bits=MEAN_BITS,
        )
        return [ssa]
