"""What every spiking attention has around its core: codes, synapses, neurons, and the interface.

    x -> encode -> c_attn -> query, key, value | core: counts in, mean counts out | merged -> c_proj

An attention *kind* is a subclass in a file of its own that fills in the core, the part between the
bars. Everything before and after it is the same for all kinds. Where positions are rotary, the
membranes of query and key neurons are turned before they fire (`rotary.py`). Where several query
heads share keys and values, their query neurons have the same thresholds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from neurtransformer.codes import MEAN_BITS, RECIPROCALS
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code
from neurtransformer.spiking.neuron import CodingNeuron, Keeping, SpikeLinear, lasting
from neurtransformer.spiking.rotary import Rotation, rotate

State = tuple[Tensor, ...]
"""What a core keeps between tokens; the first dimension of every tensor is the batch."""


class LeftOut(NamedTuple):
    """Neurons of a block without synapses, which need not be there: of query, key and value those
    to which none leads, of the merged heads those from which none does."""

    query: int
    key: int
    value: int
    merged: int


class QueryNeuron(CodingNeuron):
    """Query neurons (kv_heads x shared x dim channels, in this order), where `shared` heads read
    the same keys. Those have one threshold per channel of a key, (kv_heads * dim,)."""

    def __init__(
        self, channels: int, kv_heads: int, shared: int, code: Code, *, signed: bool
    ) -> None:
        super().__init__(
            channels // shared,
            code.timesteps,
            signed=signed,
            coding=code.coding,
            digits=code.digits,
        )
        self.kv_heads, self.shared = kv_heads, shared

    def spread(self, x: Tensor) -> Tensor:
        if self.shared == 1:
            return x
        return x.view(self.kv_heads, 1, -1).expand(-1, self.shared, -1).flatten()

    def samples(self, x: Tensor) -> Tensor:
        if self.shared == 1:
            return x
        heads = x.unflatten(-1, (self.kv_heads, self.shared, -1)).transpose(1, 2)
        return heads.flatten(2).flatten(0, 1)


class SpikingSelfAttention(Keeping, ABC):
    """The dense attention with softmax replaced by a core of spiking neurons.

    `c_attn` and `c_proj` keep GPT-2's names; `c_attn` has the rows of all queries, then keys, then
    values, each head by head. code: of the inputs and of the merged heads.

    innate: whether a token stands before every text (`spiking/innate.py`). `first_key` and
    `first_value` are what its key and value neurons would integrate, before they fire; they are
    synapses from the start.
    """

    kind: ClassVar[str]
    signed: ClassVar[tuple[bool, bool, bool]] = (True, True, True)
    """Whether the populations of query, key and value are signed."""

    rooms: ClassVar[Mapping[str, float]] = {}
    """Thresholds of layers of neurons over those of least coding error, where not 1."""

    turns: ClassVar[bool] = False
    """Whether queries, keys and values may be written in another basis: see `sparing.py`."""

    def __init__(self, sizes: Sizes, code: Code, *, innate: bool = False) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.kv_heads = sizes.heads, sizes.kv_heads
        self.shared = sizes.heads // sizes.kv_heads
        self.head_dim = width // sizes.heads
        self.qkv = qkv = self.qkv_code(code)
        timesteps, coding, digits = code
        self.encode = CodingNeuron(
            width, timesteps, signed=True, coding=coding, digits=digits, analogue=True
        )
        self.rows = self.sizes(width, sizes.kv_width)
        self.c_attn = SpikeLinear(width, sum(self.rows), code.most, coding)
        queries, keys, values = self.rows
        self.query = QueryNeuron(queries, self.kv_heads, self.shared, qkv, signed=self.signed[0])
        self.key, self.value = (
            CodingNeuron(size, qkv.timesteps, signed=signed, coding=qkv.coding, digits=qkv.digits)
            for size, signed in zip((keys, values), self.signed[1:], strict=True)
        )
        self.merged = CodingNeuron(width, timesteps, signed=True, coding=coding, digits=digits)
        self.c_proj = SpikeLinear(width, width, code.most, coding)
        self.first_key: nn.Parameter | None = None
        self.first_value: nn.Parameter | None = None
        if innate:
            self.first_key = nn.Parameter(torch.zeros(keys))
            self.first_value = nn.Parameter(torch.zeros(values))

    # --- what a kind fills in ---

    @staticmethod
    def qkv_code(code: Code) -> Code:
        """The code of queries, keys and values, where inputs and merged heads have `code`."""
        return code

    @staticmethod
    def sizes(width: int, kv_width: int) -> tuple[int, int, int]:
        """How many query, key and value neurons a block has that is `width` wide, and whose keys
        and values are `kv_width`."""
        return width, kv_width, kv_width

    @staticmethod
    def arrange(rows: Tensor, sizes: Sizes) -> Tensor:
        """The dense rows of queries, keys and values, weights (rows, in) or biases (rows,), to
        rows of ours."""
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

    def turn_keys(self, basis: Tensor, mean: Tensor) -> None:
        """Write the queries of each head in `basis` (kv_heads, dim, dim), and keys, less their mean
        (kv_heads * dim,), so that the attention stays the same. Kinds that turn have it."""
        raise NotImplementedError

    def turn_values(self, basis: Tensor) -> None:
        """The same for values and merged heads."""
        raise NotImplementedError

    def leave_out_keys(self, channels: Tensor) -> None:
        """Leave `channels`, bool (kv_heads * dim,), of queries and keys out for good: all their
        synapses are 0, and stay so in training. Kinds that turn have it."""
        raise NotImplementedError

    def leave_out_values(self, channels: Tensor) -> None:
        """The same for values and merged heads."""
        raise NotImplementedError

    def even_gains(self, power: Tensor) -> None:
        """Lower thresholds of keys, where products of query and key have too unlike values for the
        core. power: (kv_heads * dim,), how much a channel matters. Kinds that turn have it."""
        raise NotImplementedError

    @abstractmethod
    def new_state(self, batch: int) -> State:
        """The state before the first token: empty, but for the innate one."""

    @abstractmethod
    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The effective attention weights (batch, heads, i, j) of counts (batch, heads or kv_heads,
        length, channels), before they are divided by their sum. Of the innate token first."""

    @abstractmethod
    def parallel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The core on all tokens at once, differentiable, for training and calibration: counts
        (batch, heads or kv_heads, length, channels) to mean value counts (batch, heads, length,
        head_dim).

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

        query, key, value: counts (batch, heads or kv_heads, length, channels), or with `steps`
        spikes (T, batch, heads, length, channels). mask: (batch, length), 0 for a token that is
        padding and must not be written. Returns mean value counts (batch, heads, length, head_dim)
        and the state after the last token.
        """

    # --- what all kinds share ---

    @property
    def left_out(self) -> LeftOut:
        """How many neurons were left out."""
        rows = (self.c_attn.weight != 0).any(1) | (self.c_attn.bias != 0)
        parts = *rows.split(self.rows), (self.c_proj.weight != 0).any(0)
        return LeftOut(*(int((~part).sum()) for part in parts))

    def make_room(self, name: str) -> None:
        """Raise the thresholds of the neurons called `name` above those of least error."""
        with torch.no_grad():
            getattr(self, name).threshold.mul_(self.rooms.get(name, 1.0))

    def split_heads(self, spikes: Tensor, heads: int) -> Tensor:
        """(..., length, channels) to (..., heads, length, channels / heads)."""
        return spikes.unflatten(-1, (heads, -1)).transpose(-2, -3)

    def membranes(
        self, spikes: Tensor, steps: bool, turned: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the neurons of query, key and value integrate, each (batch, length, channels).

        spikes: of the inputs. turned: the angles of rotary positions.
        """
        membrane = self.c_attn(spikes, self.encode.spike_value, steps)
        query, key, value = membrane.split(self.rows, dim=-1)
        return rotate(query, turned), rotate(key, turned), value

    def code(
        self, x: Tensor, steps: bool = False, turned: Rotation | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, length, width) to the spikes of query, key and value, heads split."""
        query, key, value = self.membranes(self.encode(x, steps), steps, turned)
        return (
            self.split_heads(self.query(query, steps), self.heads),
            self.split_heads(self.key(key, steps), self.kv_heads),
            self.split_heads(self.value(value, steps), self.kv_heads),
        )

    def merge(self, mean: Tensor) -> Tensor:
        """Mean value counts (batch, heads, length, head_dim) to values (batch, length, width)."""
        worth = self.value.spike_value.view(self.kv_heads, 1, -1).expand(-1, self.shared, -1)
        return mean.transpose(1, 2).flatten(-2) * worth.flatten()

    def forward(
        self,
        x: Tensor,
        steps: bool = False,
        state: State | None = None,
        mask: Tensor | None = None,
        turned: Rotation | None = None,
    ) -> tuple[Tensor, State | None]:
        """x: (batch, length, width), the normalised residual stream.

        mask: (batch, length), 0 where a token is padding and must not be written. turned: the
        angles of rotary positions, None where there are none.
        Returns what is added to the residual stream, and the state after the last token (None in
        training mode).
        """
        query, key, value = self.code(x, steps, turned)
        if self.training and state is None:
            mean = self.parallel(query, key, value, mask)
        else:
            state = self.new_state(x.shape[0]) if state is None else state
            mean, state = self.mix(query, key, value, steps, state, mask)
        spikes = self.merged(self.merge(mean), steps)
        return self.c_proj(spikes, self.merged.spike_value, steps), state


def decoded(spikes: Tensor, code: Code) -> Tensor:
    """Counts (...) from the spikes (T, ...) that send them: their sum, or the number whose digits
    they are."""
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
    divisor = read[..., -1:] + 1
    # a float32 is made of sign, exponent and digits, the first of which a number of 1 or more lacks
    bits_of = divisor.view(torch.int32)
    index = (bits_of >> 16) & 0x7F
    # 2^(15 - the bits of the divisor)
    unit = ((127 + 141) * 2**23 - (bits_of & 0x7F800000)).view(torch.float32)
    limit = float(2**15 - 1)
    scaled = (read[..., :-1] * unit).add_(0.5).floor_().clamp_(-limit, limit)
    product = scaled.mul_(reciprocals(read.device)[index])
    return product.mul_(2.0 ** (MEAN_BITS - 22 + bits)).add_(0.5).floor_()


@cache
def reciprocals(device: torch.device) -> Tensor:
    """`RECIPROCALS` in float32."""
    with lasting():
        return torch.tensor(RECIPROCALS, dtype=torch.float32, device=device)
