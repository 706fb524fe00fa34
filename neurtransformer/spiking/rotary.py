"""Rotary positions: pairs of channels of queries and keys turned by angles that grow with position.

Su et al. 2021 (arXiv 2104.09864), in the layout of transformers' Llama: channel c of a head is
paired with channel c + dim / 2. A spiking attention turns the membranes of its query and key
neurons after they have integrated, before they fire.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every channel's angle, both (batch or 1, length, dim), float32."""


def rotation(positions: Tensor, dim: int, base: float) -> Rotation:
    """The angles of positions (batch or 1, length), whole numbers, in heads `dim` wide.

    Pair c turns by ``position * base^(-2 c / dim)``.
    """
    pair = torch.arange(0, dim, 2, dtype=torch.int64, device=positions.device).float()
    angles = positions[..., None].float() * (1.0 / base ** (pair / dim))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turned: Rotation | None) -> Tensor:
    """Channels (batch, length, heads * dim), head by head, turned; as they are without angles."""
    if turned is None:
        return x
    cos, sin = (part.unsqueeze(-2) for part in turned)
    heads = x.unflatten(-1, (-1, cos.shape[-1]))
    low, high = heads.chunk(2, dim=-1)
    return (heads * cos + torch.cat([-high, low], dim=-1) * sin).flatten(-2)
