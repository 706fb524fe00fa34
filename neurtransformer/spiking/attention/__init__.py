"""The kinds of spiking attention, one file each, behind the interface of `base.py`."""

from neurtransformer.spiking.attention.base import SpikingSelfAttention
from neurtransformer.spiking.attention.linear import LinearAttention
from neurtransformer.spiking.attention.ttfs import RaceAttention

KINDS: dict[str, type[SpikingSelfAttention]] = {
    kind.kind: kind for kind in (RaceAttention, LinearAttention)
}
"""What `attention:` in a recipe may name."""
