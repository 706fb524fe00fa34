"""The plastic transformer of `icl/plastic.py` in integers: what its netlist is checked against.

    ink -> convolution, coding neurons (all but the last) -> convolution, membranes
        -> norm -> key neurons -> plastic synapses -> logits

A token is a drawing and its label. Key neurons send twice their counts k, 0..64. The synapses W,
one row for each label, are read before they are written, in one time step, by the arithmetic of
the learning engine:

    o = W 2 k,    W <- min(W + v k, 255),

where v is 1 in the row of the token's label. A label comes as one graded spike of T = 8, a trace
of 8, and the engine drops 3 bits of a product (`learning.PRODUCT_SHIFT`): what is written is whole,
so nothing is rounded at random.

Pictures are (channel, row, column) in arithmetic, and (column, row, channel) where neurons are in a
line, as Lava has them.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from neurtransformer.codes import HIDDEN_SPIKES
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT, WEIGHT_LIMIT, Integers
from neurtransformer.integer.entries import Entry, check_entries
from neurtransformer.integer.parts import Accumulator, Tensors, Trace, at_the_end, integers
from neurtransformer.integer.quantise import worst_sums

STRIDE = 2

KEY_SHIFT = 4
"""Bits by which normalised membranes shift left, so that thresholds are precise."""

KEY_MOST = 64
"""The largest count of a key: a trace of 7 bits, sent twofold in a graded spike of 8."""

WEIGHT_MOST = 255
"""The largest plastic weight."""

KEY_CENTER_LIMIT = LIMIT // 2
"""Largest magnitude of a key's centre; the normalised membrane and half a threshold fit too."""

Size = Annotated[int, Field(strict=True, ge=1, le=4096)]


class ConvolutionSizes(BaseModel):
    """One convolution: each halves the sides of its pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: Size
    outputs: Size
    kernel: Annotated[int, Field(strict=True, ge=1, le=31)]

    @property
    def padding(self) -> int:
        return self.kernel // 2


class PlasticConfig(BaseModel):
    """Sizes of an IntegerPlasticTransformer, as they stand in a netlist's manifest.

    side: of a drawing. ways: labels. timesteps: with 8, a label at full scale writes counts as they
    are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["plastic transformer"] = "plastic transformer"
    side: Size
    ways: Size
    timesteps: Literal[8] = 8
    convolutions: Annotated[tuple[ConvolutionSizes, ...], Field(min_length=1, max_length=16)]

    @property
    def sides(self) -> list[int]:
        """Of the pictures that enter each convolution, and of those that leave the last."""
        sides = [self.side]
        for _ in self.convolutions:
            sides.append(-(-sides[-1] // STRIDE))
        return sides

    @property
    def hidden_most(self) -> int:
        """The largest count of a hidden neuron: a staggered pair, as in the feed-forward blocks."""
        return HIDDEN_SPIKES["rate"] * self.timesteps

    def most_in(self, layer: int) -> int:
        """The largest count that enters a convolution."""
        return self.hidden_most if layer else self.timesteps

    @property
    def keys(self) -> int:
        return self.convolutions[-1].outputs * self.sides[-1] ** 2

    @model_validator(mode="after")
    def _possible(self) -> "PlasticConfig":
        channels = [1, *(c.outputs for c in self.convolutions)]
        if any(c.inputs != n for c, n in zip(self.convolutions, channels, strict=False)):
            raise ValueError("convolutions do not follow one another")
        if any(c.kernel % 2 == 0 for c in self.convolutions):
            raise ValueError("kernels must have odd sides")
        # what a query reads has 24 bits
        if 2 * KEY_MOST * WEIGHT_MOST * self.keys > LIMIT:
            raise ValueError(f"{self.keys} keys are too many for reads of 24 bits")
        return self


def layout(config: PlasticConfig) -> dict[str, Entry]:
    """All tensors of an IntegerPlasticTransformer of these sizes; those of channels are (n,)."""
    entries = dict(_convolutions(config))
    for name in ("membranes", "logits"):
        entries[f"{name}.mantissa"] = Entry((1,), "chip", 4, 4)
        entries[f"{name}.shift"] = Entry((1,), "chip", 2, 2)
    entries["logits.bias"] = Entry((1,), "chip", 0, 0)
    entries["norm.epsilon"] = Entry((1,), "chip", 0, LIMIT)
    entries["keys.theta"] = Entry((config.keys,), "chip", 1, LIMIT // KEY_MOST)
    entries["keys.bias"] = Entry((config.keys,), "chip", -KEY_CENTER_LIMIT, KEY_CENTER_LIMIT)
    return {f"decoder.{name}": entry for name, entry in entries.items()}


def _convolutions(config: PlasticConfig) -> Iterator[tuple[str, Entry]]:
    for i, c in enumerate(config.convolutions):
        shape = (c.outputs, c.inputs, c.kernel, c.kernel)
        yield f"conv{i}.weight", Entry(shape, "synapses", -WEIGHT_LIMIT, WEIGHT_LIMIT)
        yield f"conv{i}.bias", Entry((c.outputs,), "chip", -LIMIT, LIMIT)
        if i < len(config.convolutions) - 1:
            theta = Entry((c.outputs,), "chip", 1, LIMIT // config.hidden_most)
            yield f"neurons{i}.theta", theta


def check(config: PlasticConfig, tensors: Tensors, complain: Callable[[str], None]) -> None:
    """Call `complain` with what is wrong with the first tensor that does not fit the layout.

    Beyond shapes and ranges: weights are even, and no membrane can leave 24 bits.
    """
    check_entries(layout(config), tensors, complain)
    for i, _ in enumerate(config.convolutions):
        weight, bias = (tensors[f"decoder.conv{i}.{x}"] for x in ("weight", "bias"))
        beside = tensors.get(f"decoder.neurons{i}.theta", 0)
        rows = weight.reshape(len(weight), -1)
        if (worst_sums(rows, bias, config.most_in(i)) + beside > LIMIT).any():
            complain(f"membranes of conv{i} can leave 24 bits")


class IntegerPlasticTransformer:
    """The integer network. tensors: name -> array, see `layout`."""

    def __init__(self, config: PlasticConfig, tensors: Tensors) -> None:
        self.config = config
        self.tensors = tensors
        own = {name.removeprefix("decoder."): x for name, x in tensors.items()}
        numbers = range(len(config.convolutions))
        self.weights = [own[f"conv{i}.weight"].astype(np.float32) for i in numbers]
        self.biases = [integers(own, f"conv{i}.bias")[:, None, None] for i in numbers]
        self.thetas = [integers(own, f"neurons{i}.theta")[:, None, None] for i in numbers[:-1]]
        self.membranes = Accumulator.of(own, "membranes")
        self.epsilon = int(own["norm.epsilon"][0])
        self.theta, self.center = (integers(own, f"keys.{x}") for x in ("theta", "bias"))

    def keys(self, ink: Integers) -> Integers:
        """Counts of drawings (n, side, side), 0..T, to those of their keys (n, keys), 0..64."""
        x = ink[:, None]
        for i, theta in enumerate(self.thetas):
            u = self._synapses(i, x) + self.biases[i]
            x = arithmetic.fire_counts(u, theta, self.config.hidden_most, False)
        u = self._synapses(len(self.thetas), x) + self.biases[-1]
        y = arithmetic.normed(self.membranes.add(in_line(u)), self.epsilon)
        z = (y << KEY_SHIFT) + self.center
        return arithmetic.fire_counts(z, self.theta, KEY_MOST, False)

    def _synapses(self, i: int, x: Integers) -> Integers:
        """What spikes or counts (..., channels, side, side) add to membranes."""
        # for a fast convolution; sums of less than 2^23 are exact in float32
        import torch
        from torch.nn.functional import conv2d

        pictures = torch.from_numpy(x.reshape(-1, *x.shape[-3:]).astype(np.float32))
        padding = self.config.convolutions[i].padding
        u = conv2d(pictures, torch.from_numpy(self.weights[i]), stride=STRIDE, padding=padding)
        return u.long().numpy().reshape(*x.shape[:-3], *u.shape[1:])

    def reads(self, counts: Integers, labels: Integers) -> tuple[Integers, Integers]:
        """Key counts (..., tokens, keys) and labels (..., tokens), -1 for none, token after token.

        Returns what each token reads (..., tokens, ways), and the weights after each of them
        (..., tokens, ways, keys).
        """
        written = self._values(labels)[..., None] * counts[..., None, :]
        # what is written is never negative: to saturate once is to saturate each time
        after = np.minimum(written.cumsum(-3), WEIGHT_MOST)
        before = np.concatenate([np.zeros_like(after[..., :1, :, :]), after[..., :-1, :, :]], -3)
        return 2 * (before * counts[..., None, :]).sum(-1), after

    def query_reads(
        self, counts: Integers, labels: Integers, weight_most: int = WEIGHT_MOST
    ) -> Integers:
        """What the last token alone reads, (..., ways): for many sequences at once.

        weight_most: the largest weight, if it is another than the learning engine's.
        """
        values = self._values(labels[..., :-1]).swapaxes(-1, -2)
        weight = np.minimum(values @ counts[..., :-1, :], weight_most)
        return 2 * (weight @ counts[..., -1, :, None])[..., 0]

    def _values(self, labels: Integers) -> Integers:
        """1 in the column of a label, (..., ways)."""
        return (labels[..., None] == np.arange(self.config.ways)).astype(np.int64)

    def steps(self, ink: Integers, labels: Integers, phase: int) -> Trace:
        """One sequence: drawings (tokens, side, side) in counts and labels (tokens,), -1 for none.

        Returns all that happens in each time step, (tokens, phase, ...). A drawing comes as spikes
        in the first steps of its phase.
        """
        most = self.config.hidden_most
        in_rate = ink > np.arange(phase)[:, None, None, None]
        x = (in_rate.astype(np.int64) if phase > 1 else ink[None])[:, :, None]
        trace = {"ink.spikes": in_line(x)}
        for i, theta in enumerate(self.thetas):
            u = arithmetic.integrate(self._synapses(i, x), self.biases[i], "rate", phase)
            x, v = arithmetic.fire_steps(u[-1], theta, most, False, phase, phase, "rate")
            found = {"u": u, "spikes": x, "v": v}
            trace |= {f"neurons{i}.{name}": in_line(y) for name, y in found.items()}
        u = arithmetic.integrate(
            self._synapses(len(self.thetas), x), self.biases[-1], "rate", phase
        )
        stream = self.membranes.add(in_line(u[-1]))
        trace |= {"membranes.u": in_line(u), "membranes.x": at_the_end(stream, phase)}
        y = at_the_end(arithmetic.normed(stream, self.epsilon), phase)
        z = arithmetic.integrate(y << KEY_SHIFT, self.center, "rate", phase)
        trace |= {"norm.y": y, "keys.u": z}
        trace |= self._attention_steps(z[-1], labels, phase)
        return {name: x.swapaxes(0, 1) for name, x in trace.items()}

    def _attention_steps(self, z: Integers, labels: Integers, phase: int) -> Trace:
        """From the membranes of the keys (tokens, keys) on, (phase, tokens, ...)."""
        v, _ = arithmetic.fire_start(z, self.theta, False)
        counts = arithmetic.fire(v, self.theta, KEY_MOST)[0]
        reads, after = self.reads(counts, labels)
        weight = np.stack([np.concatenate([np.zeros_like(after[:1]), after[:-1]])] * phase)
        weight[-1] = after
        logits = at_the_end(reads, phase)
        return {
            "keys.v": np.stack([v] * phase),
            "keys.spikes": at_the_end(2 * counts, phase),
            "labels.spikes": at_the_end(self._values(labels) * self.config.timesteps, phase),
            "attention.weight": weight,
            "logits.u": logits,
            "logits.x": logits,
        }


def in_line(x: Integers) -> Integers:
    """Pictures (..., channel, row, column) as Lava's lines of neurons (..., n)."""
    return x.swapaxes(-1, -3).reshape(*x.shape[:-3], -1)
