"""Attention as a race: softmax in base 2 by time to first spike (`attention: ttfs`).

Every past token is a neuron. Its input synapses hold the token's key, its output synapses the
token's value, each written once, when the token arrives (a Hebbian rule gated to that neuron). A
query drives the membranes of all token neurons of its head to their scores, and then they race: a
threshold that they share falls by one level, half an octave, per time step, and each neuron fires
once, in the step in which the threshold reaches it. Two listeners gather the spikes. With m = 3 in
odd levels and m = 2 in even ones they

    double before an odd level,    o <- o + m * the sum of the values of those that fire,
                                   d <- d + m * their number

so that a spike that is 2 n steps late counts 2^-n, and one half an octave earlier 1.5 times as
much, for the square root of 2. ``o / d`` is softmax in base 2 of scores rounded to levels. The race
is over when d has reached 2^END_BITS: who has not fired by then would count less than
2^(2 - END_BITS) of the sum. There is no exponential, no maximum over tokens, and no division but
one reciprocal per head. Octaves are the exponent of softmax in base 2 (Softermax, arXiv 2103.09301;
power-of-two softmax in Sorbet, 2409.15298); a falling threshold decodes them in SpikedAttention
(NeurIPS 2024), which takes a row's maximum and divides.

In integers, with counts q, k, v of signed neurons (|count| <= M) and a gain G per key channel:

    key synapse    w_jc = clip(round(k_jc G_c / 2^gain_shift), +-KEY_LIMIT)
    score          S_ij = sum_c q_ic w_jc
    level          e_ij = clip(floor((S_ij + width / 2) / width), -REACH, REACH - 1)

G and the width of a level in units of the score follow from the thresholds of query and key
(`RaceAttention.gains`), so that ``S / width`` is the dense score in half octaves.

Where the race begins nobody has to know in advance: in a coarse descent the threshold falls by
COARSE levels a step until some neuron would fire; the fine race runs from there (`race_steps`). The
arithmetic is in `race.py`.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurtransformer.codes import (
    GAIN_LIMIT,
    KEY_LIMIT,
    MEAN_BITS,
    STATE_BITS,
    gain_shift,
    level_bits,
)
from neurtransformer.errors import UserError
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code
from neurtransformer.spiking import fused
from neurtransformer.spiking.attention.base import (
    SpikingSelfAttention,
    State,
    decoded,
    normalise,
    reciprocals,
)
from neurtransformer.spiking.attention.race import (
    Race,
    causal,
    key_synapses,
    levels_of,
    listen,
    race_steps,
    race_weights,
    rounded,
    tiles,
)
from neurtransformer.spiking.neuron import same

GAIN_SPAN = 2.0
"""How much more than usual a query's spike times a key's may be worth in a channel. What is usual
has a gain that much below GAIN_LIMIT, and key synapses that are as much coarser."""


class Gains(NamedTuple):
    """What gains of key channels and widths of levels follow from (spike values of queries and
    keys, and the scaling), and they themselves."""

    query: Tensor
    key: Tensor
    scaling: Tensor
    gain: Tensor
    width: Tensor


class TokenNeurons(nn.Module):
    """The token neurons of all heads, as a module that can be listened to."""

    def forward(
        self, score: Tensor, width: Tensor, there: Tensor, steps: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`race_weights` of the scores, or what `race_steps` gives."""
        if steps:
            return race_steps(score, width, there)
        return race_weights(levels_of(score, width), there)


class RaceAttention(SpikingSelfAttention):
    """SSA by a race of token neurons. Query, key and value are signed, as many as the dense ones.

    Where query heads share keys and values they race on the same token neurons, one after the
    other. scaling: what the dense scores q.k are multiplied by.
    """

    kind = "ttfs"
    # fewer spikes at the same divergence from the dense model: what least error clips, the tails,
    # matters more than it says (docs/LOG.md)
    rooms: ClassVar[Mapping[str, float]] = {"encode": 1.25, "query": 1.5, "merged": 1.5}
    turns = True
    scaling: Tensor

    def __init__(self, sizes: Sizes, code: Code, *, innate: bool = False) -> None:
        super().__init__(sizes, code, innate=innate)
        dim = sizes.width // sizes.heads
        # half of the state, so that half a level fits beside it
        if code.most * KEY_LIMIT * dim > 2 ** (STATE_BITS - 2):
            raise UserError(
                f"scores of heads {dim} wide do not fit {STATE_BITS} bits at T = {code.timesteps} "
                f"of {code.coding} coding: give fewer timesteps"
            )
        self.neurons = TokenNeurons()
        self.value_type = torch.int8 if self.value.most <= KEY_LIMIT else torch.int16
        self.register_buffer("scaling", torch.tensor(dim**-0.5))

    def fan_outs(self, past: float) -> tuple[float, float, float]:
        return past, 1.0, 1.0

    def fit(self, softmax: Callable[[], Tensor], scaling: float) -> None:
        self.scaling.fill_(scaling)

    @torch.no_grad()
    def turn_keys(self, basis: Tensor, mean: Tensor) -> None:
        back = torch.linalg.inv(basis).mT
        self.c_attn.bias[self.rows[0] : sum(self.rows[:2])].sub_(mean)
        self._turn_rows(0, basis)
        self._turn_rows(1, back)
        if self.first_key is not None:
            self.first_key.copy_(_turned(self.first_key - mean, back))

    @torch.no_grad()
    def turn_values(self, basis: Tensor) -> None:
        self._turn_rows(2, basis)
        if self.first_value is not None:
            self.first_value.copy_(_turned(self.first_value, basis))
        self.merged.center.copy_(_turned(self.merged.center, basis))
        self.c_proj.weight.copy_(_turned(self.c_proj.weight.mT, torch.linalg.inv(basis).mT).mT)

    def _turn_rows(self, part: int, basis: Tensor) -> None:
        """Of queries, keys or values."""
        rows = slice(sum(self.rows[:part]), sum(self.rows[: part + 1]))
        for x in (self.c_attn.weight, self.c_attn.bias):
            x[rows] = _turned(x[rows], basis)

    @torch.no_grad()
    def leave_out_keys(self, channels: Tensor) -> None:
        # without both, the product of query and key has no gradient to either
        self._silence(0, self.query.spread(channels))
        self._silence(1, channels)
        if self.first_key is not None:
            self.first_key[channels] = 0.0

    @torch.no_grad()
    def leave_out_values(self, channels: Tensor) -> None:
        self._silence(2, channels)
        if self.first_value is not None:
            self.first_value[channels] = 0.0
        heads = channels.view(self.kv_heads, 1, -1).expand(-1, self.shared, -1).flatten()
        # what the centre of the code comes to is in the output's bias, and stays
        self.merged.center[heads] = 0.0
        self.c_proj.weight[:, heads] = 0.0

    def _silence(self, part: int, channels: Tensor) -> None:
        """Of queries, keys or values."""
        rows = channels.nonzero().squeeze(-1) + sum(self.rows[:part])
        self.c_attn.weight[rows] = 0.0
        self.c_attn.bias[rows] = 0.0

    @torch.no_grad()
    def even_gains(self, power: Tensor) -> None:
        query, key = (neuron.threshold.view(self.kv_heads, -1) for neuron in (self.query, self.key))
        worth, power = query * key, power.view(self.kv_heads, -1)
        usual = (worth * power).sum(-1, keepdim=True) / power.sum(-1, keepdim=True)
        self.key.threshold.div_((worth / (GAIN_SPAN * usual)).clamp_min(1).flatten())

    def gains(self) -> tuple[Tensor, Tensor]:
        """The gains of the key channels (kv_heads, dim) and the width of a level (kv_heads,),
        integers in floats; in training mode with gradients to the thresholds they come from."""
        if self.training:
            return self._gains()
        query, key = self.query.spike_value, self.key.spike_value

        def valid(kept: Gains) -> bool:
            # in eval mode spike values of the same thresholds are the same tensors
            return kept.query is query and kept.key is key and same(kept.scaling, self.scaling)

        kept = self.keep(valid, lambda: Gains(query, key, self.scaling.clone(), *self._gains()))
        return kept.gain, kept.width

    def _gains(self) -> tuple[Tensor, Tensor]:
        query = self.query.spike_value.view(self.kv_heads, self.shared, -1)[:, 0]
        worth = query * self.key.spike_value.view(self.kv_heads, -1)
        largest = worth.amax(-1, keepdim=True)
        gain = rounded(worth / largest * GAIN_LIMIT)
        unit = largest.squeeze(-1) * self.scaling.float() * 2.0 ** gain_shift(self.query.most)
        return gain, rounded(GAIN_LIMIT * math.log(2) / 2 / unit).clamp(
            1, 2 ** (STATE_BITS - 1) - 1
        )

    def first(self, batch: int, gain: Tensor) -> tuple[Tensor, Tensor] | None:
        """Input and output synapses of the innate token's neurons, (batch, kv_heads, 1, dim), if
        there is one. Its key was never sent by spikes: it is rounded once, to a synapse."""
        if self.first_key is None or self.first_value is None:
            return None
        key = self.first_key.float() / self.key.spike_value
        value = self.first_value.float() / self.value.spike_value
        value = rounded(value).clamp(-self.value.most, self.value.most)
        key, value = (self.split_heads(x[None, None], self.kv_heads) for x in (key, value))
        synapses = key_synapses(key, gain, self.key.most)
        return synapses.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)

    def new_state(self, batch: int) -> State:
        """The token neurons that are there: the innate one, or none. Their key synapses and values
        (batch, kv_heads, 0 or 1, dim), integers of 8 or 16 bits, and whether they are no padding,
        (batch, 0 or 1)."""
        first = self.first(batch, self.gains()[0])
        written = self.scaling.new_ones(batch, 0 if first is None else 1, dtype=torch.bool)
        if first is None:
            dim = self.c_proj.weight.shape[0] // self.heads
            first = (self.scaling.new_zeros(batch, self.kv_heads, 0, dim),) * 2
        return first[0].to(torch.int8), first[1].to(self.value_type), written

    def together(self, query: Tensor) -> Tensor:
        """Queries (batch, heads, length, dim) of the heads that share token neurons, one after the
        other: (batch, kv_heads, shared * length, dim)."""
        return query.unflatten(-3, (self.kv_heads, self.shared)).flatten(-3, -2)

    def apart(self, x: Tensor) -> Tensor:
        """What belongs to queries that were brought together, (..., kv_heads, shared * length, n),
        to (..., heads, length, n)."""
        return x.unflatten(-2, (self.shared, -1)).flatten(-4, -3)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        gain, width = self.gains()
        synapses = key_synapses(key, gain, self.key.most)
        first = self.first(len(key), gain)
        if first is not None:
            synapses = torch.cat([first[0], synapses], dim=-2)
        score = self.together(query) @ synapses.transpose(-1, -2)
        there = self.visible(query.shape[-2], synapses.shape[-2], query.device)
        return self.apart(race_weights(levels_of(score, width), there))

    def visible(self, asking: int, past: int, device: torch.device) -> Tensor:
        """`causal` for the queries of all heads that share token neurons."""
        seen = causal(asking, past, device)
        return seen.repeat(self.shared, 1) if self.shared > 1 else seen

    def parallel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        gain, width = self.gains()
        synapses = key_synapses(key, gain, self.key.most)
        first = self.first(len(key), gain)
        if first is not None:
            synapses = torch.cat([first[0], synapses], dim=-2)
            value = torch.cat([first[1], value], dim=-2)
        score = self.together(query) @ synapses.transpose(-1, -2)
        there = self.visible(query.shape[-2], synapses.shape[-2], query.device)
        if mask is not None:
            written = F.pad(mask.bool(), (synapses.shape[-2] - mask.shape[-1], 0), value=True)
            there = there & written[:, None, None, :]
        return self.apart(Race.apply(score, width, value, there))

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        steps: bool,
        state: State,
        mask: Tensor | None,
    ) -> tuple[Tensor, State]:
        if steps:
            key, value = decoded(key, self.qkv), decoded(value, self.qkv)
        gain, width = self.gains()
        batch, _, length, dim = key.shape
        new = key.new_ones(batch, length, dtype=torch.bool) if mask is None else mask.bool()
        written_keys = key_synapses(key, gain, self.key.most).to(torch.int8)
        state = (
            torch.cat([state[0], written_keys], dim=-2),
            torch.cat([state[1], value.to(self.value_type)], dim=-2),
            torch.cat([state[2], new.view(batch, length)], dim=-1),
        )
        if length == 1 and not steps and self.fusible(query):
            mean = fused.races(
                query.view(batch, self.kv_heads, self.shared, dim),
                *state[:2],
                width,
                state[2],
                reciprocals(key.device),
                level_bits(self.value.most),
            )
            return mean.view(query.shape), state
        # heads of all texts one after the other: (..., batch * kv_heads, shared, length, dim)
        query = query.unflatten(-3, (self.kv_heads, self.shared)).flatten(-5, -4)
        synapses, values = (part.flatten(0, 1).float() for part in state[:2])
        there = None if bool(state[2].all()) else state[2].repeat_interleave(self.kv_heads, 0)
        width = width.repeat(batch) if batch > 1 else width
        mean = torch.empty_like(query if not steps else query[0])
        for heads, asking, seen in tiles(len(width), self.shared, length, synapses.shape[-2]):
            visible = self.visible(asking.stop - asking.start, seen, key.device)
            if there is not None:
                visible = visible & there[heads, None, :seen]
            mean[heads, :, asking] = self.answered(
                query[..., heads, :, asking, :].flatten(-3, -2),
                synapses[heads, :seen],
                values[heads, :seen],
                width[heads],
                visible,
                steps,
            ).unflatten(-2, (self.shared, -1))
        return mean.view(batch, self.heads, length, dim), state

    def fusible(self, query: Tensor) -> bool:
        """Whether compiled code can answer queries of one token. What listens to the token neurons
        wants their spikes, which it does not keep."""
        return (
            fused.usable(query)
            and query.shape[-1] <= fused.MOST_DIM
            and not self.neurons._forward_hooks
        )

    def answered(
        self,
        query: Tensor,
        synapses: Tensor,
        values: Tensor,
        width: Tensor,
        there: Tensor,
        steps: bool,
    ) -> Tensor:
        """Queries of some heads, counts (heads, i, dim) or spikes (T, heads, i, dim), to the mean
        values that their races end with, (heads, i, dim).

        synapses, values: of the token neurons, (heads, j, dim), float32. width: (heads,). there:
        see `race_weights`.
        """
        if steps:
            score = torch.zeros((), device=query.device)
            doubling = 2.0 if self.qkv.coding == "phase" else 1.0
            for spikes in query:
                score = score * doubling + spikes @ synapses.transpose(-1, -2)
        else:
            score = query @ synapses.transpose(-1, -2)
        raced = self.neurons(score, width, there, steps)
        if isinstance(raced, tuple):
            fired, running = raced
            read = listen(fired, running, values)
        else:
            read = torch.cat([raced @ values, raced.sum(-1, keepdim=True)], dim=-1)
        bits = level_bits(self.value.most)
        read[..., -1] *= 2.0**bits
        return normalise(read, bits).mul_(2.0**-MEAN_BITS)


def _turned(x: Tensor, basis: Tensor) -> Tensor:
    """Rows (heads * shared * dim, ...) head by head in another basis (heads, dim, dim)."""
    heads, dim = basis.shape[:2]
    rows = x.double().reshape(heads, -1, dim, *x.shape[1:])
    return torch.einsum("hcd,hsd...->hsc...", basis, rows).reshape(x.shape).to(x.dtype)
