"""The one sentence that the report shows a network at work on: race, raster and attention maps."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.errors import UserError
from neurtransformer.families.base import family_of, tapped
from neurtransformer.spiking.calibrate import softmax_weights
from neurtransformer.spiking.innate import after_first
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.text import prompt_ids

SENTENCE = "The captain gave the letter to the old sailor, and the sailor gave it to the captain"


@dataclass(frozen=True)
class Sentence:
    """ids: what the spiking network reads, (1, length). seen: the same for the dense model, with
    the innate first token in front, if there is one. tokens: the text of each of `seen`."""

    ids: Tensor
    seen: Tensor
    tokens: list[str]


def sentence(model: SpikingLanguageModel, tokenizer: PreTrainedTokenizerBase) -> Sentence | None:
    """SENTENCE for `model`; None where it does not fit, or the tokenizer is of another language."""
    try:
        numbers = prompt_ids(tokenizer, SENTENCE)
    except UserError:
        return None
    first = model.config.first_token
    if numbers[0] == first:  # which the spiking network has in any case
        numbers = numbers[1:]
    if not 3 <= len(numbers) <= model.config.context:
        return None
    ids = torch.tensor([numbers], device=model.device)
    seen = after_first(ids, first)
    return Sentence(ids, seen, [tokenizer.decode(token) for token in seen[0]])


def dense_weights(model: SpikingLanguageModel, dense: PreTrainedModel, read: Sentence) -> Tensor:
    """The softmax weights of every head of the dense model, (layers, heads, i, j)."""
    with tapped(dense) as taps:
        dense(read.seen)
    turned = model.rotation(torch.arange(read.seen.shape[1], device=read.seen.device)[None])
    return torch.stack(
        [
            softmax_weights(block, tap["attn_in"], model.config.sizes, turned)[0]
            for block, tap in zip(family_of(dense).blocks(dense), taps, strict=True)
        ]
    )


def looking_back(weights: Tensor) -> Tensor:
    """How much the last token attends to others than the first, where heads rest, and the last two:
    weights (..., i, j) to (...)."""
    return weights[..., -1, 1:-2].sum(-1)
