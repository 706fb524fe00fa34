"""The race of `attention/ttfs.py` with its synapses in Lava's own learning engine, exactly.

One head is two stock `LearningDense`: from key channels to token neurons, and from token neurons to
the listeners. A synapse is written once, from 0 to a whole number, so the engine's rounding at
random never acts; those of the innate token's neuron, the first, are there from the start. A token
takes a phase of `PHASE` steps, an epoch each:

    0   write   the key channels with positive synapses spike, the token's neuron has y1 = 8
    1   write   those with negative ones do, it has y2 = 8; and it spikes itself, while the
                listeners have the token's values as y1 and y2
    2   read    the query arrives as graded spikes
    3.. race    coarse descent and race, as in `RaceCode`

    dw = 2^1 x0 x1 y1 - 2^1 x0 x1 y2

x0, a spike of this epoch, keeps out what earlier ones have left in x1, which is half a payload
(`GradedSpikeCfg.OVERWRITE`). The engine drops 3 bits of a product: 8 takes them up. Synapses hold
twice their value, because Loihi stores weights of mixed sign in steps of two: +-254 are 8 bits.
Nobody tells the token neurons that the race is over; the listeners know, and listen no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.proc.io.source import RingBuffer

from neurtransformer.codes import COARSE, COARSE_STEPS, END_BITS, FINE_STEPS, REACH
from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.attention.ttfs import RaceAttention, key_synapses
from neurtransformer.janitor import temporary_folder
from neurtransformer.loihi import runner
from neurtransformer.loihi.attention.ttfs import RACE_STEPS
from neurtransformer.loihi.learning import PRODUCT_SHIFT
from neurtransformer.loihi.microcode import Clock, Microcode, Words
from neurtransformer.loihi.plastic_synapses import hebbian_rule, plastic_synapses
from neurtransformer.loihi.processes import LogFile, Population
from neurtransformer.loihi.simulate import Tally

WRITE_POSITIVE, WRITE_NEGATIVE, READ, RACE = range(4)
"""Steps of a phase; the race begins with the last, when what a query reads has arrived."""

PHASE = RACE + COARSE_STEPS + FINE_STEPS

FULL = 1 << PRODUCT_SHIFT
"""The trace that leaves the other one of a product as it is."""

TRACE_LIMIT = 127
RULE = "2^1*x0*x1*y1 - 2^1*x0*x1*y2"


class TokenNeurons(Microcode):
    """The token neurons of one head, n of them, in a ring. width: of a level. innate: how many of
    them, the first, are written from the start.

    What arrives is twice a score. A neuron that is written spikes with a payload of 2 FULL.
    """

    def __init__(self, clock: Clock, *, neurons: int, innate: int, width: int) -> None:
        super().__init__(clock)
        self.width, self.innate = width, innate
        self.inputs, self.outputs = {"a_in": neurons}, neurons
        self.score, self.spikes, self.fired = (np.zeros(neurons, np.int32) for _ in range(3))
        # where the race begins, and whether that is known
        self.base = np.array([0, 0], dtype=np.int32)

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        step, last = self.clock.step(now), self.innate + self.clock.token(now)
        self.spikes[:] = 0
        if step == WRITE_NEGATIVE and last < len(self.spikes):
            self.spikes[last] = 2 * FULL
        elif step == RACE:
            self.score[:] = arriving["a_in"] >> 1
            self.fired[:], self.base[:] = 0, 0
        fine = step - RACE - COARSE_STEPS
        if step >= RACE and fine < 0:
            level = REACH - COARSE * (step - RACE + 1)
            if self.reached(level, last).any() and not self.base[1]:
                self.base[:] = level, 1
        elif fine >= 0:
            level = int(self.base[0]) + COARSE - 1 - fine
            self.spikes[:] = self.reached(level, last) & (self.fired == 0)
            self.fired += self.spikes
        return self.spikes

    def reached(self, level: int, last: int) -> NDArray[np.bool_]:
        over = self.score + (self.width >> 1) >= level * self.width
        return (over | (level <= -REACH)) & (np.arange(len(over)) <= last)


class Listeners(Microcode):
    """What listens to the token neurons of one head: its values, and the number of spikes.

    What arrives is twice a value, one step after the spikes.
    """

    def __init__(self, clock: Clock, *, width: int) -> None:
        super().__init__(clock)
        self.inputs, self.outputs = {"a_in": width}, width
        self.read, self.silent = np.zeros(width, np.int32), np.zeros(width, np.int32)

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        first = RACE + COARSE_STEPS + 1
        step = self.clock.step(now)
        if step == first:
            self.read[:] = 0
        # the last spikes arrive when the next phase has begun
        if (step >= first or (step == 0 and now > 0)) and self.read[-1] < 1 << END_BITS:
            heard = arriving["a_in"] >> 1
            # those of odd levels arrive in the first step, the third, and so on
            odd = step >= first and (step - first) % 2 == 0
            self.read += self.read + 3 * heard if odd else 2 * heard
        return self.silent


class Sequence(NamedTuple):
    """One head on one sequence, or what it made of it, in integers. All (tokens, ...)."""

    query: Integers
    """Counts, (tokens, dim)."""
    keys: Integers
    """Synapses, (tokens, dim)."""
    values: Integers
    """Counts, (tokens, dim)."""


def run_head(
    head: Sequence, width: int, first: tuple[Integers, Integers] | None = None
) -> tuple[Integers, Integers, Integers]:
    """A sequence through one head in Lava. first: synapses of the innate token's neuron, keys and
    values, (1, dim) each; all others are empty.

    Returns reads (tokens, dim + 1), and the synapses after each token: keys (tokens, n, dim) and
    values (tokens, n, dim + 1), n the number of token neurons. Raises LavaFailed, and UserError for
    counts that a trace cannot hold.
    """
    tokens, dim = head.keys.shape
    innate = 0 if first is None else 1
    neurons = innate + tokens
    at_birth = [np.zeros((neurons, n), dtype=np.int64) for n in (dim, dim + 1)]
    if first is not None:
        at_birth[0][:1], at_birth[1][:1, :dim], at_birth[1][:1, dim] = *first, 1
    if max(np.abs(x).max() for x in (*head, *(first or ()))) > TRACE_LIMIT:
        raise UserError(f"the learning engine's traces hold counts of at most {TRACE_LIMIT}")
    steps = PHASE * tokens + 1
    pre, gate, taught = _sent(head, steps, innate)
    with temporary_folder() as folder, runner.lava_off_stdout():

        def log(quantity: str, rows: int, *shape: int) -> Path:
            return runner.new_log(folder / f"{quantity}.npy", (rows, *shape))

        clock = Clock(PHASE, 1, 0)
        rule = hebbian_rule(RULE)
        shape = neurons, dim
        keys = plastic_synapses(*shape, rule, log("keys", steps, *shape), innate=2 * at_birth[0])
        shape = dim + 1, neurons
        values = plastic_synapses(
            *shape, rule, log("values", steps, *shape), innate=2 * at_birth[1].T
        )
        race = Population(TokenNeurons(clock, neurons=neurons, innate=innate, width=width), {})
        listeners = Population(
            Listeners(clock, width=dim + 1), {"read": LogFile(log("read", steps, dim + 1))}
        )
        sources = [RingBuffer(data=x.T) for x in (pre, *gate, *taught)]
        ports = (keys.s_in, keys.s_in_y1, keys.s_in_y2, values.s_in_y1, values.s_in_y2)
        for source, port in zip(sources, ports, strict=True):
            source.s_out.connect(port)
        keys.a_out.connect(race.a_in)
        race.s_out.connect(values.s_in)
        values.a_out.connect(listeners.a_in)
        runner.run_lava([*sources, keys, race, values, listeners], steps)
        read, key, value = (np.load(folder / f"{x}.npy") for x in ("read", "keys", "values"))
    ends = slice(PHASE - 1, None, PHASE)
    reads = read[PHASE::PHASE].astype(np.int64)
    return reads, key[ends].astype(np.int64) >> 1, value[ends].swapaxes(1, 2).astype(np.int64) >> 1


def compare(attention: RaceAttention, x: Integers, heads: range) -> Tally:
    """Some query heads of one attention network on a residual stream (tokens, width): every read,
    and every synapse after every token, beside the integer model's."""
    query, key, value = (counts[0] for counts in attention.heads_of(x[None]))
    synapses = key_synapses(key, attention.gain, attention.qkv.most)
    own = 1 + RACE_STEPS
    trace = attention.steps(x, attention.shared * own, 1)
    tally = Tally()
    for head in heads:
        group, race = divmod(head, attention.shared)
        sent = Sequence(query[head], synapses[group], value[group])
        first = None
        if attention.first is not None:
            first = attention.first[0][group], attention.first[1][group]
        reads, keys, values = run_head(sent, int(attention.width[group]), first)
        tally.add(f"{head}.read", trace["race.read"][:, (race + 1) * own - 1, group], reads)
        tally.add(f"{head}.keys", trace["race.keys"][:, group], keys)
        tally.add(f"{head}.values", trace["race.values"][:, group], values)
    return tally


def _sent(head: Sequence, steps: int, innate: int) -> tuple[Words, Words, Words]:
    """What is sent in each step: to the keys (steps, dim); y1 and y2 of the token neurons (2,
    steps, n); y1 and y2 of the listeners (2, steps, dim + 1). innate: token neurons that are not
    written."""
    tokens, dim = head.keys.shape
    pre = np.zeros((steps, dim), dtype=np.int32)
    gate = np.zeros((2, steps, innate + tokens), dtype=np.int32)
    taught = np.zeros((2, steps, dim + 1), dtype=np.int32)
    begins, written = PHASE * np.arange(tokens), innate + np.arange(tokens)
    # the engine halves a payload before it becomes a trace
    pre[begins + WRITE_POSITIVE] = 2 * np.maximum(head.keys, 0)
    pre[begins + WRITE_NEGATIVE] = 2 * np.maximum(-head.keys, 0)
    pre[begins + READ] = head.query
    gate[0, begins + WRITE_POSITIVE, written] = FULL
    gate[1, begins + WRITE_NEGATIVE, written] = FULL
    taught[0, begins + WRITE_NEGATIVE, :dim] = np.maximum(head.values, 0)
    taught[1, begins + WRITE_NEGATIVE, :dim] = np.maximum(-head.values, 0)
    taught[0, begins + WRITE_NEGATIVE, dim] = 1
    return pre, gate, taught
