"""The two networks of a block in integers: attention and feed-forward, as counts or as steps.

Both take the spike counts of their `encode` neurons and return the membranes of their `c_proj`.
Counts is one matrix product per projection, for any batch; steps is what the chip does, one
sequence, with every spike and state of every time step (a `Trace`), to be compared with Lava.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import MERGE_SHIFT, Integers
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.recipe import Coding
from neurtransformer.spiking.attention import KEY_EXPANSION, qkv_sizes

Tensors = Mapping[str, NDArray]
Trace = dict[str, Integers]
"""`node.quantity` -> (tokens, phase, ...), nodes as in loihi/graph.py; `ssa.state` is that after
the token has been written, (tokens, heads, value + 1, key)."""


@dataclass(frozen=True)
class Projection:
    """Synapses and the membranes they drive: ``u = weight @ spikes + bias``.

    weight: (out, in), even, 8 bits. bias: (out,). A unit of u_j is worth `scale[j]`. No sum over a
    phase can leave 24 bits (see quantise.py), so sums in float32 are exact in any order.
    """

    weight: Integers
    bias: Integers
    scale: NDArray[np.float32]

    @classmethod
    def of(cls, tensors: Tensors, name: str) -> "Projection":
        bias = tensors[f"{name}.bias"].astype(np.int64)
        return cls(tensors[f"{name}.weight"], bias, tensors[f"{name}.scale"])

    @cached_property
    def _transposed(self) -> NDArray[np.float32]:
        return self.weight.T.astype(np.float32)

    def synapses(self, spikes: Integers) -> Integers:
        """Spikes or counts (..., in) to what they add to the membranes, (..., out)."""
        return (spikes.astype(np.float32) @ self._transposed).astype(np.int64)

    def counts(self, counts: Integers) -> Integers:
        """Counts (..., in) to membranes (..., out) at the end of a phase."""
        return self.synapses(counts) + self.bias

    def steps(self, spikes: Integers, coding: Coding) -> Integers:
        """Spikes (phase, ..., in) to membranes (phase, ..., out) after each step."""
        return arithmetic.integrate(self.synapses(spikes), self.bias, coding)


@dataclass(frozen=True)
class GeluNeurons:
    """Coding neurons whose membrane passes a GELU before they fire. All (n,), table apart."""

    mantissa: Integers
    shift: Integers
    center: Integers
    theta: Integers
    table: Integers

    @classmethod
    def of(cls, tensors: Tensors, name: str) -> "GeluNeurons":
        names = ("mantissa", "shift", "center", "theta", "table")
        return cls(*(tensors[f"{name}.{part}"].astype(np.int64) for part in names))

    def membrane(self, u: Integers) -> Integers:
        """What they fire from, for the integrated membrane u (..., n)."""
        x = arithmetic.gelu_fixed(u, self.mantissa, self.shift)
        return arithmetic.saturate(arithmetic.gelu(x, self.table) - self.center)


class IntegerAttention:
    """The SSA network of one block: c_attn, query/key/value neurons, SSA, merged, c_proj."""

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        self.heads = config.heads
        self.timesteps = config.timesteps
        self.coding, self.most = config.coding, config.most
        self.c_attn = Projection.of(tensors, f"{name}.c_attn")
        self.c_proj = Projection.of(tensors, f"{name}.c_proj")
        self.qkv_theta = tensors[f"{name}.qkv.theta"].astype(np.int64)
        self.shift = tensors[f"{name}.ssa.shift"].astype(np.int64)
        self.present = tensors[f"{name}.ssa.present"].astype(np.int64)
        self.merged_theta = tensors[f"{name}.merged.theta"].astype(np.int64)
        self.merged_bias = tensors[f"{name}.merged.bias"].astype(np.int64)
        queries, keys, _ = qkv_sizes(len(self.merged_theta))
        self.key_start, self.value_start = queries, queries + keys
        # query and key unsigned, value signed
        self.qkv_signed = np.arange(len(self.qkv_theta)) >= self.value_start

    def new_state(self, batch: int) -> Integers:
        """The empty fast-weight matrix, (batch, heads, head_dim + 1, key_dim)."""
        dim = len(self.merged_theta) // self.heads
        return np.zeros((batch, self.heads, dim + 1, KEY_EXPANSION * dim), dtype=np.int64)

    def split(self, qkv: Integers) -> tuple[Integers, Integers, Integers]:
        """(..., length, qkv) to query, key and value, each (..., heads, length, their dim)."""
        parts = np.split(qkv, (self.key_start, self.value_start), axis=-1)
        query, key, value = (
            x.reshape(*x.shape[:-1], self.heads, -1).swapaxes(-2, -3) for x in parts
        )
        return query, key, value

    def counts(self, encoded: Integers, state: Integers) -> tuple[Integers, Integers]:
        """Counts (batch, length, width) to membranes of c_proj, the same shape, and state."""
        u = self.c_attn.counts(encoded)
        qkv = arithmetic.fire_counts(u, self.qkv_theta, self.timesteps, self.qkv_signed)
        forgetting = self.shift, self.present
        reads, state = arithmetic.ssa_recurrent(*self.split(qkv), forgetting, self.timesteps, state)
        mean = arithmetic.normalise(reads, self.timesteps).swapaxes(1, 2)
        u = (mean.reshape(encoded.shape) << MERGE_SHIFT) + self.merged_bias
        merged = arithmetic.fire_counts(u, self.merged_theta, self.most, signed=True)
        return self.c_proj.counts(merged), state

    def steps(self, encoded: Integers, phase: int) -> Trace:
        """Counts (length, width) of one sequence to all that happens, from an empty state."""
        trace: Trace = {"encode.spikes": arithmetic.spread(encoded, phase, self.coding)}
        trace["qkv.u"] = self.c_attn.steps(trace["encode.spikes"], self.coding)
        trace["qkv.spikes"], trace["qkv.v"] = arithmetic.fire_steps(
            trace["qkv.u"][-1], self.qkv_theta, self.timesteps, self.qkv_signed, phase, "rate"
        )
        trace["ssa.read"], trace["ssa.state"] = self._ssa_steps(trace["qkv.spikes"])
        mean = arithmetic.normalise(trace["ssa.read"][-1], self.timesteps)
        arriving = np.zeros((phase, *encoded.shape), dtype=np.int64)
        arriving[-1] = mean.reshape(encoded.shape)
        trace["merged.u"] = arithmetic.integrate(arriving << MERGE_SHIFT, self.merged_bias, "rate")
        trace["merged.spikes"], trace["merged.v"] = arithmetic.fire_steps(
            trace["merged.u"][-1], self.merged_theta, self.most, True, phase, self.coding
        )
        trace["readout.u"] = self.c_proj.steps(trace["merged.spikes"], self.coding)
        return _by_token(trace)

    def _ssa_steps(self, spikes: Integers) -> tuple[Integers, Integers]:
        """Spikes (phase, length, qkv) to reads (phase, length, heads, dim + 1) and states."""
        query, key, value = self.split(spikes)
        query = arithmetic.facilitated(query)
        key, value = key.sum(0), arithmetic.with_witness(value.sum(0), self.timesteps)
        state = self.new_state(1)[0]
        reads, states = [], []
        for i in range(key.shape[1]):
            written = arithmetic.ssa_written(key[:, i], value[:, i], self.shift, self.timesteps)
            visible = arithmetic.ssa_visible(state, written, self.present, query[:, :, i].sum(0))
            reads.append((visible * query[:, :, i, None, :]).sum(-1).cumsum(0))
            state = arithmetic.ssa_next(state, written, self.shift)
            states.append(state)
        return np.stack(reads, axis=1), np.stack(states)


class IntegerFeedForward:
    """The feed-forward network of one block: c_fc, GELU neurons, c_proj."""

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        self.coding, self.most = config.coding, config.hidden_most
        self.c_fc = Projection.of(tensors, f"{name}.c_fc")
        self.hidden = GeluNeurons.of(tensors, f"{name}.hidden")
        self.c_proj = Projection.of(tensors, f"{name}.c_proj")

    def counts(self, encoded: Integers) -> Integers:
        """Counts (..., width) to membranes of c_proj (..., width)."""
        y = self.hidden.membrane(self.c_fc.counts(encoded))
        hidden = arithmetic.fire_counts(y, self.hidden.theta, self.most, signed=False)
        return self.c_proj.counts(hidden)

    def steps(self, encoded: Integers, phase: int) -> Trace:
        """Counts (length, width) of one sequence to all that happens."""
        trace: Trace = {"encode.spikes": arithmetic.spread(encoded, phase, self.coding)}
        trace["hidden.u"] = self.c_fc.steps(trace["encode.spikes"], self.coding)
        y = self.hidden.membrane(trace["hidden.u"][-1])
        trace["hidden.spikes"], trace["hidden.v"] = arithmetic.fire_steps(
            y, self.hidden.theta, self.most, False, phase, self.coding
        )
        trace["readout.u"] = self.c_proj.steps(trace["hidden.spikes"], self.coding)
        return _by_token(trace)


def _by_token(trace: Trace) -> Trace:
    """(phase, tokens, ...) to (tokens, phase, ...); the state has no steps."""
    return {k: x if k == "ssa.state" else x.swapaxes(0, 1) for k, x in trace.items()}
