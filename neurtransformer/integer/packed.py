"""The tensors of an integer network, large ones in half the room."""

from collections.abc import Iterator, MutableMapping

import numpy as np
from numpy.typing import NDArray

KEPT = 2**22
"""Weights that a tensor has before it is packed: below it the room is not worth the time."""


class Packed(MutableMapping[str, NDArray]):
    """Tensors by name. Large ones of int16, which are even weights of 8 bits, take one byte for
    each weight here; asked for, they are int16 again, and a copy."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray] = {}

    def __setitem__(self, name: str, x: NDArray) -> None:
        if x.dtype == np.int16 and x.size > KEPT:
            half = (x >> 1).astype(np.int8)
            # what is no even weight of 8 bits is for `layout.check` to see as it is
            x = half if np.array_equal(_unpacked(half), x) else x
        self._held[name] = x

    def __getitem__(self, name: str) -> NDArray:
        x = self._held[name]
        return _unpacked(x) if x.dtype == np.int8 else x

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _unpacked(half: NDArray) -> NDArray[np.int16]:
    return half.astype(np.int16) << 1
