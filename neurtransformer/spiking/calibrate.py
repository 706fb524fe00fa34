"""Calibration: thresholds, centres and cores, measured on what the dense model does with text.

Nothing here is trained. `calibrate` watches the dense model and fits each neuron layer to
what it will have to code, and the core of each attention to the softmax heads that it replaces
(`fit` of its kind).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.families.base import DenseBlock, Sizes, Taps, family_of, tapped
from neurtransformer.recipe import Calibration
from neurtransformer.spiking import coding
from neurtransformer.spiking.attention.base import SpikingSelfAttention
from neurtransformer.spiking.feedforward import SpikingFeedForward
from neurtransformer.spiking.innate import after_first
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear, snapping_anew
from neurtransformer.spiking.rotary import Rotation, rotate
from neurtransformer.text import load_blocks, write_text

RATIOS = (*(n / 24 for n in range(1, 25)), *(1.15**n for n in range(1, 18)))
"""Thresholds that are tried, over the largest distance seen."""

TAIL = 4.0
"""The exponent of the tail that calibration expects beyond what it has seen, found on SmolLM2-135M
and gpt2-nano (docs/LOG.md): 3 gives away levels, 6 clips."""

FIT_SAMPLES = 2048
FIT_CHANNELS = 128
"""Thresholds that are fitted together: samples of so many channels fit a processor's cache."""

UNSEEN_TOKENS = 1024
"""What a fresh conversion is measured on."""

PROFILE_TOKENS = 256


def calibration_text(
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    recipe: Calibration,
) -> Tensor:
    """Blocks (n, length) int64 to calibrate on: of `text`, or what `dense` writes itself.

    A model's own text is the kind of text that it was trained on, whatever that was, and costs no
    data; CPython's text instead raised the loss on novels and textbooks (docs/LOG.md).
    """
    # an innate first token takes a position
    length = min(recipe.block, dense.config.max_position_embeddings - 1)
    if text is None:
        return write_text(dense, max(1, recipe.tokens // length), length, seed=0)
    return load_blocks(text, tokenizer, length, split="train", limit_tokens=recipe.tokens)


def unseen_text(
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    seen: Tensor,
) -> Tensor | None:
    """About UNSEEN_TOKENS tokens (n, length) that a calibration on blocks `seen` has not used: what
    follows them in `text`, or what `dense` writes with another seed. None if there is no more."""
    count, length = seen.shape
    if text is None:
        return write_text(dense, max(1, UNSEEN_TOKENS // length), length, seed=1)
    limit = seen.numel() + max(UNSEEN_TOKENS, length)
    rest = load_blocks(text, tokenizer, length, split="train", limit_tokens=limit)[count:]
    return rest if len(rest) else None


def fit_threshold(
    x: Tensor,
    centers: Sequence[Tensor],
    most: int,
    *,
    signed: bool,
    counts: Callable[[Tensor], Tensor] | None = None,
    seen: int | None = None,
    tail: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Threshold and centre of least squared coding error for each channel.

    x: samples (n, channels). centers: candidates, each (channels,). The threshold is searched among
    fractions and multiples of the largest distance from the centre, the usual clipping search of
    post-training quantisation. counts: the code, from totals in thresholds, if it is not that of
    `coding.counts_from_total`. seen: how many tokens that largest distance is one of, n if None.
    tail: the exponent of what was not seen (`tail_exponent`), None for nothing beyond the samples.
    Returns two tensors (channels,).
    """
    counts = counts or (lambda z: coding.counts_from_total(z, most, signed))
    columns = x.split(FIT_CHANNELS, dim=1)
    candidates = zip(*(center.split(FIT_CHANNELS) for center in centers), strict=True)
    found = [
        _fit_columns(part.contiguous(), these, most, signed, counts, seen, tail)
        for part, these in zip(columns, candidates, strict=True)
    ]
    thresholds, chosen = zip(*found, strict=True)
    return torch.cat(thresholds), torch.cat(chosen)


def _fit_columns(
    x: Tensor,
    centers: Sequence[Tensor],
    most: int,
    signed: bool,
    counts: Callable[[Tensor], Tensor],
    seen: int | None,
    tail: float | None,
) -> tuple[Tensor, Tensor]:
    best, best_center = torch.ones_like(x[0]), centers[0]
    least = torch.full_like(x[0], float("inf"))
    for center in centers:
        target = x - center
        reach = target.abs() if signed else target.clamp_min(0)
        largest = reach.amax(0).clamp_min(1e-3)
        for ratio in RATIOS:
            spike_value = largest * (ratio / most)
            coded = counts(target / spike_value) * spike_value
            error = (coded - target).square_().mean(0)
            if tail is not None:
                error += largest.square() * unseen(ratio, tail) / (seen or len(x))
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, largest * ratio, best)
            best_center = torch.where(better, center, best_center)
    return best, best_center


def unseen(ratio: float, tail: float) -> float:
    """The squared error of clipping a value beyond the largest one seen, which is 1, at `ratio`.

    Of n samples of any distribution the next one is the largest with a chance of 1 / (n + 1). How
    much larger it is, is that of a tail ``P(x > s) = s^-tail``: the mean of ``(s - ratio)^2`` over
    it, for ratios above 1 where it exceeds them.
    """
    if ratio >= 1:
        return 2 * ratio ** (2 - tail) / ((tail - 1) * (tail - 2))
    beyond = 2 / ((tail - 1) * (tail - 2)) + 2 * (1 - ratio) / (tail - 1)
    return beyond + (1 - ratio) ** 2


def fit_neuron(
    neuron: CodingNeuron, x: Tensor, *, centred: bool, tail: float | None = TAIL
) -> None:
    """Set threshold and centre of `neuron` for driving values x (..., channels).

    centred: signed neurons code distances from the mean, others those from a rest level at or below
    it; else from zero. tail: see `fit_threshold`.
    """
    with torch.no_grad():
        x = neuron.samples(x.flatten(0, -2))
        if neuron.activation is not None:
            x = neuron.activation(x)
        seen = len(x)
        # the extremes come from all samples, what is between them from some
        extremes = torch.stack([x.amax(0), x.amin(0)])
        mean, low = x.mean(0), extremes[1]
        x = torch.cat([x[:: -(-seen // FIT_SAMPLES)], extremes])
        centers = [torch.zeros_like(mean)]
        if centred:
            shares = (0.0,) if neuron.signed else (0.0, 0.5, 1.0)
            centers = [torch.lerp(mean, low, share) for share in shares]
        threshold, center = fit_threshold(
            x,
            centers,
            neuron.most,
            signed=neuron.signed,
            counts=neuron.counts,
            seen=seen,
            tail=tail,
        )
        neuron.threshold.copy_(threshold)
        neuron.center.copy_(center)


def softmax_weights(
    block: DenseBlock, attn_in: Tensor, sizes: Sizes, turned: Rotation | None
) -> Tensor:
    """The softmax attention of a dense block on its normalised input: (batch, heads, i, j)."""
    rows = block.qkv()
    query, key, _ = F.linear(attn_in, *rows).split(
        (sizes.width, sizes.kv_width, sizes.kv_width), dim=-1
    )
    query = rotate(query, turned).unflatten(-1, (sizes.heads, -1)).transpose(1, 2)
    key = rotate(key, turned).unflatten(-1, (sizes.kv_heads, -1)).transpose(1, 2)
    key = key.repeat_interleave(sizes.heads // sizes.kv_heads, dim=1)
    scores = query @ key.transpose(-1, -2) * block.scaling
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


def absorb_center(neuron: CodingNeuron, synapse: SpikeLinear) -> None:
    """Let the bias of `synapse` carry the centre of the code in front of it."""
    synapse.bias.add_(synapse.weight @ neuron.center)


@dataclass(frozen=True)
class Basis:
    """What a calibration rests on beside activations: the geometry, the angles of rotary positions,
    and which tokens (batch, length) count: not those that are like the innate one, whose
    activations would be far beyond all others."""

    sizes: Sizes
    turned: Rotation | None
    counted: Tensor


def calibrate_attention(
    attention: SpikingSelfAttention, block: DenseBlock, attn_in: Tensor, on: Basis
) -> None:
    """Fit one SSA to the softmax attention it replaces. Its weights are already carried over."""
    head, turned = attn_in[:, :PROFILE_TOKENS], on.turned
    if turned is not None:
        turned = turned[0][:, :PROFILE_TOKENS], turned[1][:, :PROFILE_TOKENS]
    attention.fit(lambda: softmax_weights(block, head, on.sizes, turned), block.scaling)
    fit_neuron(attention.encode, attn_in[on.counted], centred=True)
    attention.make_room("encode")
    absorb_center(attention.encode, attention.c_attn)
    parts = attention.membranes(attention.encode(attn_in), False, on.turned)
    for name, x in zip(("query", "key", "value"), parts, strict=True):
        # a key becomes a synapse of a few bits: room for what was not seen would cost it most
        tail = None if name == "key" else TAIL
        fit_neuron(getattr(attention, name), x[on.counted], centred=False, tail=tail)
        attention.make_room(name)
    mean = attention.parallel(*attention.code(attn_in, turned=on.turned))
    fit_neuron(attention.merged, attention.merge(mean)[on.counted], centred=True)
    attention.make_room("merged")
    absorb_center(attention.merged, attention.c_proj)


def calibrate_feedforward(mlp: SpikingFeedForward, mlp_in: Tensor, on: Basis) -> None:
    """Fit the two neuron layers of one feed-forward block."""
    mlp_in = mlp_in[on.counted]
    fit_neuron(mlp.encode, mlp_in, centred=True)
    absorb_center(mlp.encode, mlp.c_fc)
    membrane = mlp.c_fc(mlp.encode(mlp_in), mlp.encode.spike_value)
    fit_neuron(mlp.hidden, membrane, centred=True)
    absorb_center(mlp.hidden, mlp.c_proj)


@torch.no_grad()
def calibrate(
    model: SpikingLanguageModel,
    dense: PreTrainedModel,
    tokens: Tensor,
    on_block: Callable[[], None] = lambda: None,
) -> None:
    """Fit thresholds, centres and attention cores of `model` to `dense` on tokens (batch, length).

    on_block: called when a block is done.
    """
    first = model.config.first_token
    begin = 0 if first is None else 1
    positions = torch.arange(begin, begin + tokens.shape[1], device=tokens.device)[None]
    on = Basis(model.config.sizes, model.rotation(positions), tokens != first)
    dense_blocks = family_of(dense).blocks(dense)

    def fit(number: int, tap: Taps) -> None:
        spiking = model.blocks[number]
        calibrate_attention(spiking.attn, dense_blocks[number], tap["attn_in"][:, begin:], on)
        calibrate_feedforward(spiking.mlp, tap["mlp_in"][:, begin:], on)
        on_block()

    with tapped(dense, fit), snapping_anew(model):
        dense(after_first(tokens, first), logits_to_keep=1, use_cache=False)
