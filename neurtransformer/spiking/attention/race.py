"""The race of token neurons as pure functions; what it is stands in `ttfs.py`."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neurtransformer.codes import (
    COARSE,
    END_BITS,
    EVEN,
    FINE_STEPS,
    KEY_LIMIT,
    ODD,
    REACH,
    gain_shift,
)

TILE, TILE_ROWS = 2**18, 128
"""Scores, and tokens that ask, that are computed together."""


def key_synapses(key: Tensor, gain: Tensor, most: int) -> Tensor:
    """Key counts (batch, heads, length, dim) to synapses, integers of at most KEY_LIMIT.

    gain: integers (heads, dim). The gradient passes straight through the rounding.
    """
    exact = key * gain[:, None, :] * 2.0 ** -gain_shift(most)
    return rounded(exact).clamp(-KEY_LIMIT, KEY_LIMIT)


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
    Returns spikes (steps, ..., heads, i, j) and whether the race of a row still runs in a step,
    (steps, ..., heads, i, 1), both bool. There are as many steps as the longest race takes, at most
    FINE_STEPS.
    """
    # whole numbers, for thresholds of wide levels need more than the 24 bits of a float32
    level = width.int()[:, None].expand(score.shape[:-1])[..., None]
    membrane = (score.int() + level // 2).clamp_(-REACH * level, REACH * level - 1)
    membrane.masked_fill_(~there, -(2**31))
    # in the coarse descent some neuron reaches the threshold when the highest membrane does
    highest = membrane.amax(-1, keepdim=True)
    base = torch.full_like(level, -REACH)
    found = torch.zeros_like(level, dtype=torch.bool)
    for start in range(REACH - COARSE, -REACH - 1, -COARSE):
        reached = (highest >= start * level) & ~found
        base = torch.where(reached, start, base)
        found = found | reached
    threshold = (base + COARSE) * level
    before = torch.zeros_like(membrane, dtype=torch.bool)
    sent = torch.zeros_like(level, dtype=score.dtype)
    spikes, runs = [], []
    for step in range(FINE_STEPS):
        running = (sent < 2.0**END_BITS) & found
        if not bool(running.any()):
            break
        threshold = torch.where(running, threshold - level, threshold)
        # a neuron fires once, when the threshold has fallen to its membrane
        reached = membrane >= threshold
        fired = reached ^ before
        before = reached
        heard = heard_in(step, sent, fired.sum(-1, keepdim=True).to(sent.dtype))
        sent = torch.where(running, heard, sent)
        spikes.append(fired)
        runs.append(running)
    if not spikes:
        return before[None][:0], found[None][:0]
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
        heard = fired.to(value.dtype) @ value
        read = torch.where(runs, heard_in(step, read, heard), read)
    return read


class Race(torch.autograd.Function):
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


def rounded(x: Tensor) -> Tensor:
    """``floor(x + 1/2)``, with the gradient of x."""
    if not torch.is_grad_enabled():
        return (x + 0.5).floor_()
    return x + (torch.floor(x + 0.5) - x).detach()


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
    every = torch.ones(asking, past, dtype=torch.bool, device=device)
    return every if asking == 1 else every.tril_(past - asking)
