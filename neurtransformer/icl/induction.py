"""Does in-context learning survive conversion? Induction heads and losses, form by form.

Induction heads find what followed an earlier occurrence of the present token (Olsson et al.,
arXiv 2209.11895). Three measures, the same for the dense, the converted, the fine-tuned spiking and
the integer network:

- *prefix matching*, per head: attention from position q to q - N + 1 of a random sequence of N
  tokens that is repeated, mean over the repetition. An SSA's attention is its effective weights,
  ``u q_i^2.k_i^2`` for the token itself and ``(1 - 2^-s)^(i-j-1) q_i^2.k_j^2`` before it, divided
  by their sum.
- *copying*, per head: sum over absolute sum of the eigenvalues of the matrix from attended token to
  logits, ``W_U W_O W_V W_E`` (Elhage et al. 2021); 1 if the head raises what it sees.
- *in-context-learning score* of a network: loss late in the context minus loss early, nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neurtransformer.families.base import family_of, tapped
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loss import next_token_losses
from neurtransformer.spiking.calibrate import softmax_weights
from neurtransformer.spiking.innate import after_first, dense_output
from neurtransformer.spiking.model import SpikingLanguageModel

HALF = 64
"""N, the tokens of a random sequence before it repeats, where the context is long enough."""

SEQUENCES = 8
EARLY, LATE = 50, 500
"""The tokens that the in-context-learning score compares, at a context of 512 or more."""

WINDOW = 12
"""Losses are means over so many tokens on either side of them."""


@dataclass(frozen=True)
class Form:
    """One form of a network.

    attention: ids (batch, length) -> weights (layers, heads, batch, i, j), rows adding up to 1.
    logits: ids (batch, length) -> (batch, length, vocabulary). circuits: for each layer and head
    (to_value, to_logits), (dim, vocabulary) and (vocabulary, dim), the head's value of a token and
    what a value adds to the logits.
    """

    attention: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    circuits: Callable[[], list[list[tuple[Tensor, Tensor]]]]


# --- the forms ---


def dense_form(model: PreTrainedModel, spiking: SpikingLanguageModel) -> Form:
    """The softmax model that `spiking` was made from, after the same first token."""
    family, first, sizes = family_of(model), spiking.config.first_token, spiking.config.sizes
    around, blocks = family.around(model), family.blocks(model)

    def attention(ids: Tensor) -> Tensor:
        whole = after_first(ids.to(model.device), first)
        turned = spiking.rotation(torch.arange(whole.shape[1], device=whole.device)[None])
        with tapped(model) as taps:
            model(whole)
        weights = [
            softmax_weights(block, tap["attn_in"], sizes, turned)
            for block, tap in zip(blocks, taps, strict=True)
        ]
        return _of_tokens(torch.stack(weights).transpose(1, 2), ids)

    def circuits() -> list[list[tuple[Tensor, Tensor]]]:
        embedding = _weight(around.embedding)
        head = _weight(around.head) * _weight(around.norm)
        found = []
        for block in blocks:
            value = block.qkv().weight[-sizes.kv_width :] * _weight(block.attn_norm)
            output = block.attn_out().weight
            found.append(_circuits([embedding, value, output, head], sizes.heads, sizes.kv_heads))
        return found

    def logits(ids: Tensor) -> Tensor:
        return dense_output(model, ids.to(model.device), first)[0].cpu()

    return Form(attention, logits, circuits)


def spiking_form(model: SpikingLanguageModel) -> Form:
    """A spiking network, converted or fine-tuned."""
    sizes = model.config.sizes

    def attention(ids: Tensor) -> Tensor:
        weights: list[Tensor] = []

        def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
            attn = model.blocks[len(weights)].attn
            query, key, _ = attn.code(args[0], turned=args[-1])
            weights.append(_shares(attn.weights(query, key)))

        hooks = [block.attn.register_forward_pre_hook(watch) for block in model.blocks]
        try:
            model(ids.to(model.device))
        finally:
            for hook in hooks:
                hook.remove()
        return _of_tokens(torch.stack(weights).transpose(1, 2), ids)

    def circuits() -> list[list[tuple[Tensor, Tensor]]]:
        embedding = _weight(model.transformer["wte"])
        head = _weight(model.lm_head) * _weight(model.transformer["ln_f"])
        found = []
        for block in model.blocks:
            value = block.attn.c_attn.weight[-sizes.kv_width :] * _weight(block.ln_1)
            output = _weight(block.attn.c_proj)
            found.append(_circuits([embedding, value, output, head], sizes.heads, sizes.kv_heads))
        return found

    return Form(attention, lambda ids: model(ids.to(model.device)).logits.cpu(), circuits)


def integer_form(model: IntegerGPT2) -> Form:
    """The integer network; its circuits are the products of its integers."""

    def attention(ids: Tensor) -> Tensor:
        x, weights = model.embedding.counts(ids.numpy()), []
        for attn, feedforward in zip(model.attention, model.feedforward, strict=True):
            query, key, _ = attn.heads_of(x)
            weights.append(_shares(torch.from_numpy(attn.weights(query, key)).float()))
            x = feedforward.counts(attn.counts(x, attn.new_state(len(ids)))[0])
        return _of_tokens(torch.stack(weights).transpose(1, 2), ids)

    def circuits() -> list[list[tuple[Tensor, Tensor]]]:
        vocabulary = model.config.vocabulary
        rows = _worth(model.embedding.stream, model.embedding.table.weight)[:, :vocabulary].T
        head = _worth(model.head.logits, model.head.lm_head.weight) / model.head.encode.theta
        found = []
        for attn in model.attention:
            theta = attn.qkv_theta[attn.value_start :, None]
            value = attn.c_attn.weight[attn.value_start :] / theta / attn.encode.theta
            output = _worth(attn.residual, attn.c_proj.weight) / attn.merged_theta
            tensors = [torch.from_numpy(x.astype(np.float32)) for x in (rows, value, output, head)]
            found.append(_circuits(tensors, attn.heads, attn.kv_heads))
        return found

    return Form(attention, model, circuits)


def _worth(accumulator: Any, weight: np.ndarray) -> np.ndarray:
    """Rows of weights in the unit of the accumulator behind them."""
    scale = accumulator.mantissa * np.exp2(-accumulator.shift.astype(float))
    return weight * scale[:, None]


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)


def _of_tokens(weights: Tensor, ids: Tensor) -> Tensor:
    """Attention (..., i, j) among the tokens of ids (batch, length), without the innate one."""
    length = ids.shape[1]
    return weights[..., -length:, -length:].cpu()


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def _circuits(weights: Sequence[Tensor], heads: int, kv_heads: int) -> list[tuple[Tensor, Tensor]]:
    """weights: of embedding (vocabulary, width), values (kv_width, width), output (width, width)
    and LM head (vocabulary, width)."""
    embedding, value, output, head = weights
    embedding = embedding - embedding.mean(1, keepdim=True)
    output = output - output.mean(0)
    outputs = output.chunk(heads, dim=1)
    values = [v for v in value.chunk(kv_heads) for _ in range(heads // kv_heads)]
    return [(v @ embedding.T, head @ o) for v, o in zip(values, outputs, strict=True)]


# --- the measures ---


def repeated(vocabulary: int, half: int, seed: int = 0) -> Tensor:
    """Random sequences of `half` tokens, written twice: (SEQUENCES, 2 half). Token 0 often
    starts documents and is left out, where there are others to choose from."""
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(int(vocabulary > 2), vocabulary, (SEQUENCES, half), generator=generator)
    return torch.cat([once, once], dim=1)


def prefix_matching(weights: Tensor) -> Tensor:
    """(layers, heads) from attention (layers, heads, batch, 2N, 2N) on `repeated` tokens."""
    half = weights.shape[-1] // 2
    matched = weights.diagonal(1 - half, dim1=-2, dim2=-1)  # q from N - 1 on: the repetition's N
    return matched[..., 1:].mean((-1, -2))


def copying(to_value: Tensor, to_logits: Tensor) -> float:
    """-1..1: how positive the eigenvalues of a head's token-to-logit matrix are."""
    eigenvalues = torch.linalg.eigvals((to_value @ to_logits).detach())
    return float(eigenvalues.real.sum() / eigenvalues.abs().sum().clamp_min(1e-30))


def losses(logits: Callable[[Tensor], Tensor], blocks: Tensor) -> Tensor:
    """Mean loss at each position of blocks (n, length): (length - 1,), nats."""
    total = torch.zeros(blocks.shape[1] - 1)
    for block in blocks.split(1):
        total += next_token_losses(logits(block).float(), block)[0]
    return total / len(blocks)


def early_and_late(loss: Tensor) -> tuple[float, float]:
    """Loss around token EARLY and around token LATE, scaled down to a shorter context."""
    scale = min(1.0, (len(loss) + 1) / 512)
    window = max(1, round(WINDOW * scale))

    def around(token: int) -> float:
        middle = round(token * scale)
        return float(loss[max(0, middle - window) : middle + window].mean())

    return around(EARLY), around(LATE)


@torch.no_grad()
def measure(form: Form, vocabulary: int, blocks: Tensor) -> dict[str, Any]:
    """All measures of one form; blocks (n, length) of held-out text.

    Returns `prefix_matching` and `copying`, lists (layers, heads), `prefix_matching_max`, its place
    `best_head` (layer, head), `icl_score`, `loss_early` and `loss_late`.
    """
    half = min(HALF, blocks.shape[1] // 2)
    matching = prefix_matching(form.attention(repeated(vocabulary, half)))
    best = int(matching.argmax())
    early, late = early_and_late(losses(form.logits, blocks))
    return {
        "prefix_matching_max": float(matching.max()),
        "best_head": list(divmod(best, matching.shape[1])),
        "icl_score": late - early,
        "loss_early": early,
        "loss_late": late,
        "prefix_matching": matching.tolist(),
        "copying": [[copying(*head) for head in layer] for layer in form.circuits()],
    }
