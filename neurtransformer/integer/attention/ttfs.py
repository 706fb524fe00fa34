"""The race of token neurons in integers, in closed form (`attention: ttfs`).

With counts q, k, v of one head, gains G of its key channels and the width D of a level, which is
half an octave:

    w_jc = clip(round(k_jc G_c / 2^gain_shift), +-KEY_LIMIT)      key synapses, written once
    S_ij = sum_c q_ic w_jc                                        scores, 24 bits
    e_ij = clip(floor((S_ij + D / 2) / D), -REACH, REACH - 1)     levels
    f_ij = 2 floor(max_j e_ij / 2) + 1 - e_ij                     steps from the first octave on
    m_j  = ODD if e_ij is odd, else EVEN
    n_i  = the least n with sum_{j: f_ij <= n} m_j 2^(floor(n / 2) - floor(f_ij / 2)) >= 2^END_BITS
    d_i  = that sum,  o_i = sum_j m_j 2^(floor(n_i / 2) - floor(f_ij / 2)) v_j   over the same j
    mean = o / d                                                  by the table of reciprocals

The neuron of the innate token is there from the start; its key synapses are rounded straight from
the key, which no neuron has counted. Where query heads share keys and values, the races of one
token on the same neurons are run one after the other.

The maximum over tokens in it is known to no neuron: what the chip does instead, step by step, is in
loihi/attention/ttfs.py, and comes to the same. Here the steps are derived from the levels: the
neuron of level e fires in the step whose level is e.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurtransformer.codes import (
    COARSE,
    COARSE_STEPS,
    END_BITS,
    EVEN,
    FINE_STEPS,
    GAIN_LIMIT,
    KEY_LIMIT,
    ODD,
    REACH,
    STATE_BITS,
    gain_shift,
    level_bits,
)
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT, Integers, shift_round
from neurtransformer.integer.attention.base import (
    IntegerAttention,
    State,
    innate_counts,
    innate_entries,
    innate_of,
)
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.entries import Entry
from neurtransformer.integer.parts import Tensors, Trace, integers

ABSENT = -(1 << 40)
"""The level of a token neuron that is not there."""


def key_synapses(key: Integers, gain: Integers, most: int) -> Integers:
    """Key counts (..., kv_heads, length, dim) to synapses. gain: (kv_heads, dim)."""
    drive = key * gain[:, None, :]
    return np.clip(shift_round(drive, gain_shift(most)), -KEY_LIMIT, KEY_LIMIT)


def levels_of(score: Integers, width: Integers) -> Integers:
    """Scores (..., heads, i, j) to levels. width: of a level, (heads,)."""
    width = width[:, None, None]
    return np.clip((score + (width >> 1)) // width, -REACH, REACH - 1)


def race_weights(levels: Integers) -> Integers:
    """What the spike of each token neuron counts in the end: (..., j), 0 for who has not fired.

    levels: (..., j), ABSENT where there is no neuron.
    """
    steps = 2 * END_BITS
    odd = levels & 1
    late = np.where(levels == ABSENT, steps, (levels.max(-1, keepdims=True) | 1) - levels)
    # how many fire in each step: (..., steps)
    fired = np.stack([(late == n).sum(-1) for n in range(steps)], axis=-1)
    end = np.full(fired.shape[:-1], steps - 1)
    d = np.zeros_like(end)
    for n in range(steps):
        over = d >= 1 << END_BITS
        end = np.where(over, np.minimum(end, n - 1), end)
        before, count = (2 * d, ODD) if n % 2 == 0 else (d, EVEN)
        d = np.where(over, d, before + count * fired[..., n])
    end = end[..., None]
    behind = (end >> 1) - (late >> 1)
    return np.where(late <= end, (EVEN + (ODD - EVEN) * odd) << np.maximum(behind, 0), 0)


def causal(score: Integers) -> NDArray[np.bool_]:
    """Which neurons were written before or at the token that asks: (i, j), the last i of j."""
    asking, past = score.shape[-2:]
    return np.tri(asking, past, past - asking, dtype=bool)


class RaceAttention(IntegerAttention):
    """Query, key and value are signed, in the attention's own code."""

    kind = "ttfs"

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        super().__init__(tensors, name, config)
        self.gain = integers(tensors, f"{name}.race.gain").reshape(self.kv_heads, -1)
        self.width = integers(tensors, f"{name}.race.width")
        self.first = innate_of(tensors, f"{name}.race", config)

    @staticmethod
    def check(config: IntegerConfig) -> None:
        most = config.attention_code.most
        scores = most * KEY_LIMIT * (config.width // config.heads)
        if scores > 2 ** (STATE_BITS - 2):
            raise ValueError(f"scores of races of up to {scores} do not leave 24 bits their room")
        divisor = (1 << END_BITS + 1) + ODD * config.positions
        if divisor << level_bits(most) > 2 ** (STATE_BITS - 1):
            raise ValueError(f"races of {config.positions} tokens do not fit 24 bits")

    @staticmethod
    def entries(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
        yield "race.gain", Entry((config.kv_width,), "chip", 0, GAIN_LIMIT)
        yield "race.width", Entry((config.heads // config.shared,), "chip", 1, LIMIT)
        most = config.attention_code.most
        key, value = (Entry((config.kv_width,), "chip", -x, x) for x in (KEY_LIMIT, most))
        for name, entry in innate_entries(config, key, value):
            yield f"race.{name}", entry

    @staticmethod
    def quantised(attention: Any, worth: NDArray[np.float64]) -> dict[str, NDArray]:
        rows, heads = attention.rows, attention.kv_heads
        query, key, _ = np.split(worth, (rows[0], rows[0] + rows[1]))
        # heads that share keys have one threshold, but for rounding
        query = query.reshape(heads, attention.shared, -1).mean(1)
        key = key.reshape(heads, -1)
        most = attention.qkv.most
        product = query * key
        largest = product.max(-1, keepdims=True)
        unit = largest[:, 0] * float(attention.scaling) * 2.0 ** gain_shift(most)
        width = np.rint(GAIN_LIMIT * np.log(2) / 2 / unit).clip(1, LIMIT)
        gain = np.rint(product / largest * GAIN_LIMIT).reshape(-1)
        tensors = {"race.gain": gain, "race.width": width}
        first = innate_counts(attention, worth)
        if first is not None:
            synapses = np.floor(first[0] * gain * 2.0 ** -gain_shift(most) + 0.5)
            tensors["race.first_key"] = synapses.clip(-KEY_LIMIT, KEY_LIMIT)
            tensors["race.first_value"] = np.floor(first[1] + 0.5).clip(-most, most)
        return {name: x.astype(np.int32) for name, x in tensors.items()}

    def new_state(self, batch: int) -> State:
        """The token neurons that are there, the innate one or none: key synapses and values,
        (batch, kv_heads, 0 or 1, dim)."""
        if self.first is None:
            empty = np.zeros((batch, self.kv_heads, 0, self.dim), dtype=np.int64)
            return empty, empty
        key, value = (np.repeat(x[None], batch, axis=0) for x in self.first)
        return key, value

    def scores(self, query: Integers, synapses: Integers) -> Integers:
        """(..., heads, i, dim) and (..., kv_heads, j, dim) to membranes (..., heads, i, j); float64
        holds them exactly."""
        shared = self.each(synapses).swapaxes(-1, -2)
        products = query.astype(np.float64) @ shared.astype(np.float64)
        return products.astype(np.int64)

    def raced(self, score: Integers) -> Integers:
        """Membranes to the weights of `race_weights`."""
        return race_weights(np.where(causal(score), self.levels(score), ABSENT))

    def levels(self, score: Integers) -> Integers:
        """`levels_of` the membranes of all query heads."""
        return levels_of(score, np.repeat(self.width, self.shared))

    def weights(self, query: Integers, key: Integers) -> NDArray[np.float64]:
        before, _ = self.new_state(len(key))
        synapses = np.concatenate([before, key_synapses(key, self.gain, self.qkv.most)], axis=2)
        return self.raced(self.scores(query, synapses)).astype(np.float64)

    def mix(
        self, query: Integers, key: Integers, value: Integers, state: State
    ) -> tuple[Integers, State]:
        synapses = np.concatenate([state[0], key_synapses(key, self.gain, self.qkv.most)], axis=2)
        values = np.concatenate([state[1], value], axis=2)
        weights = self.raced(self.scores(query, synapses))
        o = (weights.astype(np.float64) @ self.each(values).astype(np.float64)).astype(np.int64)
        return self.divided(o, weights.sum(-1)), (synapses, values)

    def divided(self, o: Integers, d: Integers) -> Integers:
        """``o / d`` of sums of values (..., dim) and of weights (...): mean counts (..., dim)."""
        bits = level_bits(self.qkv.most)
        return arithmetic.normalise(np.concatenate([o, d[..., None] << bits], axis=-1), bits)

    def core_steps(self, spikes: Integers, phase: int) -> tuple[Integers, Trace]:
        slots, tokens, _ = spikes.shape
        query, key, value = self.split(spikes)
        key, value = (self.decoded(x) for x in (key, value))
        keys_there, values_there = (x[0] for x in self.new_state(1))
        written = key_synapses(key, self.gain, self.qkv.most)
        synapses = np.concatenate([keys_there, written], axis=1)
        value = np.concatenate([values_there, value], axis=1)
        ones = np.ones_like(value[..., :1])
        values = np.concatenate([value, ones], axis=-1)
        drives = self.scores(query, synapses)  # (slots, heads, i, j)
        drives = np.where(causal(drives), drives, 0)
        score = arithmetic.integrate(drives, np.zeros_like(drives[0]), self.qkv.coding, slots)
        levels = np.where(causal(drives), self.levels(score[-1]), ABSENT)
        top = levels.max(-1)  # (heads, i)
        base = top // COARSE * COARSE
        coarse = REACH - COARSE * (np.arange(COARSE_STEPS) + 1)
        fine = base[..., None] + COARSE - 1 - np.arange(FINE_STEPS)
        # the steps of the race, one token neuron in the step of its level
        fired = (levels[..., None, :] == fine[..., None]).astype(np.int64)
        read = np.zeros((self.heads, tokens, FINE_STEPS, self.dim + 1), dtype=np.int64)
        last = np.zeros_like(read[:, :, 0])
        for step in range(FINE_STEPS):
            runs = last[..., -1:] < 1 << END_BITS
            fired[:, :, step] *= runs
            heard = np.einsum("hij,hjd->hid", fired[:, :, step], self.each(values))
            new = 2 * last + ODD * heard if step % 2 == 0 else last + EVEN * heard
            last = read[:, :, step] = np.where(runs, new, last)
        mean = self.divided(last[..., :-1], last[..., -1]).swapaxes(0, 1)

        own = phase // self.shared  # the steps of one race

        def whole(x: Integers) -> Integers:
            """(tokens, steps, heads, ...), the last steps of each race, to (tokens, phase,
            kv_heads, ...): zeros before, and heads that share neurons one after the other."""
            zeros = np.zeros((x.shape[0], own - x.shape[1], *x.shape[2:]), dtype=np.int64)
            steps = np.concatenate([zeros, x], axis=1)
            steps = steps.reshape(tokens, own, self.kv_heads, self.shared, *x.shape[3:])
            return np.moveaxis(steps, 3, 1).reshape(tokens, phase, self.kv_heads, *x.shape[3:])

        falling = np.broadcast_to(coarse[None, :, None], (tokens, COARSE_STEPS, self.heads))
        level = np.concatenate([falling, fine.transpose(1, 2, 0)], axis=1)
        still = np.repeat(score[-1:], own - slots, axis=0)
        neurons = synapses.shape[1]
        there = np.tri(tokens, neurons, neurons - tokens, dtype=np.int64)[:, None, :, None]
        return mean.reshape(tokens, -1), {
            "race.score": whole(np.concatenate([score, still]).transpose(2, 0, 1, 3)),
            "race.spikes": whole(fired.transpose(1, 2, 0, 3)),
            "race.level": whole(level),
            "race.read": whole(read.transpose(1, 2, 0, 3)),
            "race.keys": synapses[None] * there,
            "race.values": values[None] * there,
        }

    def decoded(self, spikes: Integers) -> Integers:
        """Counts (...) from the spikes (slots, ...) that send them."""
        if self.qkv.coding == "rate" or len(spikes) == 1:
            return spikes.sum(0)
        weight = 1 << np.arange(len(spikes))[::-1]
        return np.tensordot(weight, spikes, axes=1)
