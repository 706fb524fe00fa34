"""The networks of an integer GPT-2, in the order of the data: embedding, attention and feed-forward
of each block, head. All as counts or as steps.

Counts is one matrix product per projection, for any batch; steps is what the chip does, one
sequence, with every spike and state of every time step (a `Trace`), to be compared with Lava.
Between networks travels the residual stream: integers of 24 bits with `stream_bits` fraction bits.
"""

import numpy as np

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import MERGE_SHIFT, Integers
from neurtransformer.integer.config import FINAL_MOST, IntegerConfig
from neurtransformer.integer.parts import (
    Accumulator,
    Encoder,
    GeluNeurons,
    Projection,
    Tensors,
    Trace,
    at_the_end,
    integers,
)
from neurtransformer.spiking.attention.linear import KEY_EXPANSION, qkv_sizes


class IntegerEmbedding:
    """Tokens to the residual stream: a row of synapses for each token and each position."""

    def __init__(self, tensors: Tensors, config: IntegerConfig) -> None:
        self.vocabulary, self.positions = config.vocabulary, config.positions
        self.table = Projection.of(tensors, "embed.table")
        self.stream = Accumulator.of(tensors, "embed.stream")

    def counts(self, ids: Integers, past: int = 0) -> Integers:
        """Token ids (..., length) to the stream (..., length, width), from position `past` on."""
        position = self.vocabulary + past + np.arange(ids.shape[-1])
        rows = self.table.weight.T
        return self.stream.add(rows[ids].astype(np.int64) + rows[position] + self.table.bias)

    def steps(self, ids: Integers) -> Trace:
        """One sequence, ids (length,): two spikes per token, its own and its position's."""
        length = np.arange(len(ids))
        spikes = np.zeros((len(ids), 1, self.vocabulary + self.positions), dtype=np.int64)
        spikes[length, 0, ids] = 1
        spikes[length, 0, self.vocabulary + length] = 1
        u = self.table.counts(spikes)
        return {"tokens.spikes": spikes, "stream.u": u, "stream.x": self.stream.add(u)}


class IntegerAttention:
    """The attention network of one block: LayerNorm, c_attn, query, key and value, SSA, c_proj."""

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        self.heads = config.heads
        self.timesteps = config.timesteps
        self.coding, self.most = config.coding, config.most
        self.encode = Encoder.of(tensors, name, config.most, config.coding)
        self.c_attn = Projection.of(tensors, f"{name}.c_attn")
        self.c_proj = Projection.of(tensors, f"{name}.c_proj")
        self.residual = Accumulator.of(tensors, f"{name}.residual")
        self.qkv_theta = integers(tensors, f"{name}.qkv.theta")
        self.shift = integers(tensors, f"{name}.ssa.shift")
        self.present = integers(tensors, f"{name}.ssa.present")
        self.merged_theta = integers(tensors, f"{name}.merged.theta")
        self.merged_bias = integers(tensors, f"{name}.merged.bias")
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

    def heads_of(self, x: Integers) -> tuple[Integers, Integers, Integers]:
        """Stream (batch, length, width) to the counts of query, key and value, heads split."""
        u = self.c_attn.counts(self.encode.counts(x))
        return self.split(
            arithmetic.fire_counts(u, self.qkv_theta, self.timesteps, self.qkv_signed)
        )

    def counts(self, x: Integers, state: Integers) -> tuple[Integers, Integers]:
        """Stream (batch, length, width) and state to the stream and the state after it."""
        forgetting = self.shift, self.present
        counts = self.heads_of(x)
        reads, state = arithmetic.ssa_recurrent(*counts, forgetting, self.timesteps, state)
        mean = arithmetic.normalise(reads, self.timesteps).swapaxes(1, 2)
        u = (mean.reshape(x.shape) << MERGE_SHIFT) + self.merged_bias
        merged = arithmetic.fire_counts(u, self.merged_theta, self.most, signed=True)
        return self.residual.add(self.c_proj.counts(merged), x), state

    def steps(self, x: Integers, phase: int) -> Trace:
        """Stream (length, width) of one sequence to all that happens, from an empty state."""
        trace = {"stream.spikes": at_the_end(x, phase), **self.encode.steps(x, phase)}
        trace["qkv.u"] = self.c_attn.steps(trace["encode.spikes"], self.coding)
        trace["qkv.spikes"], trace["qkv.v"] = arithmetic.fire_steps(
            trace["qkv.u"][-1], self.qkv_theta, self.timesteps, self.qkv_signed, phase, "rate"
        )
        trace["ssa.read"], trace["ssa.state"] = self._ssa_steps(trace["qkv.spikes"])
        mean = arithmetic.normalise(trace["ssa.read"][-1], self.timesteps)
        arriving = at_the_end(mean.reshape(x.shape), phase)
        trace["merged.u"] = arithmetic.integrate(arriving << MERGE_SHIFT, self.merged_bias, "rate")
        trace["merged.spikes"], trace["merged.v"] = arithmetic.fire_steps(
            trace["merged.u"][-1], self.merged_theta, self.most, True, phase, self.coding
        )
        u = trace["residual.u"] = self.c_proj.steps(trace["merged.spikes"], self.coding)
        trace["residual.x"] = at_the_end(self.residual.add(u[-1], x), phase)
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
    """The feed-forward network of one block: LayerNorm, c_fc, GELU neurons, c_proj."""

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        self.coding, self.most = config.coding, config.hidden_most
        self.encode = Encoder.of(tensors, name, config.most, config.coding)
        self.c_fc = Projection.of(tensors, f"{name}.c_fc")
        self.hidden = GeluNeurons.of(tensors, f"{name}.hidden")
        self.c_proj = Projection.of(tensors, f"{name}.c_proj")
        self.residual = Accumulator.of(tensors, f"{name}.residual")

    def counts(self, x: Integers) -> Integers:
        """Stream (..., width) to the stream after it."""
        y = self.hidden.membrane(self.c_fc.counts(self.encode.counts(x)))
        hidden = arithmetic.fire_counts(y, self.hidden.theta, self.most, signed=False)
        return self.residual.add(self.c_proj.counts(hidden), x)

    def steps(self, x: Integers, phase: int) -> Trace:
        """Stream (length, width) of one sequence to all that happens."""
        trace = {"stream.spikes": at_the_end(x, phase), **self.encode.steps(x, phase)}
        trace["hidden.u"] = self.c_fc.steps(trace["encode.spikes"], self.coding)
        y = self.hidden.membrane(trace["hidden.u"][-1])
        trace["hidden.spikes"], trace["hidden.v"] = arithmetic.fire_steps(
            y, self.hidden.theta, self.most, False, phase, self.coding
        )
        u = trace["residual.u"] = self.c_proj.steps(trace["hidden.spikes"], self.coding)
        trace["residual.x"] = at_the_end(self.residual.add(u[-1], x), phase)
        return _by_token(trace)


class IntegerHead:
    """The last LayerNorm and the LM head: stream to logits, by one graded spike per channel."""

    def __init__(self, tensors: Tensors, config: IntegerConfig) -> None:
        self.encode = Encoder.of(tensors, "head", FINAL_MOST, "rate")
        self.lm_head = Projection.of(tensors, "head.lm_head")
        self.logits = Accumulator.of(tensors, "head.logits")

    def counts(self, x: Integers) -> Integers:
        """Stream (..., width) to logits (..., vocabulary) with LOGIT_BITS fraction bits."""
        return self.logits.add(self.lm_head.counts(self.encode.counts(x)))

    def steps(self, x: Integers) -> Trace:
        """Stream (length, width) of one sequence to all that happens."""
        trace = {"stream.spikes": at_the_end(x, 1), **self.encode.steps(x, 1)}
        u = trace["logits.u"] = self.lm_head.steps(trace["encode.spikes"], "rate")
        trace["logits.x"] = self.logits.add(u)
        return _by_token(trace)


def _by_token(trace: Trace) -> Trace:
    """(phase, tokens, ...) to (tokens, phase, ...); the state has no steps."""
    return {k: x if k == "ssa.state" else x.swapaxes(0, 1) for k, x in trace.items()}
