"""Calibration: thresholds, centres and cores, measured on what the dense model does with text.

Nothing here is trained. `tapped` watches the dense model; `calibrate` fits each neuron layer to
what it will have to code, and the core of each attention to the softmax heads that it replaces
(`fit` of its kind).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from neurtransformer.recipe import Calibration
from neurtransformer.spiking import coding
from neurtransformer.spiking.attention.base import SpikingSelfAttention
from neurtransformer.spiking.feedforward import SpikingFeedForward
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear
from neurtransformer.text import load_blocks, write_text

CLIP_RATIOS = 24
FIT_SAMPLES = 2048
PROFILE_TOKENS = 256
Taps = dict[str, Tensor]


def calibration_text(
    dense: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    recipe: Calibration,
) -> Tensor:
    """Blocks (n, length) int64 to calibrate on: of `text`, or what `dense` writes itself.

    A model's own text is the kind of text that it was trained on, whatever that was, and costs no
    data; CPython's text instead raised the loss on novels and textbooks (docs/LOG.md).
    """
    length = min(recipe.block, dense.config.n_positions)
    if text is None:
        return write_text(dense, max(1, recipe.tokens // length), length, seed=0)
    return load_blocks(text, tokenizer, length, split="train", limit_tokens=recipe.tokens)


def fit_threshold(
    x: Tensor, centers: Sequence[Tensor], most: int, *, signed: bool
) -> tuple[Tensor, Tensor]:
    """Threshold and centre of least squared coding error for each channel.

    x: samples (n, channels). centers: candidates, each (channels,). The threshold is searched among
    fractions of the largest distance from the centre, the usual clipping search of post-training
    quantisation. Returns two tensors (channels,).
    """
    best, best_center = torch.ones_like(x[0]), centers[0]
    least = torch.full_like(x[0], float("inf"))
    for center in centers:
        target = x - center
        reach = target.abs() if signed else target.clamp_min(0)
        largest = reach.amax(0).clamp_min(1e-3)
        for ratio in torch.linspace(1 / CLIP_RATIOS, 1, CLIP_RATIOS).tolist():
            spike_value = largest * (ratio / most)
            coded = coding.counts_from_total(target / spike_value, most, signed) * spike_value
            error = (coded - target).square_().sum(0)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, largest * ratio, best)
            best_center = torch.where(better, center, best_center)
    return best, best_center


def fit_neuron(neuron: CodingNeuron, x: Tensor, *, centred: bool) -> None:
    """Set threshold and centre of `neuron` for driving values x (..., channels).

    centred: signed neurons code distances from the mean, others those from a rest level at or below
    it; else from zero.
    """
    with torch.no_grad():
        x = x.flatten(0, -2)
        x = x[:: -(-len(x) // FIT_SAMPLES)]
        if neuron.activation is not None:
            x = neuron.activation(x)
        mean, low = x.mean(0), x.amin(0)
        centers = [torch.zeros_like(mean)]
        if centred:
            shares = (0.0,) if neuron.signed else (0.0, 0.5, 1.0)
            centers = [torch.lerp(mean, low, share) for share in shares]
        threshold, center = fit_threshold(x, centers, neuron.most, signed=neuron.signed)
        neuron.threshold.copy_(threshold)
        neuron.center.copy_(center)


@contextmanager
def tapped(dense: GPT2LMHeadModel) -> Iterator[list[Taps]]:
    """While open, every forward pass of `dense` leaves its activations here, one dict a block.

    Keys, all (batch, length, channels): `attn_in` and `mlp_in` (after LayerNorm), `merged` (heads
    joined, before c_proj), `attn_out`, `hidden` (after GELU).
    """
    taps: list[Taps] = [defaultdict(Tensor) for _ in dense.transformer.h]
    hooks = []

    def keep(store: Taps, name: str, inputs: bool) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            store[name] = args[0] if inputs else output

        return hook

    for store, block in zip(taps, cast("list[GPT2Block]", dense.transformer.h), strict=True):
        for module, name, inputs in (
            (block.attn.c_attn, "attn_in", True),
            (block.attn.c_proj, "merged", True),
            (block.attn.c_proj, "attn_out", False),
            (block.mlp.c_fc, "mlp_in", True),
            (block.mlp.c_proj, "hidden", True),
        ):
            hooks.append(module.register_forward_hook(keep(store, name, inputs)))
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def softmax_weights(block: GPT2Block, attn_in: Tensor) -> Tensor:
    """The softmax attention of a dense block on its normalised input: (batch, heads, i, j)."""
    attention = block.attn
    query, key, _ = attention.c_attn(attn_in).split(attention.split_size, dim=2)
    query, key = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key))
    scores = query @ key.transpose(-1, -2) * attention.scaling
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


def absorb_center(neuron: CodingNeuron, synapse: SpikeLinear) -> None:
    """Let the bias of `synapse` carry the centre of the code in front of it."""
    synapse.bias.add_(synapse.weight @ neuron.center)


def calibrate_attention(attention: SpikingSelfAttention, block: GPT2Block, taps: Taps) -> None:
    """Fit one SSA to the softmax attention it replaces. Its weights are already carried over."""
    head = taps["attn_in"][:, :PROFILE_TOKENS].contiguous()
    attention.fit(lambda: softmax_weights(block, head), float(block.attn.scaling))
    fit_neuron(attention.encode, taps["attn_in"], centred=True)
    attention.make_room("encode")
    absorb_center(attention.encode, attention.c_attn)
    membrane = attention.c_attn(attention.encode(taps["attn_in"]), attention.encode.spike_value)
    parts = membrane.split(attention.sizes(block.attn.split_size), dim=-1)
    for name, x in zip(("query", "key", "value"), parts, strict=True):
        fit_neuron(getattr(attention, name), x, centred=False)
        attention.make_room(name)
    mean = attention.parallel(*attention.code(taps["attn_in"]))
    fit_neuron(attention.merged, attention.merge(mean), centred=True)
    attention.make_room("merged")
    absorb_center(attention.merged, attention.c_proj)


def calibrate_feedforward(mlp: SpikingFeedForward, taps: Taps) -> None:
    """Fit the two neuron layers of one feed-forward block."""
    fit_neuron(mlp.encode, taps["mlp_in"], centred=True)
    absorb_center(mlp.encode, mlp.c_fc)
    membrane = mlp.c_fc(mlp.encode(taps["mlp_in"]), mlp.encode.spike_value)
    fit_neuron(mlp.hidden, membrane, centred=True)
    absorb_center(mlp.hidden, mlp.c_proj)


@torch.no_grad()
def calibrate(
    model: SpikingGPT2LMHeadModel,
    dense: GPT2LMHeadModel,
    tokens: Tensor,
    on_block: Callable[[], None] = lambda: None,
) -> None:
    """Fit thresholds, centres and attention cores of `model` to `dense` on tokens (batch, length).

    on_block: called when a block is done.
    """
    with tapped(dense) as taps:
        dense(tokens)
    dense_blocks = cast("list[GPT2Block]", dense.transformer.h)
    for spiking, block, tap in zip(model.blocks, dense_blocks, taps, strict=True):
        calibrate_attention(spiking.attn, block, tap)
        calibrate_feedforward(spiking.mlp, tap)
        tap.clear()
        on_block()
