"""The innate first token: what a language model takes for the beginning of every text.

The first token of a sequence is an attention sink: its activations are up to a thousand times those
of all others (Sun et al. 2024, arXiv 2402.17762), and no threshold fits both. So a converted
network begins with a fixed first token that is never coded. Its keys and values are computed once,
in floats, by the dense model, and are synapses from the start (PrefixQuant, arXiv 2410.05265, does
the like for quantised models). It takes position 0, and the first token of a text position 1.

A text that begins with that very token, as some tokenizers make it, means the same: the token
is passed over, and what the network answers to it is the dense model's own hidden state.
"""

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neurtransformer.families.base import family_of, tapped
from neurtransformer.spiking.model import SpikingLanguageModel


def first_token_of(dense: PreTrainedModel) -> int | None:
    """The token that begins a text of a dense model, else the one that ends one, else None."""
    for key in ("bos_token_id", "eos_token_id"):
        number = getattr(dense.generation_config, key)
        for token in number if isinstance(number, list) else [number]:
            if token is not None and 0 <= token < dense.config.vocab_size:
                return int(token)
    return None


@torch.no_grad()
def give_birth(model: SpikingLanguageModel, dense: PreTrainedModel) -> None:
    """Compute keys, values and hidden state of the innate token of `model`, if it has one."""
    if model.config.first_token is None:
        return
    token = torch.tensor([[model.config.first_token]], device=dense.device)
    with tapped(dense) as taps:
        output = dense(token, output_hidden_states=True, use_cache=False)
    model.first_hidden.copy_(output.hidden_states[-1][0, 0])
    sizes = model.config.sizes
    for block, theirs, tap in zip(model.blocks, family_of(dense).blocks(dense), taps, strict=True):
        rows = theirs.qkv()
        membrane = rows.weight @ tap["attn_in"][0, 0] + rows.bias
        _, key, value = block.attn.arrange(membrane, sizes).split(block.attn.rows)
        assert block.attn.first_key is not None and block.attn.first_value is not None
        # rotary positions begin at 0, where nothing is turned
        block.attn.first_key.copy_(key)
        block.attn.first_value.copy_(value)


def after_first(ids: Tensor, first: int | None) -> Tensor:
    """Token numbers (batch, length) with the first token in front: (batch, length + 1), or as they
    are without one."""
    if first is None:
        return ids
    return torch.cat([torch.full_like(ids[:, :1], first), ids], dim=1)


def dense_output(dense: PreTrainedModel, ids: Tensor, first: int | None) -> tuple[Tensor, Tensor]:
    """Logits and final hidden states (batch, length, ...) of the dense model for ids (batch,
    length), after the same first token that a spiking network begins with.

    Rows of ids that begin with it already are taken as they are.
    """
    if first is None:
        output = dense(ids, output_hidden_states=True, use_cache=False)
        return output.logits, output.hidden_states[-1]
    begins = ids[:, 0] == first
    if bool(begins.any()) and not bool(begins.all()):
        parts = [dense_output(dense, ids[rows], first) for rows in (begins, ~begins)]
        order = torch.cat([begins.nonzero(), (~begins).nonzero()]).squeeze(-1).argsort()
        logits, hidden = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        return logits, hidden
    whole = ids if bool(begins.all()) else after_first(ids, first)
    output = dense(whole, output_hidden_states=True, use_cache=False)
    length = ids.shape[1]
    return output.logits[:, -length:], cast(Tensor, output.hidden_states[-1])[:, -length:]
