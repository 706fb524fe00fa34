"""One race that a person can read: who fires when, beside the softmax weights it stands for."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from neurtransformer.codes import EVEN, ODD
from neurtransformer.errors import UserError
from neurtransformer.spiking.attention.ttfs import RaceAttention
from neurtransformer.spiking.calibrate import softmax_weights, tapped
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.text import prompt_ids

SENTENCE = "The captain gave the letter to the old sailor, and the sailor gave it to the captain"


@torch.no_grad()
def one_race(
    model: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """The race that the last token of a sentence starts, in the head that looks back the most.

    Returns `layer`, `head`, `tokens` (text of each), `step` (in which the neuron of each token
    fires, from the first spike on; None if it does not), `share` (of the race) and `softmax` (of
    the dense model); None for a model without races, or one that the sentence does not fit.
    """
    attentions = [block.attn for block in model.blocks if isinstance(block.attn, RaceAttention)]
    if not attentions:
        return None
    try:
        ids = torch.tensor([prompt_ids(tokenizer, SENTENCE)])
    except UserError:  # a tokenizer of another language
        return None
    if ids.shape[1] > model.config.n_positions:
        return None
    races: list[Tensor] = []

    def hear(module: nn.Module, args: Any, output: Tensor) -> None:
        races.append(output[0, :, -1])

    hooks = [attention.neurons.register_forward_hook(hear) for attention in attentions]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    with tapped(dense) as taps:
        dense(ids)
    softmax = torch.stack(
        [
            softmax_weights(block, tap["attn_in"])[0, :, -1]
            for block, tap in zip(dense.transformer.h, taps, strict=True)
        ]
    )
    # neither the first token, where heads rest, nor the last two
    layer, head = divmod(int(softmax[..., 1:-2].sum(-1).argmax()), softmax.shape[1])
    weights = races[layer][head]
    # an odd level of an octave is the step before its even one
    octaves, odd = (weights.clamp_min(1) / EVEN).log2().floor(), (weights % ODD == 0).float()
    order = 2 * octaves + odd
    steps = order.max() - order
    return {
        "layer": layer,
        "head": head,
        "tokens": [tokenizer.decode(token) for token in ids[0]],
        "step": [
            int(step) if weight > 0 else None for step, weight in zip(steps, weights, strict=True)
        ],
        "share": (weights / weights.sum()).tolist(),
        "softmax": softmax[layer, head].tolist(),
    }
