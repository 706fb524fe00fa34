"""Perplexity by a sliding window, of a dense and a spiking network side by side."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from neurtransformer.loss import next_token_losses

Logits = Callable[[Tensor], Tensor]
"""Tokens (1, n) -> logits (1, n, vocabulary)."""


class Window(NamedTuple):
    """Tokens begin..end-1 are read, and of them first..end-1 scored."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int, stride: int) -> list[Window]:
    """The windows over a text of so many tokens, 1 <= stride <= context.

    Window k reads tokens k stride .. k stride + context - 1, or up to the end of the text, and
    nothing before: no state is carried over. Scored in it, given all that it has before them, are
    the tokens that no window before it has scored; the first window to reach the end is the last.
    So each token but the very first is scored once: the first `context` with all that precedes
    them, later ones with context - stride tokens before them or more. Perplexity is the exponential
    of their mean negative log-likelihood. With a stride of a whole context the first token of a
    window has nothing before it, and is left out.

    That is the recipe of Hugging Face's "Perplexity of fixed-length models"
    (https://huggingface.co/docs/transformers/perplexity), but for its weights: in its mean a window
    counts one token less than it scores.
    """
    found: list[Window] = []
    end = 0
    for begin in range(0, tokens, stride):
        first, end = max(end, begin + 1), min(begin + context, tokens)
        if first < end:
            found.append(Window(begin, first, end))
        if end == tokens:
            break
    return found


@torch.no_grad()
def score(dense: Logits, spiking: Logits, ids: Tensor, window: Window) -> dict[str, float]:
    """Sums over the tokens that a window scores, of a text ids (n,) int64: how many, their negative
    log-likelihood in nats, which of them a network rated likeliest, where both networks did alike.
    """
    target = ids[window.first : window.end]
    sums: dict[str, float] = {"tokens": len(target)}
    likeliest = []
    for name, model in ("dense", dense), ("spiking", spiking):
        logits = model(ids[None, window.begin : window.end]).float().cpu()
        before = window.first - 1 - window.begin
        losses = next_token_losses(logits, ids[None, window.begin : window.end])
        sums[f"nll_{name}"] = float(losses[0, before:].sum())
        likeliest.append(logits[0, before:-1].argmax(-1))
        sums[f"right_{name}"] = int((likeliest[-1] == target).sum())
    sums["same"] = int((likeliest[0] == likeliest[1]).sum())
    return sums


def figures(sums: dict[str, float]) -> dict[str, float]:
    """What `score` adds up to over all windows."""
    mean = {name: value / sums["tokens"] for name, value in sums.items()}
    return {
        "ppl_dense": math.exp(mean["nll_dense"]),
        "ppl_spiking": math.exp(mean["nll_spiking"]),
        "ppl_ratio": math.exp(mean["nll_spiking"] - mean["nll_dense"]),
        "accuracy_dense": mean["right_dense"],
        "accuracy_spiking": mean["right_spiking"],
        "token_agreement": mean["same"],
    }
