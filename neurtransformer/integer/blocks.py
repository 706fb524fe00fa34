"""The networks of an IntegerGPT2 beside attention (attention/): embedding, feed-forward, head.

All as counts or as steps.

Counts is one matrix product per projection, for any batch; steps is what the chip does, one
sequence, with every spike and state of every time step (a `Trace`), to be compared with Lava.
Between networks travels the residual stream: integers of 24 bits with `stream_bits` fraction bits.
"""

from functools import cached_property

import numpy as np

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.parts import (
    Accumulator,
    Encoder,
    GeluNeurons,
    Projection,
    SwigluNeurons,
    Tensors,
    Trace,
    at_the_end,
    by_token,
)


class IntegerEmbedding:
    """Tokens to the residual stream: a row of synapses for each token and, where positions are
    embedded, for each of those."""

    def __init__(self, tensors: Tensors, config: IntegerConfig) -> None:
        self.inputs, self.embeds_positions = config.rows_in, config.rotary is None
        # an innate token has position 0
        self.begin = config.vocabulary + (config.first_token is not None)
        self.table = Projection.of(tensors, "embed.table")
        self.stream = Accumulator.of(tensors, "embed.stream")

    @cached_property
    def _rows(self) -> Integers:
        """Weights (inputs, width), of which a token needs one row or two."""
        return self.table.weight.T

    def counts(self, ids: Integers, past: int = 0) -> Integers:
        """Token ids (..., length) to the stream (..., length, width), behind `past` tokens."""
        rows = self._rows
        u = rows[ids].astype(np.int64) + self.table.bias
        if self.embeds_positions:
            u += rows[self.begin + past + np.arange(ids.shape[-1])]
        return self.stream.add(u)

    def steps(self, ids: Integers, phase: int, slots: int) -> Trace:
        """One sequence, ids (length,): a spike per token, its own, and one of its position where
        that is embedded, in phases of one step."""
        length = np.arange(len(ids))
        spikes = np.zeros((len(ids), 1, self.inputs), dtype=np.int64)
        spikes[length, 0, ids] = 1
        if self.embeds_positions:
            spikes[length, 0, self.begin + length] = 1
        u = self.table.counts(spikes)
        return {"tokens.spikes": spikes, "stream.u": u, "stream.x": self.stream.add(u)}


class IntegerFeedForward:
    """The feed-forward network of one block: norm, c_fc, GELU or SwiGLU neurons, c_proj."""

    def __init__(self, tensors: Tensors, name: str, config: IntegerConfig) -> None:
        self.coding, self.most = config.coding, config.hidden_most
        self.digits, self.limit = config.hidden_code.digits, config.hidden_spikes
        self.encode = Encoder.of(tensors, name, config.code)
        saturates = config.carries(config.coding)
        self.c_fc = Projection.of(tensors, f"{name}.c_fc", saturates=saturates)
        self.signed = config.gated
        neurons = SwigluNeurons if config.gated else GeluNeurons
        self.hidden: SwigluNeurons | GeluNeurons = neurons.of(tensors, f"{name}.hidden")
        self.c_proj = Projection.of(tensors, f"{name}.c_proj", saturates=saturates)
        self.residual = Accumulator.of(tensors, f"{name}.residual")

    def counts(self, x: Integers) -> Integers:
        """Stream (..., width) to the stream after it."""
        y = self.hidden.membrane(self.c_fc.counts(self.encode.counts(x)))
        hidden = arithmetic.fire_counts(y, self.hidden.theta, self.most, self.signed, self.limit)
        return self.residual.add(self.c_proj.counts(hidden << self.hidden.carry), x)

    def steps(self, x: Integers, phase: int, slots: int) -> Trace:
        """Stream (length, width) of one sequence to all that happens. phase, slots: see
        `IntegerAttention.steps`."""
        trace = {"stream.spikes": at_the_end(x, phase), **self.encode.steps(x, phase, slots)}
        trace["hidden.u"] = self.c_fc.steps(trace["encode.spikes"], self.coding, slots)
        y = self.hidden.membrane(trace["hidden.u"][-1])
        spikes, trace["hidden.v"] = arithmetic.fire_steps(
            y, self.hidden.theta, self.most, self.signed, phase, slots, self.coding, self.limit,
            self.digits,
        )  # fmt: skip
        trace["hidden.spikes"] = spikes << self.hidden.carry
        u = trace["residual.u"] = self.c_proj.steps(trace["hidden.spikes"], self.coding, slots)
        trace["residual.x"] = at_the_end(self.residual.add(u[-1], x), phase)
        return by_token(trace)


class IntegerHead:
    """The last norm and the LM head: stream to logits, by one graded spike per channel, or by phase
    coded ones (`IntegerConfig.final_code`)."""

    def __init__(self, tensors: Tensors, config: IntegerConfig) -> None:
        code = config.final_code
        self.coding, self.encode = code.coding, Encoder.of(tensors, "head", code)
        saturates = config.carries(code.coding)
        self.lm_head = Projection.of(tensors, "head.lm_head", saturates=saturates)
        self.logits = Accumulator.of(tensors, "head.logits")

    def counts(self, x: Integers) -> Integers:
        """Stream (..., width) to logits (..., vocabulary) with LOGIT_BITS fraction bits."""
        return self.logits.add(self.lm_head.counts(self.encode.counts(x)))

    def steps(self, x: Integers, phase: int, slots: int) -> Trace:
        """Stream (length, width) of one sequence to all that happens. phase, slots: see
        `IntegerAttention.steps`."""
        trace = {"stream.spikes": at_the_end(x, phase), **self.encode.steps(x, phase, slots)}
        u = trace["logits.u"] = self.lm_head.steps(trace["encode.spikes"], self.coding, slots)
        trace["logits.x"] = at_the_end(self.logits.add(u[-1]), phase)
        return by_token(trace)
