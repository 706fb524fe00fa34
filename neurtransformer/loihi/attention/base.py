"""What a kind of attention says of itself on this floor: spikes of query, key and value come in,
mean value counts go out; what is between is its own, and so is how long a phase takes."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from neurtransformer.codes import MEAN_BITS, RECIPROCALS
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.loihi.microcode import Words, length, rounded, words
from neurtransformer.loihi.nodes import Node


class Attention(ABC):
    """One kind. All of it hangs on the sizes of the model alone; which neurons send query, key and
    value is said on the integer floor."""

    nodes: ClassVar[tuple[type[Node], ...]]
    """The kinds of node that no other attention has."""

    @staticmethod
    def phase(slots: int, config: IntegerConfig) -> int:
        """Time steps of a phase in whose first `slots` neurons fire."""
        return slots

    @staticmethod
    @abstractmethod
    def between(config: IntegerConfig) -> list[Node]:
        """A chain of nodes. The last sends mean value counts (width,), with MEAN_BITS fraction
        bits, in a phase's last step."""


def mean_of(sums: Words, bits: int) -> Words:
    """Sums (heads, n + 1), the last the divisor less one, to the quotients (heads, n) times
    2^(bits + MEAN_BITS): shifts and a table of 128 reciprocals at the divisor's leading 8 bits."""
    divisor = sums[:, -1:] + 1
    digits = length(divisor)
    leading = np.where(digits > 8, divisor >> np.maximum(digits - 8, 0), divisor)
    leading <<= np.maximum(8 - digits, 0)
    reciprocal = words(RECIPROCALS)[leading - 128]
    # 15 bits of a sum and 8 of a reciprocal
    scaled = rounded(sums[:, :-1] << np.maximum(15 - digits, 0), np.maximum(digits - 15, 0))
    np.clip(scaled, -(2**15 - 1), 2**15 - 1, out=scaled)
    return rounded(scaled * reciprocal, 22 - MEAN_BITS - bits)
