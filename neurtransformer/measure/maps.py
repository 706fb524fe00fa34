"""Attention maps before and after conversion: softmax weights beside those of the spiking core."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.measure.sentence import dense_weights, looking_back, sentence
from neurtransformer.spiking.attention.base import SpikingSelfAttention
from neurtransformer.spiking.model import SpikingLanguageModel

HEADS = 2
"""How many heads are shown, each of another layer: those that look back the most."""


@torch.no_grad()
def attention_maps(
    model: SpikingLanguageModel, dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """The attention weights of some heads on the sentence.

    Returns `tokens` (text of each) and `heads`, each with `layer`, `head`, and the weights of
    `dense` and `spiking`: for each asking token a text of whole per mille, one for each token up to
    itself. Where the first of the tokens is innate, it does not ask. None for a model that the
    sentence does not fit.
    """
    read = sentence(model, tokenizer)
    if read is None:
        return None
    after = _spiking_weights(model, read.ids)
    before = dense_weights(model, dense, read)[..., -read.ids.shape[1] :, :]
    least, heads = looking_back(before).max(-1)
    layers = sorted(least.topk(min(HEADS, len(least))).indices.tolist())
    return {
        "tokens": read.tokens,
        "heads": [
            {
                "layer": layer,
                "head": (head := int(heads[layer])),
                "dense": _rows(before[layer, head]),
                "spiking": _rows(after[layer][head]),
            }
            for layer in layers
        ],
    }


def _spiking_weights(model: SpikingLanguageModel, ids: Tensor) -> list[Tensor]:
    """Of each layer (heads, i, j), rows of sum 1."""
    counts: dict[str, Tensor] = {}
    found: list[Tensor] = []

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: counts.update({name: output})

    def weigh(attention: SpikingSelfAttention, args: Any, output: Any) -> None:
        query = attention.split_heads(counts["query"], attention.heads)
        key = attention.split_heads(counts["key"], attention.kv_heads)
        weights = attention.weights(query, key)[0].float()
        found.append(weights / weights.sum(-1, keepdim=True).clamp_min(1e-9))

    hooks = []
    for block in model.blocks:
        hooks += [
            block.attn.query.register_forward_hook(keep("query")),
            block.attn.key.register_forward_hook(keep("key")),
            block.attn.register_forward_hook(weigh),
        ]
    try:
        model(ids, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _rows(weights: Tensor) -> list[str]:
    """Weights (i, j) as texts, without what lies behind the asking token."""
    innate = weights.shape[1] - weights.shape[0]
    return [
        " ".join(str(round(1000 * weight)) for weight in row[: innate + i + 1])
        for i, row in enumerate(weights.tolist())
    ]
