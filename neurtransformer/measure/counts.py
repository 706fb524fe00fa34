"""What an operation is, and what decides how many there are: the geometry and measured spikes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from neurtransformer.recipe import Code
from neurtransformer.spiking.attention import KINDS

if TYPE_CHECKING:
    from neurtransformer.spiking.config import SpikingConfig


@dataclass(frozen=True)
class Ops:
    """Work for one token. words: 32-bit words read from or written to memory."""

    mac: float = 0.0
    ac: float = 0.0
    words: float = 0.0

    def __add__(self, other: "Ops") -> "Ops":
        return Ops(self.mac + other.mac, self.ac + other.ac, self.words + other.words)


Part = Mapping[str, Ops]
"""A part of a model, operation by operation."""


def total(parts: Iterable[Part]) -> Ops:
    """Everything in `parts` added up."""
    return sum((ops for part in parts for ops in part.values()), Ops())


@dataclass(frozen=True)
class Shape:
    """What of a model's config decides the counts. context: longest sequence, in tokens. code,
    attention: the codes of the feed-forward blocks and of the attention. hidden_timesteps: T of the
    hidden neurons. kind: of the attention.
    gated: SwiGLU in place of GELU. rotary: whether positions are."""

    width: int
    heads: int
    kv_width: int
    hidden: int
    layers: int
    vocab: int
    context: int
    code: Code
    attention: Code
    hidden_timesteps: int
    kind: str
    gated: bool
    rotary: bool

    @classmethod
    def of(cls, config: "SpikingConfig") -> Self:
        s = config.sizes
        return cls(
            width=s.width,
            heads=s.heads,
            kv_width=s.kv_width,
            hidden=s.hidden,
            layers=s.layers,
            vocab=s.vocabulary,
            context=s.context,
            code=config.code,
            attention=config.attention_code,
            hidden_timesteps=config.hidden_timesteps or config.timesteps,
            kind=config.attention,
            gated=s.gated,
            rotary=config.rotary is not None,
        )

    @property
    def seen(self) -> float:
        """Tokens a causal head looks at, itself included, on average over all positions."""
        return (self.context + 1) / 2

    @property
    def qkv(self) -> tuple[int, int, int]:
        """Query, key and value neurons of a block."""
        return KINDS[self.kind].sizes(self.width, self.kv_width)


@dataclass(frozen=True)
class LayerSpikes:
    """Measured spikes per token of one block, summed over each population.

    events: what else the kind of attention counts in its core, per token.
    """

    encode: float
    query: float
    key: float
    value: float
    merged: float
    mlp_encode: float
    hidden: float
    events: Mapping[str, float] = field(default_factory=dict)
