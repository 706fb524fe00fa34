"""Attention as a race: softmax in base 2 by time to first spike.

Every past token is a neuron of each head, or of each group of query heads that share keys and
values. Its input synapses hold the token's key, its output
synapses the token's value and a 1, each written once, when the token arrives. In a phase

- slots: the spikes of query, key and value of the next token are counted, and the query spikes of
  this one, delayed by a phase, drive the membranes of all token neurons to their scores;
- 2 REACH / COARSE steps of coarse descent: a threshold that all token neurons of a head share falls
  by COARSE levels, each half an octave, a step, until one of them would fire;
- FINE_STEPS steps of race: from the top of that stretch the threshold falls by one level a step.
  Each neuron fires once, when the threshold reaches it. Those who listen double in every second
  step, the first, third and so on, and add ODD times the values of those that fire, and ODD times
  their number; in the steps between they add EVEN times as much. When the number has reached
  2^END_BITS, the race is over.

The innate token, where there is one, is the first neuron of each head: its synapses are there from
the start.

Heads that share neurons have their races one after the other: the phase is as many times as long.

No step knows a maximum over tokens: what a head sees of its neurons is how many spike.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from neurtransformer.codes import (
    COARSE,
    COARSE_STEPS,
    END_BITS,
    EVEN,
    FINE_STEPS,
    KEY_LIMIT,
    MEAN_BITS,
    ODD,
    REACH,
    gain_shift,
    level_bits,
)
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.loihi.attention.base import Attention, mean_of
from neurtransformer.loihi.chip import Chip, Layer, Way
from neurtransformer.loihi.microcode import Clock, Microcode, Words, rounded, words
from neurtransformer.loihi.nodes import Count, Log, Node, Programmed, Setting
from neurtransformer.recipe import Coding

RACE_STEPS = COARSE_STEPS + FINE_STEPS


class RaceCode(Microcode):
    """The token neurons of all heads of a block, and those who listen to them.

    gain: (heads * dim,), of a key channel, `gain_shift` bits too large. width: (heads,), of a level
    in units of a score. shared: query heads for each of these heads, in order. tokens: of the
    texts, each of which is given a neuron of each head. first: input and output synapses of the
    innate token's, (heads * dim,) each. bits: of a count's full scale. coding: of the spikes of
    query, key and value, each of all heads, that arrive. Sends the mean value counts
    (heads * shared * dim,) in the last step of a phase.

    score: membranes. means: of the races that are over. base: where the fine race of a head begins,
    once `found`. read: what the listeners hold, the last of them the weighted number of spikes.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        gain: ArrayLike,
        gain_shift: int,
        width: ArrayLike,
        tokens: int,
        bits: int,
        coding: Coding,
        shared: int = 1,
        first: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        super().__init__(clock)
        self.width = words(width)
        heads = len(self.width)
        self.gain = words(gain).reshape(heads, -1)
        dim = self.gain.shape[1]
        self.gain_shift, self.bits, self.doubles = gain_shift, bits, coding == "phase"
        self.outputs = heads * shared * dim
        self.inputs = {"s_in": self.outputs + 2 * heads * dim}
        self.own = clock.phase // shared  # the steps of one race

        def empty(*shape: int) -> Words:
            return np.zeros(shape, dtype=np.int32)

        self.count = empty(2, heads, dim)
        self.arrived, self.query = (empty(clock.slots, heads, shared, dim) for _ in range(2))
        self.before = 0 if first is None else 1
        neurons = self.before + tokens
        self.keys, self.values = empty(heads, neurons, dim), empty(heads, neurons, dim + 1)
        self.written = empty(neurons)
        self.score, self.spikes, self.fired = (empty(heads, neurons) for _ in range(3))
        self.found, self.base, self.level = empty(heads), empty(heads), empty(heads)
        self.read, self.means = empty(heads, dim + 1), empty(heads, shared, dim)
        self.mean = empty(self.outputs)
        if first is not None:
            key, value = (words(x).reshape(heads, dim) for x in first)
            self.connect(0, key, value)

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        step, token = self.clock.step(now), self.clock.token(now) - 1
        self.mean[:] = 0
        if step < 0:
            return self.mean
        if token >= 0:
            if step == 0:
                self.write(token)
            race, own = divmod(step, self.own)
            self.attend(own, race)
            if own == self.own - 1:
                self.means[:, race] = self.divided()
            if self.clock.is_last(now):
                self.mean[:] = self.means.reshape(-1)
        if step < self.clock.slots:
            self.gather(step, arriving["s_in"])
        return self.mean

    def gather(self, step: int, spikes: Words) -> None:
        """Count the spikes of a token, and keep those of its query until the next phase."""
        if step == 0:
            self.count[:] = 0
        elif self.doubles:
            self.count += self.count
        query, rest = np.split(spikes, (self.outputs,))
        self.count += rest.reshape(self.count.shape)
        self.arrived[step] = query.reshape(self.arrived[step].shape)

    def write(self, token: int) -> None:
        """The Hebbian write of the neuron whose token has arrived; its query may ask."""
        key, value = self.count
        if (neuron := self.before + token) < len(self.written):  # else a sequence is over
            synapses = rounded(key * self.gain, self.gain_shift)
            self.connect(neuron, np.clip(synapses, -KEY_LIMIT, KEY_LIMIT), value)
        self.query[:] = self.arrived

    def connect(self, neuron: int, key: Words, value: Words) -> None:
        """Give a neuron of each head its synapses, (heads, dim) each, and let it race."""
        self.keys[:, neuron] = key
        self.values[:, neuron, :-1] = value
        self.values[:, neuron, -1] = 1
        self.written[neuron] = 1

    def attend(self, step: int, race: int) -> None:
        """One step of the scores, the coarse descent or the race of those heads whose turn is
        `race`."""
        if step == 0:
            for x in (self.score, self.fired, self.found, self.base, self.read):
                x[:] = 0
        self.spikes[:], self.level[:] = 0, 0
        coarse = step - self.clock.slots
        fine = coarse - COARSE_STEPS
        if coarse < 0:
            if self.doubles and step > 0:
                self.score += self.score
            query = self.query[step][:, None, race]
            self.score += (self.keys * query).sum(-1, dtype=np.int32)
        elif fine < 0:
            self.level[:] = REACH - COARSE * (coarse + 1)
            self.descend()
        elif fine < FINE_STEPS:
            self.level[:] = self.base + COARSE - 1 - fine
            self.race(doubles=fine % 2 == 0)

    def reached(self) -> Words:
        """1 where the threshold has fallen to a token neuron, (heads, tokens)."""
        threshold = (self.level * self.width)[:, None]
        over = self.score + (self.width >> 1)[:, None] >= threshold
        # the lowest level holds all that is below it
        over |= self.level[:, None] <= -REACH
        return over * self.written

    def descend(self) -> None:
        """Where the first spikes of a head would come, there its race will be."""
        here = (self.reached().sum(-1, dtype=np.int32) > 0) & (self.found == 0)
        self.base[here] = self.level[here]
        self.found[here] = 1

    def race(self, doubles: bool) -> None:
        """Who is reached for the first time fires; the listeners double in every second step, and
        add."""
        runs = self.read[:, -1:] < 1 << END_BITS
        self.spikes[:] = self.reached() * (1 - self.fired) * runs
        self.fired += self.spikes
        heard = (self.values * self.spikes[:, :, None]).sum(1, dtype=np.int32)
        if doubles:
            self.read += np.where(runs, self.read, 0)
        # m times what is heard: shifted by one, and itself in odd levels
        more = (heard << 1) + heard if doubles else heard << 1
        self.read += np.where(runs, more, 0)

    def divided(self) -> Words:
        """Mean value counts (heads, dim)."""
        sums = self.read.copy()
        sums[:, -1] <<= self.bits
        return mean_of(sums, self.bits)


class Race(Programmed):
    """The token neurons of all heads and their listeners. Tensors: gain, width; first_key,
    first_value.

    heads: of keys and values, each of which `shared` query heads share, one race after the other.
    dim: channels of a query, a key and a value. positions: token neurons of a head. innate: how
    many of them, the first, are there from the start, with those synapses. receives: the
    code of the spikes that arrive. most: the largest count of one. The steps of a phase are
    those of attention/ttfs.py."""

    kind: Literal["race"] = "race"
    heads: Count
    shared: Count = 1
    dim: Count
    positions: Count
    innate: Literal[0, 1] = 0
    receives: Coding
    most: Count
    gain_shift: Count
    end_bits: Count = END_BITS
    spike_counts: tuple[Count, Count] = (EVEN, ODD)
    coarse: Count = COARSE
    reach: Count = REACH
    key_bits: Literal[8] = 8
    mean_bits: Count = MEAN_BITS
    state_bits: Literal[24] = 24

    ports: ClassVar[tuple[str, ...]] = ("s_in",)
    logged: ClassVar[Mapping[str, Log]] = {
        "score": Log(later=True),
        "spikes": Log(later=True),
        "level": Log(later=True),
        "read": Log(later=True),
        "keys": Log(later=True, once=True),
        "values": Log(later=True, once=True),
    }
    table_bits: ClassVar[int] = 128 * 8

    @property
    def firing(self) -> int:
        return self.heads * self.positions

    def latency(self, phase: int) -> int:
        """The races of a token are run one phase after its spikes."""
        return phase

    def shape(self, quantity: str, tokens: int) -> tuple[int, ...]:
        neurons = self.innate + tokens
        match quantity:
            case "level":
                return (self.heads,)
            case "read":
                return self.heads, self.dim + 1
            case "keys":
                return self.heads, neurons, self.dim
            case "values":
                return self.heads, neurons, self.dim + 1
        return self.heads, neurons

    def microcode(self, setting: Setting) -> Microcode:
        return RaceCode(
            setting.clock(self),
            gain=setting.tensor(f"{self.name}.gain"),
            gain_shift=self.gain_shift,
            width=setting.tensor(f"{self.name}.width"),
            tokens=setting.tokens,
            bits=level_bits(self.most),
            coding=self.receives,
            shared=self.shared,
            first=self.first(setting) if self.innate else None,
        )

    def layers(self, name: str, matrices: Sequence[Any], beside: int, chip: Chip) -> list[Layer]:
        """Token neurons with the keys, and listeners with the values. In each part of a head one
        neuron more holds its level, or counts. Of heads that share neurons the output axons of one
        are charged: listeners send a mean for each of them, but hardly use what axons there are."""
        width, count = self.heads * self.dim, self.most.bit_length() + 1
        queries = self.shared * width
        keys = Layer(
            name=f"{name}.keys",
            groups=self.heads,
            rows=self.positions,
            columns=self.dim,
            synapse_bits=self.key_bits,
            row_bits=self.words * chip.width.state,
            table_bits=0,
            # the queries that wait, and the count of the key, with its gain
            column_bits=(self.shared + 1) * count + self.key_bits,
            column_axons=self.shared + 1,
            row_axons=1,
            extra_rows=1,
            plastic=True,
            # of queries and keys, one way for each head that a head's neurons hear
            hears=tuple(Way("columns", i * width) for i in range(self.shared + 1)),
        )
        values = Layer(
            name=f"{name}.values",
            groups=self.heads,
            rows=self.dim,
            columns=self.positions,
            synapse_bits=count,
            # and the means of the races that are over
            row_bits=(self.words + self.shared - 1) * chip.width.state + count,
            table_bits=self.table_bits,
            row_axons=1,
            extra_rows=1,
            plastic=True,
            hears=(Way("rows", queries + width),),
            within=(Way("columns"),),
        )
        return [keys, values]


class TTFS(Attention):
    """`attention: ttfs`."""

    nodes = (Race,)

    @staticmethod
    def phase(slots: int, config: IntegerConfig) -> int:
        return config.shared * (slots + RACE_STEPS)

    @staticmethod
    def between(config: IntegerConfig) -> list[Node]:
        code = config.attention_code
        bits = level_bits(code.most)
        race = Race(
            name="race",
            outputs=config.width,
            payload_bits=bits + MEAN_BITS + 2,
            heads=config.heads // config.shared,
            shared=config.shared,
            dim=config.dim,
            positions=config.positions,
            innate=0 if config.first_token is None else 1,
            receives=code.coding,
            most=code.most,
            gain_shift=gain_shift(code.most),
        )
        return [race]
