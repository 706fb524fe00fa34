"""One race that a person can read: who fires when, beside the softmax weights it stands for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.codes import EVEN, ODD
from neurtransformer.errors import UserError
from neurtransformer.families.base import family_of, tapped
from neurtransformer.spiking.attention.ttfs import RaceAttention
from neurtransformer.spiking.calibrate import softmax_weights
from neurtransformer.spiking.innate import after_first
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.text import prompt_ids

SENTENCE = "The captain gave the letter to the old sailor, and the sailor gave it to the captain"


@torch.no_grad()
def one_race(
    model: SpikingLanguageModel, dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
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
        ids = torch.tensor([prompt_ids(tokenizer, SENTENCE)], device=model.device)
    except UserError:  # a tokenizer of another language
        return None
    if ids.shape[1] > model.config.context:
        return None
    races: list[Tensor] = []

    first = model.config.first_token
    begins = first is not None and int(ids[0, 0]) != first

    def hear(attention: RaceAttention) -> Callable[..., None]:
        return lambda module, args, output: races.append(attention.apart(output)[:, -1])

    hooks = [a.neurons.register_forward_hook(hear(a)) for a in attentions]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    if begins:
        ids = after_first(ids, first)
    with tapped(dense) as taps:
        dense(ids)
    sizes, turned = (
        model.config.sizes,
        model.rotation(torch.arange(ids.shape[1], device=ids.device)[None]),
    )
    blocks = family_of(dense).blocks(dense)
    softmax = torch.stack(
        [
            softmax_weights(block, tap["attn_in"], sizes, turned)[0, :, -1]
            for block, tap in zip(blocks, taps, strict=True)
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
