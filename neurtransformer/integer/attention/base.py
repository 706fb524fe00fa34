"""What every attention has in integers around its core, and the interface of a kind.

The network of one block: a norm, c_attn, neurons of query, key and value, the core, neurons of the
merged heads, c_proj, residual stream. Rotary positions turn the membranes of query and key before
those fire. A *kind* fills in the core: counts of query, key and
value come in, mean value counts with MEAN_BITS fraction bits go out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import MERGE_SHIFT, Integers
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.entries import Entry
from neurtransformer.integer.parts import (
    Accumulator,
    Encoder,
    Projection,
    Tensors,
    Trace,
    at_the_end,
    by_token,
    carry_of,
    integers,
)
from neurtransformer.integer.rotary import Rotary
from neurtransformer.recipe import Code

State = tuple[Integers, ...]
"""What a core keeps between tokens; the first axis of every array is the batch."""

Innate = tuple[Integers, Integers]
"""Key and value of the innate token, (kv_heads, 1, channels) each: what a key is, a kind says."""


def innate_entries(config: IntegerConfig, key: Entry, value: Entry) -> Iterator[tuple[str, Entry]]:
    """The tensors of the innate token's key and value, where there is one."""
    if config.first_token is not None:
        yield "first_key", key
        yield "first_value", value


def innate_of(tensors: Tensors, name: str, config: IntegerConfig) -> Innate | None:
    """The innate token of the core `name`, where there is one."""
    if config.first_token is None:
        return None
    key, value = (integers(tensors, f"{name}.{part}") for part in ("first_key", "first_value"))
    heads = config.heads // config.shared
    return key.reshape(heads, 1, -1), value.reshape(heads, 1, -1)


def innate_counts(attention: Any, worth: NDArray[np.float64]) -> tuple[NDArray, NDArray] | None:
    """What the innate token of a spiking attention is in spikes of key and value neurons, as
    floats and not clipped: (key neurons,) and (value neurons,). worth: see `quantised`."""
    if attention.first_key is None:
        return None
    queries = attention.rows[0]
    key, value = (
        x.detach().double().cpu().numpy() for x in (attention.first_key, attention.first_value)
    )
    return key / worth[queries : queries + len(key)], value / worth[-len(value) :]


class IntegerAttention(ABC):
    """The attention network of one block. tensors: those of the model, name: of the network."""

    kind: ClassVar[str]
    first: Innate | None = None

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        self.heads, self.shared = config.heads, config.shared
        self.kv_heads = self.heads // self.shared
        self.code, self.qkv = config.attention_code, self.qkv_code(config.attention_code)
        self.encode = Encoder.of(tensors, name, self.code)
        saturates = config.carries(self.code.coding)
        self.c_attn = Projection.of(tensors, f"{name}.c_attn", saturates=saturates)
        self.c_proj = Projection.of(tensors, f"{name}.c_proj", saturates=saturates)
        self.residual = Accumulator.of(tensors, f"{name}.residual")
        self.qkv_theta = integers(tensors, f"{name}.qkv.theta")
        self.merged_theta = integers(tensors, f"{name}.merged.theta")
        self.merged_bias = integers(tensors, f"{name}.merged.bias")
        self.merged_carry = carry_of(tensors, f"{name}.merged")
        sizes = self.sizes(config.width, config.kv_width)
        self.key_start, self.value_start = sizes[0], sizes[0] + sizes[1]
        self.dim = config.dim
        self.begin = 0 if config.first_token is None else 1
        self.rotary = Rotary.of(tensors, f"{name}.qkv", config.turned) if config.rotary else None
        self.qkv_signed = np.arange(len(self.qkv_theta)) >= self.unsigned(config.width)

    # --- what a kind fills in ---

    @staticmethod  # noqa: B027  a kind may have no bounds
    def check(config: IntegerConfig) -> None:
        """Raise ValueError for sizes at which the core could leave its bit widths."""

    @staticmethod
    def qkv_code(code: Code) -> Code:
        """The code of queries, keys and values, where inputs and merged heads have `code`."""
        return code

    @staticmethod
    def sizes(width: int, kv_width: int) -> tuple[int, int, int]:
        """Neurons of query, key and value of heads that are `width` wide together, those of keys
        and values `kv_width`."""
        return width, kv_width, kv_width

    @staticmethod
    def unsigned(width: int) -> int:
        """How many of them, the first, are unsigned."""
        return 0

    @staticmethod
    @abstractmethod
    def entries(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
        """The tensors of the core: names without the network's, shapes and ranges."""

    @staticmethod
    @abstractmethod
    def quantised(attention: Any, worth: NDArray[np.float64]) -> dict[str, NDArray]:
        """Those tensors for a spiking attention of this kind. worth: of one spike of each neuron of
        query, key and value, as integer thresholds make it."""

    @abstractmethod
    def new_state(self, batch: int) -> State:
        """The state before a text: empty, or what the innate token has written."""

    @abstractmethod
    def weights(self, query: Integers, key: Integers) -> NDArray[np.float64]:
        """Effective attention weights (batch, heads, i, j), before they are divided by their sum,
        of counts (batch, heads or kv_heads, length, channels). Of the innate token first."""

    @abstractmethod
    def mix(
        self, query: Integers, key: Integers, value: Integers, state: State
    ) -> tuple[Integers, State]:
        """Counts (batch, heads or kv_heads, length, channels) and the state to mean value counts
        (batch, heads, length, dim) and the state after the last token."""

    @abstractmethod
    def core_steps(self, spikes: Integers, phase: int) -> tuple[Integers, Trace]:
        """Spikes (slots, length, neurons) of query, key and value, from `new_state`, to the mean
        value counts (length, width) and all that happens in the core in each step of a phase:
        (tokens, phase, ...), or (tokens, ...) for what is the same in all steps."""

    # --- what all kinds share ---

    def split(self, qkv: Integers) -> tuple[Integers, Integers, Integers]:
        """(..., length, qkv) to query, key and value, (..., heads or kv_heads, length, their dim)
        each."""
        parts = np.split(qkv, (self.key_start, self.value_start), axis=-1)
        query, key, value = (
            x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)
            for x, heads in zip(parts, (self.heads, self.kv_heads, self.kv_heads), strict=True)
        )
        return query, key, value

    def each(self, x: Integers) -> Integers:
        """What heads of keys and values have, (..., kv_heads, length, channels), once for each
        query head."""
        return np.repeat(x, self.shared, axis=-3) if self.shared > 1 else x

    def turned(self, u: Integers, past: int = 0) -> Integers:
        """Membranes (..., length, qkv) of the tokens behind `past` others, as they fire."""
        return u if self.rotary is None else self.rotary.turned(u, self.begin + past)

    def heads_of(self, x: Integers, past: int = 0) -> tuple[Integers, Integers, Integers]:
        """Stream (batch, length, width), behind `past` tokens, to the counts of query, key and
        value, heads split."""
        u = self.turned(self.c_attn.counts(self.encode.counts(x)), past)
        return self.split(arithmetic.fire_counts(u, self.qkv_theta, self.qkv.most, self.qkv_signed))

    def counts(self, x: Integers, state: State, past: int = 0) -> tuple[Integers, State]:
        """Stream (batch, length, width) and the state behind `past` tokens to the stream and the
        state after it."""
        mean, state = self.mix(*self.heads_of(x, past), state)
        u = (mean.swapaxes(1, 2).reshape(x.shape) << MERGE_SHIFT) + self.merged_bias
        merged = arithmetic.fire_counts(u, self.merged_theta, self.code.most, signed=True)
        return self.residual.add(self.c_proj.counts(merged << self.merged_carry), x), state

    def steps(self, x: Integers, phase: int, slots: int) -> Trace:
        """Stream (length, width) of one sequence to all that happens, from `new_state`.

        phase: steps in which a token is handled; neurons fire in the first `slots` of them.
        """
        when = phase, slots
        trace = {"stream.spikes": at_the_end(x, phase), **self.encode.steps(x, *when)}
        trace["qkv.u"] = self.c_attn.steps(trace["encode.spikes"], self.code.coding, slots)
        trace["qkv.spikes"], trace["qkv.v"] = arithmetic.fire_steps(
            self.turned(trace["qkv.u"][-1]), self.qkv_theta, self.qkv.most, self.qkv_signed, *when,
            self.qkv.coding, digits=self.qkv.digits,
        )  # fmt: skip
        mean, core = self.core_steps(trace["qkv.spikes"][:slots], phase)
        arriving = at_the_end(mean, phase)
        trace["merged.u"] = arithmetic.integrate(
            arriving << MERGE_SHIFT, self.merged_bias, "rate", slots
        )
        spikes, trace["merged.v"] = arithmetic.fire_steps(
            trace["merged.u"][-1], self.merged_theta, self.code.most, True, *when,
            self.code.coding, digits=self.code.digits,
        )  # fmt: skip
        trace["merged.spikes"] = spikes << self.merged_carry
        u = self.c_proj.steps(trace["merged.spikes"], self.code.coding, slots)
        trace |= {"residual.u": u, "residual.x": at_the_end(self.residual.add(u[-1], x), phase)}
        return {**by_token(trace), **core}
