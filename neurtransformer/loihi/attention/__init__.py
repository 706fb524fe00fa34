"""The kinds of attention, one file each, behind the interface of `base.py`."""

from neurtransformer.loihi.attention.base import Attention
from neurtransformer.loihi.attention.linear import Linear
from neurtransformer.loihi.attention.ttfs import TTFS
from neurtransformer.loihi.nodes import Node

KINDS: dict[str, type[Attention]] = {"ttfs": TTFS, "linear": Linear}
"""What `attention:` in a config may name."""


def nodes() -> list[type[Node]]:
    """The kinds of node that only attention has."""
    return [node for kind in KINDS.values() for node in kind.nodes]
