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
from collections.abc import Callable, Mapping
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


def key_synapses(key: Tensor, gain: Tensor, most: int) -> Tensor:
    """Key counts (batch, heads, length, dim) to synapses, integers of at most KEY_LIMIT.

    gain: integers (heads, dim). The gradient passes straight through the rounding.
    """
    exact = key * gain[:, None, :] * 2.0 ** -gain_shift(most)
    return _rounded(exact).clamp(-KEY_LIMIT, KEY_LIMIT)


def levels_of(score: Tensor, width: Tensor) -> Tensor:
    """Scores (batch, heads, i, j) to levels, integers in floats. width: of a level, (heads,).

    Exact: a float32 quotient of integers below 2^24 never rounds up to the next whole number.
    """
    score, width = score.detach(), width.detach()[:, None, None]
    return (score + torch.floor(width / 2)).div_(width).floor_().clamp_(-REACH, REACH - 1)


def race_weights(levels: Tensor, there: Tensor) -> Tensor:
    """What the spike of each token neuron counts when the race is over: EVEN or ODD times 2^n for
    one that fired n octaves before the end, 0 for one that has not fired. Their sum is d.

    levels: (batch, heads, i, j). there: bool that broadcasts to it, False where j is no token
    neuron or comes after i. A row without any token neuron is all 0.
    """
    levels = levels.masked_fill(~there, float("-inf"))
    octaves = torch.floor(levels / 2)
    counts = (levels - 2 * octaves) * (ODD - EVEN) + EVEN
    # in units of the least weight that can count; nan, where no token neuron is, is no weight
    weights = torch.exp2(octaves - octaves.amax(-1, keepdim=True) + END_BITS).mul_(counts)
    weights = torch.where(weights >= EVEN, weights, weights.new_zeros(()))
    flat = weights.flatten(0, -2)
    # d after n octaves is at most the sum of all weights times 2^(n - END_BITS): a lower bound
    steps = 2 * (2 * END_BITS + 1 - torch.frexp(flat.sum(-1))[1]).clamp_min(0)
    kept = _in_time(flat, steps)
    running = ((kept.sum(-1) < 2.0**END_BITS) & flat.any(-1)).nonzero().squeeze(-1)
    while len(running):
        steps[running] += 1
        rows = _in_time(flat[running], steps[running])
        kept[running] = rows
        running = running[rows.sum(-1) < 2.0**END_BITS]
    return kept.view_as(weights)


def _in_time(weights: Tensor, steps: Tensor) -> Tensor:
    """What counts of weights (n, j) when the race of each row ends in step (n,), counted from the
    first of the octave in which the first neuron fires."""
    unit = torch.exp2((END_BITS - steps // 2).to(weights.dtype))[:, None]
    least = unit * torch.where(steps % 2 == 0, float(ODD), float(EVEN))[:, None]
    return torch.where(weights >= least, weights / unit, weights.new_zeros(()))


def race_steps(score: Tensor, width: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The race step by step: the spikes of the token neurons, and the steps in which they count.

    score: membranes (batch, heads, i, j). width: (heads,). there: as in `race_weights`.
    The neurons are SpikingJelly's `IFNode`: that the threshold falls is the same as that a constant
    current of one level drives all membranes. Returns spikes (FINE_STEPS, batch, heads, i, j) and
    whether the race of a row still runs in a step, (FINE_STEPS, batch, heads, i, 1). Raises
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
    """What the listeners hold when the race is over: [o, d], (batch, heads, i, dim + 1).

    spikes, running: see `race_steps`. value: counts (batch, heads, j, dim).
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
        (batch, kv_heads, 0 or 1, dim), float32, and whether they are no padding, (batch, 0 or 1).
        """
        first = self.first(batch, self.gains()[0])
        written = self.scaling.new_ones(batch, 0 if first is None else 1, dtype=torch.bool)
        if first is not None:
            return (*first, written)
        dim = self.c_proj.weight.shape[0] // self.heads
        empty = self.scaling.new_zeros(batch, self.kv_heads, 0, dim, dtype=torch.float32)
        return empty, empty, written

    def together(self, query: Tensor) -> Tensor:
        """Queries (..., heads, length, dim) of the heads that share token neurons, one after the
        other: (..., kv_heads, shared * length, dim)."""
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
        return self.apart(race_weights(levels_of(score, width), self.visible(query, synapses)))

    def visible(self, query: Tensor, synapses: Tensor) -> Tensor:
        """`causal` for the queries of all heads that share token neurons."""
        asking, past = query.shape[-2], synapses.shape[-2]
        return causal(asking, past, query.device).repeat(self.shared, 1)

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
        there = self.visible(query, synapses)
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
        batch, _, length, _ = key.shape
        new = mask.bool() if mask is not None else torch.ones_like(key[:, 0, :, 0]).bool()
        synapses = torch.cat([state[0], key_synapses(key, gain, self.key.most)], dim=-2)
        values = torch.cat([state[1], value], dim=-2)
        written = torch.cat([state[2], new.view(batch, length)], dim=-1)
        there = self.visible(query, synapses) & written[:, None, None, :]
        query = self.together(query)
        if steps:
            score = torch.zeros((), device=query.device)
            doubling = 2.0 if self.qkv.coding == "phase" else 1.0
            for spikes in query:
                score = score * doubling + spikes @ synapses.transpose(-1, -2)
        else:
            score = query @ synapses.transpose(-1, -2)
        raced = self.neurons(score, width, there, steps)
        if isinstance(raced, tuple):
            spikes, running = raced
            read = listen(spikes, running, values)
        else:
            read = torch.cat([raced @ values, raced.sum(-1, keepdim=True)], dim=-1)
        bits = level_bits(self.value.most)
        read[..., -1] *= 2.0**bits
        mean = self.apart(normalise(read, bits)) * 2.0**-MEAN_BITS
        return mean, (synapses, values, written)


def causal(asking: int, past: int, device: torch.device) -> Tensor:
    """Which token neurons were written before or at the token that asks: bool (i, j), for the last
    i of j tokens."""
    return torch.ones(asking, past, dtype=torch.bool, device=device).tril(past - asking)
