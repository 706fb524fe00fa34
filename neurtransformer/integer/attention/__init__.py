"""The kinds of attention in integers, one file each, behind the interface of `base.py`."""

from neurtransformer.integer.attention.base import IntegerAttention
from neurtransformer.integer.attention.linear import LinearAttention
from neurtransformer.integer.attention.ttfs import RaceAttention

KINDS: dict[str, type[IntegerAttention]] = {
    kind.kind: kind for kind in (RaceAttention, LinearAttention)
}
