"""The layers around the spiking blocks, computed in float32 whatever type their weights have.

Weights may be stored as float16 or bfloat16, to save memory; spike counts, states and membranes are
whole numbers of up to 24 bits, which only float32 holds exactly. `neuron.py` does the same for the
weights in the blocks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Embedding):
    """Indices (...) to float32 vectors (..., width)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class LayerNorm(nn.LayerNorm):
    """Float32 (..., width) to float32."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(
            input, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class RMSNorm(nn.Module):
    """Float32 (..., width) to float32: divided by the root of the mean square, times a gain
    (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.weight.shape, self.weight.float(), self.eps)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


class Linear(nn.Linear):
    """Float32 (..., in) to float32 (..., out), without a bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.float())
