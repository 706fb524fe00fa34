"""Loss along the text, and past the context that the models were trained on."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neurtransformer.loss import next_token_losses
from neurtransformer.spiking.innate import after_first
from neurtransformer.spiking.model import SpikingLanguageModel

_AT_ONCE = 4  # blocks, of twice the context: as many tokens as `quality.evaluate` takes


def doubled(blocks: Tensor) -> Tensor:
    """A quarter of blocks (n, length), which follow each other in a text, joined two and two.

    Returns (n // 8, 2 * length), at least one; a single block comes back as it is.
    """
    count = max(1, len(blocks) // 8)
    return blocks[: 2 * count].reshape(count, -1)


@torch.no_grad()
def loss_by_position(
    model: SpikingLanguageModel,
    dense: PreTrainedModel,
    blocks: Tensor,
    buckets: int,
    *,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> list[dict[str, float]]:
    """Mean next-token loss of both models, nats, in buckets of positions of blocks (n, length).

    Blocks may be longer than the context. GPT-2 learns an embedding for each position it is trained
    on; tokens past the last of them are given that last one's, in both models alike. The dense
    model attends to all tokens before, the spiking one carries its state on, as it always does.

    Returns at most `buckets` of {position, dense, spiking}, equally wide but for the last; position
    is the bucket's middle, counted from 0.
    """
    length = blocks.shape[1]
    first = model.config.first_token
    # the dense model is given the innate token of the spiking one
    given = {"dense": (dense, after_first(blocks, first)), "spiking": (model, blocks)}
    losses = dict.fromkeys(given, torch.zeros((), device=blocks.device))
    for name, (network, ids) in given.items():
        last = model.config.sizes.context - 1 if name == "dense" else model.config.context - 1
        positions = torch.arange(ids.shape[1], device=ids.device).clamp_max(last)
        for chunk in ids.split(_AT_ONCE):
            # without a mask transformers takes positions that do not grow for texts of their own
            mask = torch.ones_like(chunk)
            output = network(chunk, attention_mask=mask, position_ids=positions.expand_as(chunk))
            each = next_token_losses(output.logits[:, -length:], chunk[:, -length:])
            losses[name] = losses[name] + each.sum(0)
            if name == "spiking":
                on_tokens(chunk.numel())
    return [
        {
            "position": float(bucket.double().mean()),
            **{name: float(loss[bucket].mean()) / len(blocks) for name, loss in losses.items()},
        }
        for bucket in torch.arange(length - 1).split(-(-(length - 1) // buckets))
    ]
