"""What every spiking attention has around its core: codes, synapses, neurons, and the interface.

    x -> encode -> c_attn -> query, key, value | core: counts in, mean counts out | merged -> c_proj

An attention *kind* is a subclass in a file of its own that fills in the core, the part between the
bars. Everything before and after it is the same for all kinds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from neurtransformer.codes import MEAN_BITS, RECIPROCALS
from neurtransformer.recipe import Code
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear

State = tuple[Tensor, ...]
"""What a core keeps between tokens; the first dimension of every tensor is the batch."""


class SpikingSelfAttention(nn.Module, ABC):
    """GPT-2's attention with softmax replaced by a core of spiking neurons.

    `c_attn` and `c_proj` keep their names; `c_attn` has the rows of all queries, then keys, then
    values, each head by head. code: of the inputs and of the merged heads.
    """

    kind: ClassVar[str]
    signed: ClassVar[tuple[bool, bool, bool]] = (True, True, True)
    """Whether the populations of query, key and value are signed."""

    rooms: ClassVar[Mapping[str, float]] = {}
    """Thresholds of layers of neurons over those of least coding error, where not 1."""

    def __init__(self, width: int, heads: int, code: Code) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = qkv = self.qkv_code(code)
        timesteps, coding = code
        self.encode = CodingNeuron(width, timesteps, signed=True, coding=coding, analogue=True)
        sizes = self.sizes(width)
        self.c_attn = SpikeLinear(width, sum(sizes), code.most, coding)
        self.query, self.key, self.value = (
            CodingNeuron(size, qkv.timesteps, signed=signed, coding=qkv.coding)
            for size, signed in zip(sizes, self.signed, strict=True)
        )
        self.merged = CodingNeuron(width, timesteps, signed=True, coding=coding)
        self.c_proj = SpikeLinear(width, width, code.most, coding)

    # --- what a kind fills in ---

    @staticmethod
    def qkv_code(code: Code) -> Code:
        """The code of queries, keys and values, where inputs and merged heads have `code`."""
        return code

    @staticmethod
    def sizes(width: int) -> tuple[int, int, int]:
        """How many query, key and value neurons a block has."""
        return width, width, width

    @staticmethod
    def arrange(rows: Tensor, heads: int) -> Tensor:
        """Rows of GPT-2's c_attn, weights (3 width, in) or biases (3 width,), to rows of ours."""
        return rows

    def fan_outs(self, past: float) -> tuple[float, float, float]:
        """How many synapses a spike of a query, key and value neuron reaches where `past` tokens
        can be seen."""
        return 1.0, 1.0, 1.0

    @abstractmethod
    def fit(self, softmax: Callable[[], Tensor], scaling: float) -> None:
        """Fit the core to the dense attention that it replaces, before thresholds are fitted.

        softmax: gives the dense weights (batch, heads, i, j). scaling: what the dense scores q.k
        are multiplied by.
        """

    @abstractmethod
    def new_state(self, batch: int) -> State:
        """The state before the first token."""

    @abstractmethod
    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The effective attention weights (batch, heads, i, j) of counts (batch, heads, length,
        channels), before they are divided by their sum."""

    @abstractmethod
    def parallel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The core on all tokens at once, differentiable, for training and calibration: counts
        (batch, heads, length, channels) to mean value counts (batch, heads, length, head_dim).

        mask: as in `mix`.
        """

    @abstractmethod
    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        steps: bool,
        state: State,
        mask: Tensor | None,
    ) -> tuple[Tensor, State]:
        """The core as the chip has it, on tokens that follow those in `state`.

        query, key, value: counts (batch, heads, length, channels), or with `steps` spikes
        (T, batch, heads, length, channels). mask: (batch, length), 0 for a token that is padding
        and must not be written. Returns mean value counts (batch, heads, length, head_dim) and the
        state after the last token.
        """

    # --- what all kinds share ---

    def make_room(self, name: str) -> None:
        """Raise the thresholds of the neurons called `name` above those of least error."""
        with torch.no_grad():
            getattr(self, name).threshold.mul_(self.rooms.get(name, 1.0))

    def split_heads(self, spikes: Tensor) -> Tensor:
        """(..., length, channels) to (..., heads, length, channels / heads)."""
        return spikes.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def code(self, x: Tensor, steps: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, length, width) to the spikes of query, key and value, heads split."""
        spikes = self.encode(x, steps)
        membrane = self.c_attn(spikes, self.encode.spike_value, steps)
        parts = membrane.split(self.sizes(x.shape[-1]), dim=-1)
        neurons = self.query, self.key, self.value
        query, key, value = (
            self.split_heads(neuron(part, steps))
            for neuron, part in zip(neurons, parts, strict=True)
        )
        return query, key, value

    def merge(self, mean: Tensor) -> Tensor:
        """Mean value counts (batch, heads, length, head_dim) to values (batch, length, width)."""
        return mean.transpose(1, 2).flatten(-2) * self.value.spike_value

    def forward(
        self,
        x: Tensor,
        steps: bool = False,
        state: State | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """x: (batch, length, width), the normalised residual stream.

        mask: (batch, length), 0 where a token is padding and must not be written.
        Returns what is added to the residual stream, and the state after the last token (None in
        training mode).
        """
        query, key, value = self.code(x, steps)
        if self.training and state is None:
            mean = self.parallel(query, key, value, mask)
        else:
            state = self.new_state(x.shape[0]) if state is None else state
            mean, state = self.mix(query, key, value, steps, state, mask)
        spikes = self.merged(self.merge(mean), steps)
        return self.c_proj(spikes, self.merged.spike_value, steps), state


def decoded(spikes: Tensor, code: Code) -> Tensor:
    """Counts (...) from the spikes (T, ...) that send them: their sum, or the number whose binary
    digits they are."""
    if code.coding == "rate":
        return spikes.sum(0)
    count = torch.zeros_like(spikes[0])
    for spike in spikes:
        count = 2 * count + spike
    return count


def normalise(read: Tensor, bits: int) -> Tensor:
    """Divide the values of a read by its last entry plus one, with shifts and one table look-up.

    read: (..., value + 1), integers; the last is the sum of the attention weights times 2^bits, the
    full scale of a value, so no other is larger. Returns mean value counts (..., value) as integers
    with MEAN_BITS fraction bits; every intermediate fits 24 bits. The reciprocal is `RECIPROCALS`
    at the leading 8 bits of the sum, right to 1/256.
    """
    mantissa, exponent = torch.frexp(read[..., -1:] + 1)
    index = torch.floor(mantissa * 256).long() - 128
    reciprocal = torch.tensor(RECIPROCALS, dtype=read.dtype, device=read.device)[index]
    limit = float(2**15 - 1)
    scaled = torch.floor(torch.ldexp(read[..., :-1], 15 - exponent) + 0.5)
    product = scaled.clamp_(-limit, limit) * reciprocal
    return torch.floor(product * 2.0 ** (MEAN_BITS - 22 + bits) + 0.5)
