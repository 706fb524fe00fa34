"""Rotary positions in integers: membranes of query and key, turned before they are coded.

Channel c of a head is paired with channel c + dim / 2 (`spiking/rotary.py`). A table with a pair of
cosine and sine for every position would not fit a core, but turning by p is turning by the nearest
multiple of 2^b below p, and then by the rest: two tables, of some square root of the positions.

    x <- round((x cos - y sin) / 2^PAIR_BITS),    y <- round((y cos + x sin) / 2^PAIR_BITS)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.parts import Tensors, integers

PAIR_BITS = 14
"""Fraction bits of a cosine and a sine."""


def fine_bits(positions: int) -> int:
    """b: how many of a position's last bits the fine table has."""
    return ((positions - 1).bit_length() + 1) // 2


def table_shapes(positions: int, dim: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of the coarse and the fine table: (entries, dim / 2, 2), cosine and sine."""
    bits = fine_bits(positions)
    coarse = ((positions - 1) >> bits) + 1
    return (coarse, dim // 2, 2), (1 << bits, dim // 2, 2)


def tables(positions: int, dim: int, base: float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The coarse and the fine table. Pair c turns by ``position * base^(-2 c / dim)``."""
    frequency = base ** (-2.0 * np.arange(dim // 2) / dim)
    steps = 1 << fine_bits(positions), 1
    found = []
    for step, shape in zip(steps, table_shapes(positions, dim), strict=True):
        angles = step * np.arange(shape[0])[:, None] * frequency
        pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        found.append(np.rint(pairs * (1 << PAIR_BITS)).astype(np.int32))
    return found[0], found[1]


@dataclass(frozen=True)
class Rotary:
    """The tables of one network, and how many of its channels, the first, are turned."""

    coarse: Integers
    fine: Integers
    channels: int

    @classmethod
    def of(cls, tensors: Tensors, name: str, channels: int) -> "Rotary":
        return cls(integers(tensors, f"{name}.coarse"), integers(tensors, f"{name}.fine"), channels)

    def turned(self, u: Integers, first: int) -> Integers:
        """Membranes (..., length, channels and more), at positions from `first` on, turned."""
        position = first + np.arange(u.shape[-2])
        x, rest = u[..., : self.channels], u[..., self.channels :]
        x = turn(x, self.coarse[position // len(self.fine)])
        x = turn(x, self.fine[position % len(self.fine)])
        return np.concatenate([x, rest], axis=-1)


def turn(x: Integers, pairs: Integers) -> Integers:
    """Channels (..., length, heads * dim) turned by pairs (length, dim / 2, 2); saturates."""
    half = pairs.shape[-2]
    low, high = np.moveaxis(x.reshape(*x.shape[:-1], -1, 2, half), -2, 0)
    cos, sin = pairs[:, None, :, 0], pairs[:, None, :, 1]
    both = [low * cos - high * sin, high * cos + low * sin]
    turned = np.stack([arithmetic.shift_round(part, PAIR_BITS) for part in both], axis=-2)
    return arithmetic.saturate(turned).reshape(x.shape)
