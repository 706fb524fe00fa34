"""For pretrain.py: two kernels, what a CPU spends most of its time on.

Importing this makes the attention implementation "blocks" known to transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


def tiles(rows: int, group: int, length: int, tile: int) -> Iterator[tuple[slice, int, int]]:
    """(rows, begin, end): which rows and which queries to do together."""
    for a in range(0, rows, group):
        for i in range(0, length, tile):
            yield slice(a, a + group), i, min(i + tile, length)


class BlockAttention(torch.autograd.Function):
    """Causal softmax attention in tiles that stay in the cache.

    In bfloat16 on a CPU with AMX its backward pass takes half the time of PyTorch's own.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, (length, width) = q.shape, q.shape[-2:]
        q, k, v = (x.reshape(-1, length, width) for x in (q * width**-0.5, k, v))
        tile = min(256, length)
        group = max(1, 2**20 // (tile * length))
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        future = torch.full((tile, tile), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        kept = []
        for rows, i, j in tiles(len(q), group, length, tile):
            scores = q[rows, i:j] @ k[rows, :j].mT
            scores[..., i:].add_(future[: j - i, : j - i])
            kept.append(torch.softmax(scores, -1))
            out[rows, i:j] = kept[-1] @ v[rows, :j]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.tiling = (group, length, tile)
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grads[0].reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for weights, (rows, i, j) in zip(kept, tiles(len(q), *ctx.tiling), strict=True):
            g = grad[rows, i:j]
            dv[rows, :j] += weights.mT @ g
            dweights = g @ v[rows, :j].mT
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, q.dtype)
            dq[rows, i:j] = dscores @ k[rows, :j]
            dk[rows, :j] += dscores.mT @ q[rows, i:j]
        dq.mul_(q.shape[-1] ** -0.5)
        return tuple(x.view(grads[0].shape) for x in (dq, dk, dv))


@torch.compiler.disable
def block_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """`BlockAttention` in the form that transformers calls."""
    return BlockAttention.apply(q, k, v).transpose(1, 2), None


AttentionInterface.register("blocks", block_attention)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`; never holds more than 512 rows of logits.

    The gradient is computed on the way forward (the idea of Liger Kernel, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros(weight.shape[::-1], dtype=torch.float32, device=weight.device)
        total = torch.zeros((), device=hidden.device)
        for i in range(0, len(hidden), 512):
            h, y = hidden[i : i + 512], target[i : i + 512, None]
            log_p = torch.log_softmax(h @ weight.t(), -1)
            total -= log_p.gather(1, y).float().sum()
            g = log_p.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=log_p.dtype))
            dhidden[i : i + 512] = g @ weight
            dweight += h.t().contiguous() @ g
        dweight = dweight.div_(len(hidden)).t().to(weight.dtype)
        ctx.save_for_backward(dhidden.div_(len(hidden)), dweight)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dhidden, dweight = ctx.saved_tensors
        return dhidden * grads[0], dweight * grads[0], None
