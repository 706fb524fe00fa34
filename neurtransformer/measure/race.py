"""One race that a person can read: who fires when, beside the softmax weights it stands for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.codes import EVEN, ODD
from neurtransformer.measure.sentence import dense_weights, looking_back, sentence
from neurtransformer.spiking.attention.ttfs import RaceAttention
from neurtransformer.spiking.model import SpikingLanguageModel


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
    read = sentence(model, tokenizer) if attentions else None
    if read is None:
        return None
    races: list[Tensor] = []

    def hear(attention: RaceAttention) -> Callable[..., None]:
        return lambda module, args, output: races.append(attention.apart(output)[:, -1])

    hooks = [a.neurons.register_forward_hook(hear(a)) for a in attentions]
    try:
        model(read.ids)
    finally:
        for hook in hooks:
            hook.remove()
    softmax = dense_weights(model, dense, read)
    layer, head = divmod(int(looking_back(softmax).argmax()), softmax.shape[1])
    weights = races[layer][head]
    # an odd level of an octave is the step before its even one
    octaves, odd = (weights.clamp_min(1) / EVEN).log2().floor(), (weights % ODD == 0).float()
    order = 2 * octaves + odd
    steps = order.max() - order
    return {
        "layer": layer,
        "head": head,
        "tokens": read.tokens,
        "step": [
            int(step) if weight > 0 else None for step, weight in zip(steps, weights, strict=True)
        ],
        "share": (weights / weights.sum()).tolist(),
        "softmax": softmax[layer, head, -1].tolist(),
    }
