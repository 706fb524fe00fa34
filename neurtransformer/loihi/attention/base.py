"""What a kind of attention says of itself on this floor: spikes of query, key and value come in,
mean value counts go out; what is between is its own, and so is how long a phase takes."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from neurtransformer.integer.config import IntegerConfig
from neurtransformer.loihi.nodes import Node
from neurtransformer.recipe import Coding


class Qkv(NamedTuple):
    """The neurons that send query, key and value, in this order. unsigned: the first so many.
    most: the largest count of one in a phase."""

    neurons: int
    unsigned: int
    most: int
    coding: Coding


class Attention(ABC):
    """One kind. All of it hangs on the sizes of the model alone."""

    nodes: ClassVar[tuple[type[Node], ...]]
    """The kinds of node that no other attention has."""

    @staticmethod
    @abstractmethod
    def qkv(config: IntegerConfig) -> Qkv:
        """The neurons that drive it."""

    @staticmethod
    def phase(slots: int) -> int:
        """Time steps of a phase in whose first `slots` neurons fire."""
        return slots

    @staticmethod
    @abstractmethod
    def between(config: IntegerConfig) -> list[Node]:
        """A chain of nodes. The last sends mean value counts (width,), with MEAN_BITS fraction
        bits, in a phase's last step."""
