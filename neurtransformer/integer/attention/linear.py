"""Linear attention in integers: the fast-weight matrix of `arithmetic.ssa_recurrent`.

It starts empty, or as the counts of the innate token write it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurtransformer.codes import KEY_EXPANSION, NO_FORGETTING, level_bits, qkv_sizes
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import PRESENT_BITS, Integers
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
from neurtransformer.recipe import Code


class LinearAttention(IntegerAttention):
    """Query and key are unsigned and rate coded, value is signed."""

    kind = "linear"

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        super().__init__(tensors, name, config)
        self.shift = integers(tensors, f"{name}.ssa.shift")
        self.present = integers(tensors, f"{name}.ssa.present")
        self.first = innate_of(tensors, f"{name}.ssa", config)

    @staticmethod
    def qkv_code(code: Code) -> Code:
        return Code(code.timesteps, "rate")

    @staticmethod
    def sizes(width: int, kv_width: int) -> tuple[int, int, int]:
        return qkv_sizes(width, kv_width)

    @staticmethod
    def unsigned(width: int) -> int:
        return sum(qkv_sizes(width, width)[:2])

    @staticmethod
    def check(config: IntegerConfig) -> None:
        if config.shared > 1:
            raise ValueError("fast weights have no heads that share keys and values")

    @staticmethod
    def entries(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
        yield "ssa.shift", Entry((config.heads,), "chip", 0, NO_FORGETTING)
        yield "ssa.present", Entry((config.heads,), "chip", 0, 255)
        most = config.attention_code.timesteps
        key = Entry((KEY_EXPANSION * config.width,), "chip", 0, most)
        value = Entry((config.width,), "chip", -most, most)
        for name, entry in innate_entries(config, key, value):
            yield f"ssa.{name}", entry

    @staticmethod
    def quantised(attention: Any, worth: NDArray[np.float64]) -> dict[str, NDArray]:
        present = attention.present.double().cpu().numpy() * (1 << PRESENT_BITS)
        shift = attention.shift.cpu().numpy()
        tensors = {"ssa.shift": shift, "ssa.present": np.rint(present).clip(0, 255)}
        first = innate_counts(attention, worth)
        if first is not None:
            key, value = (np.floor(x + 0.5) for x in first)
            most = attention.qkv.most
            tensors["ssa.first_key"] = key.clip(0, most)
            tensors["ssa.first_value"] = value.clip(-most, most)
        return {name: x.astype(np.int32) for name, x in tensors.items()}

    def new_state(self, batch: int) -> State:
        """The fast-weight matrix, (batch, heads, head_dim + 1, key_dim): empty, or with the innate
        token written."""
        shape = batch, self.heads, self.dim + 1, KEY_EXPANSION * self.dim
        matrix = np.zeros(shape, dtype=np.int64)
        if self.first is not None:
            key, value = (x[:, 0] for x in self.first)
            timesteps = self.qkv.timesteps
            value = arithmetic.with_witness(value, timesteps)
            written = arithmetic.ssa_written(key, value, self.shift, timesteps)
            matrix += arithmetic.ssa_next(np.zeros_like(written), written, self.shift)
        return (matrix,)

    def weights(self, query: Integers, key: Integers) -> NDArray[np.float64]:
        if self.first is not None:
            first = np.repeat(self.first[0][None], len(key), axis=0)
            key = np.concatenate([first, key], axis=2)
        asking, written = query.shape[-2], key.shape[-2]
        age = np.arange(written - asking, written)[:, None] - np.arange(written)
        keep = (1 - np.exp2(-self.shift.astype(float)))[:, None, None]
        past = np.where(age > 0, keep ** np.maximum(age - 1, 0), 0.0)
        now = self.present[:, None, None] * 2.0**-PRESENT_BITS
        return (query**2 @ key.swapaxes(-1, -2) ** 2) * (past + now * (age == 0))

    def mix(
        self, query: Integers, key: Integers, value: Integers, state: State
    ) -> tuple[Integers, State]:
        forgetting, timesteps = (self.shift, self.present), self.qkv.timesteps
        reads, matrix = arithmetic.ssa_recurrent(query, key, value, forgetting, timesteps, *state)
        return arithmetic.normalise(reads, level_bits(timesteps)), (matrix,)

    def core_steps(self, spikes: Integers, phase: int) -> tuple[Integers, Trace]:
        timesteps = self.qkv.timesteps
        query, key, value = self.split(spikes)
        query = arithmetic.facilitated(query)
        key, value = key.sum(0), arithmetic.with_witness(value.sum(0), timesteps)
        (matrix,) = self.new_state(1)
        state = matrix[0]
        reads, states = [], []
        for i in range(key.shape[1]):
            written = arithmetic.ssa_written(key[:, i], value[:, i], self.shift, timesteps)
            visible = arithmetic.ssa_visible(state, written, self.present, query[:, :, i].sum(0))
            reads.append((visible * query[:, :, i, None, :]).sum(-1).cumsum(0))
            state = arithmetic.ssa_next(state, written, self.shift)
            states.append(state)
        read = np.stack(reads)
        mean = arithmetic.normalise(read[:, -1], level_bits(timesteps))
        return mean.reshape(len(mean), -1), {"ssa.read": read, "ssa.state": np.stack(states)}
