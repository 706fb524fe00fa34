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
COARSE levels a step until some neuron would fire; the fine race runs from there (`race_steps`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurtransformer.codes import (
    COARSE,
    END_BITS,
    EVEN,
    FINE_STEPS,
    GAIN_LIMIT,
    KEY_LIMIT,
    MEAN_BITS,
    ODD,
    REACH,
    STATE_BITS,
    gain_shift,
    level_bits,
)
from neurtransformer.errors import UserError
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code
from neurtransformer.spiking.attention.base import SpikingSelfAttention, State, decoded, normalise
from neurtransformer.spiking.coding import if_node

TILE, TILE_ROWS = 2**18, 128
"""Scores, and tokens that ask, that are computed together."""


def key_synapses(key: Tensor, gain: Tensor, most: int) -> Tensor:
    """Key counts (batch, heads, length, dim) to synapses, integers of at most KEY_LIMIT.

    gain: integers (heads, dim). The gradient passes straight through the rounding.
    """
    exact = key * gain[:, None, :] * 2.0 ** -gain_shift(most)
    return _rounded(exact).clamp(-KEY_LIMIT, KEY_LIMIT)


def levels_of(score: Tensor, width: Tensor) -> Tensor:
    """Scores (..., heads, i, j) to levels, integers in floats. width: of a level, (heads,).

    Exact: a float32 quotient of integers below 2^24 never rounds up to the next whole number.
    """
    score, width = score.detach(), width.detach()[:, None, None]
    return (score + torch.floor(width / 2)).div_(width).floor_().clamp_(-REACH, REACH - 1)


def race_weights(levels: Tensor, there: Tensor) -> Tensor:
    """What the spike of each token neuron counts when the race is over: EVEN or ODD times 2^n for
    one that fired n octaves before the end, 0 for one that has not fired. Their sum is d.

    levels: (..., i, j). there: bool that broadcasts to it, False where j is no token neuron or
    comes after i. A row without any token neuron is all 0. Returns float32, (..., i, j).
    """
    # a float32 is made of its octave, an exponent, and digits, the first of which stands for a half
    bits = levels.to(torch.int32).add_(2 * REACH).bitwise_left_shift_(22)
    weights = bits.view(torch.float32).mul_(there.float()).flatten(0, -2)
    total = weights.sum(-1)
    # the last octave in which all neurons together count enough: the race ends here or later
    octave = torch.frexp(total)[1] - 1 - END_BITS
    weights.mul_(torch.ldexp(torch.ones_like(total), -octave)[:, None])
    kept = F.threshold(weights, ODD - 0.5, 0.0)
    running = ((kept.sum(-1) < 2.0**END_BITS) & (total > 0)).nonzero().squeeze(-1)
    late, least = weights[running], ODD
    while len(running):
        if least == EVEN:
            late.mul_(2.0)
        least = EVEN + ODD - least
        rows = F.threshold(late, least - 0.5, 0.0)
        kept[running] = rows
        on = (rows.sum(-1) < 2.0**END_BITS).nonzero().squeeze(-1)
        running, late = running[on], late[on]
    return kept.view(levels.shape)


def race_steps(score: Tensor, width: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The race step by step: the spikes of the token neurons, and the steps in which they count.

    score: membranes (..., heads, i, j). width: (heads,). there: as in `race_weights`.
    The neurons are SpikingJelly's `IFNode`: that the threshold falls is the same as that a constant
    current of one level drives all membranes. Returns spikes (FINE_STEPS, ..., heads, i, j) and
    whether the race of a row still runs in a step, (FINE_STEPS, ..., heads, i, 1). Raises
    UserError without SpikingJelly.
    """
    # thresholds of wide levels need more than the 24 bits of a float32
    level = width.double()[:, None].expand(score.shape[:-1])[..., None]
    membrane = (score + torch.floor(level / 2)).clamp(-REACH * level, REACH * level - 1)
    membrane = membrane.masked_fill(~there, float("-inf"))
    base = torch.full_like(level, -REACH)
    found = torch.zeros_like(level, dtype=torch.bool)
    for start in range(REACH - COARSE, -REACH - 1, -COARSE):
        reached = (membrane >= start * level).any(-1, keepdim=True) & ~found
        base = torch.where(reached, base.new_tensor(float(start)), base)
        found = found | reached
    neuron = if_node(0.0, -1e30)
    neuron.v = membrane - (base + COARSE) * level
    current = level.expand_as(membrane)
    sent = torch.zeros_like(level)
    spikes, runs = [], []
    for step in range(FINE_STEPS):
        running = (sent < 2.0**END_BITS) & found
        fired = (neuron(current) * running).to(score.dtype)
        heard = heard_in(step, sent, fired.sum(-1, keepdim=True, dtype=sent.dtype))
        sent = torch.where(running, heard, sent)
        spikes.append(fired)
        runs.append(running)
    return torch.stack(spikes), torch.stack(runs)


def heard_in(step: int, read: Tensor, heard: Tensor) -> Tensor:
    """What a listener that holds `read` holds after step 0, 1, ... of the fine race."""
    return 2 * read + ODD * heard if step % 2 == 0 else read + EVEN * heard


def listen(spikes: Tensor, running: Tensor, value: Tensor) -> Tensor:
    """What the listeners hold when the race is over: [o, d], (..., heads, i, dim + 1).

    spikes, running: see `race_steps`. value: counts (..., heads, j, dim).
    """
    one = torch.ones_like(value[..., :1])
    value = torch.cat([value, one], dim=-1)
    read = value.new_zeros(*spikes.shape[1:-1], value.shape[-1])
    for step, (fired, runs) in enumerate(zip(spikes, running, strict=True)):
        read = torch.where(runs, heard_in(step, read, fired @ value), read)
    return read


class _Race(torch.autograd.Function):
    """Mean values of the race; backward that of a softmax in base 2 with the same weights."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, width: Tensor, value: Tensor, there: Tensor) -> Tensor:
        weights = race_weights(levels_of(score, width), there)
        shares = weights / weights.sum(-1, keepdim=True).clamp_min(1.0)
        ctx.save_for_backward(score, width, value, shares)
        return shares @ value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        score, width, value, shares = ctx.saved_tensors
        (grad,) = grads
        flow = shares * (grad @ value.transpose(-1, -2))
        flow = flow.addcmul_(shares, flow.sum(-1, keepdim=True), value=-1)
        flow = flow.mul_(math.log(2) / 2 / width[:, None, None])
        to_width = -torch.einsum("bhij,bhij->h", flow, score) / width
        return flow, to_width, shares.transpose(-1, -2) @ grad, None


def _rounded(x: Tensor) -> Tensor:
    """``floor(x + 1/2)``, with the gradient of x."""
    return x + (torch.floor(x + 0.5) - x).detach()


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

    def gains(self) -> tuple[Tensor, Tensor]:
        """The gains of the key channels (kv_heads, dim) and the width of a level (kv_heads,),
        integers in floats, with gradients to the thresholds they come from."""
        query = self.query.spike_value.view(self.kv_heads, self.shared, -1)[:, 0]
        worth = query * self.key.spike_value.view(self.kv_heads, -1)
        largest = worth.amax(-1, keepdim=True)
        gain = _rounded(worth / largest * GAIN_LIMIT)
        unit = largest.squeeze(-1) * self.scaling.float() * 2.0 ** gain_shift(self.query.most)
        return gain, _rounded(GAIN_LIMIT * math.log(2) / 2 / unit).clamp(
            1, 2 ** (STATE_BITS - 1) - 1
        )

    def first(self, batch: int, gain: Tensor) -> tuple[Tensor, Tensor] | None:
        """Input and output synapses of the innate token's neurons, (batch, kv_heads, 1, dim), if
        there is one. Its key was never sent by spikes: it is rounded once, to a synapse."""
        if self.first_key is None or self.first_value is None:
            return None
        key = self.first_key.float() / self.key.spike_value
        value = self.first_value.float() / self.value.spike_value
        value = _rounded(value).clamp(-self.value.most, self.value.most)
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
        return self.apart(_Race.apply(score, width, value, there))

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
        new = mask.bool() if mask is not None else torch.ones_like(key[:, 0, :, 0]).bool()
        written_keys = key_synapses(key, gain, self.key.most).to(torch.int8)
        state = (
            torch.cat([state[0], written_keys], dim=-2),
            torch.cat([state[1], value.to(self.value_type)], dim=-2),
            torch.cat([state[2], new.view(batch, length)], dim=-1),
        )
        # heads of all texts one after the other: (..., batch * kv_heads, shared, length, dim)
        query = query.unflatten(-3, (self.kv_heads, self.shared)).flatten(-5, -4)
        synapses, values = (part.flatten(0, 1).float() for part in state[:2])
        there = None if bool(state[2].all()) else state[2].repeat_interleave(self.kv_heads, 0)
        width = width.repeat(batch)
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


def tiles(heads: int, shared: int, length: int, past: int) -> Iterator[tuple[slice, slice, int]]:
    """Which heads of token neurons and which of the last `length` of `past` tokens to do together,
    and how many token neurons these see: in parts that stay in a processor's cache.

    shared: query heads that race on the same token neurons.
    """
    for begin in range(0, length, TILE_ROWS):
        end = min(begin + TILE_ROWS, length)
        seen = past - length + end
        group = max(1, TILE // (shared * (end - begin) * seen))
        for head in range(0, heads, group):
            yield slice(head, min(head + group, heads)), slice(begin, end), seen


def causal(asking: int, past: int, device: torch.device) -> Tensor:
    """Which token neurons were written before or at the token that asks: bool (i, j), for the last
    i of j tokens."""
    return torch.ones(asking, past, dtype=torch.bool, device=device).tril(past - asking)
