"""How well a network predicts the next token: computed here for all that measures it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def next_token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The negative log-likelihood of every token but the first, in nats, (batch, length - 1).

    logits: (batch, length, vocabulary), what a network answers to tokens (batch, length) int64.
    """
    # flat: over the last dimension torch's softmax is quicker and more exact than over another
    predicted, wanted = logits[:, :-1].flatten(0, 1), tokens[:, 1:]
    return F.cross_entropy(predicted, wanted.flatten(), reduction="none").view_as(wanted)


@torch.no_grad()
def perplexity(network: Callable[[Tensor], Tensor], blocks: Tensor) -> float:
    """The exponential of the mean of `next_token_losses` on blocks (n, length) int64, one by one.

    network: tokens (1, length) to logits (1, length, vocabulary).
    """
    losses = [next_token_losses(network(block), block).sum() for block in blocks.split(1)]
    return math.exp(float(torch.stack(losses).sum()) / blocks[:, 1:].numel())
