"""What an operation is, and what decides how many there are: the geometry and measured spikes."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Self

from neurtransformer.recipe import Code
from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.attention.base import LeftOut

if TYPE_CHECKING:
    from neurtransformer.spiking.config import SpikingConfig


@dataclass(frozen=True)
class Ops:
    """Work for one token.

    mac, ac: multiply-accumulates and accumulates.
    weights, states: words read from or written to memory, of weights, keys and values, and of
    membranes, thresholds and whatever else an attention keeps.
    events: synapses that a spike arrives through; each adds to a sum, which is one of the ACs, or
    of the MACs where a spike carries a number.
    updates: neurons times time steps in which one is updated. writes: synapses written.
    """

    mac: float = 0.0
    ac: float = 0.0
    weights: float = 0.0
    states: float = 0.0
    events: float = 0.0
    updates: float = 0.0
    writes: float = 0.0

    @property
    def words(self) -> float:
        """All words read from or written to memory."""
        return self.weights + self.states

    def __add__(self, other: "Ops") -> "Ops":
        return Ops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


Part = Mapping[str, Ops]
"""A part of a model, operation by operation."""


def total(parts: Iterable[Part]) -> Ops:
    """Everything in `parts` added up."""
    return sum((ops for part in parts for ops in part.values()), Ops())


@dataclass(frozen=True)
class Shape:
    """What of a model's config decides the counts. context: longest sequence, in tokens. code,
    attention, hidden_code: the codes of the feed-forward blocks, of the attention and of the hidden
    neurons. kind: of the attention.
    gated: SwiGLU in place of GELU. rotary: whether positions are. innate: whether a first token
    stands before every text."""

    width: int
    heads: int
    kv_width: int
    hidden: int
    layers: int
    vocab: int
    context: int
    code: Code
    attention: Code
    hidden_code: Code
    kind: str
    gated: bool
    rotary: bool
    innate: bool = False

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
            hidden_code=config.hidden_code,
            kind=config.attention,
            gated=s.gated,
            rotary=config.rotary is not None,
            innate=config.first_token is not None,
        )

    @property
    def seen(self) -> float:
        """Tokens a causal head looks at, itself included, on average over the positions of a text.
        An innate token is always seen, and never asks."""
        return (self.context + 1 + self.innate) / 2

    @property
    def qkv(self) -> tuple[int, int, int]:
        """Query, key and value neurons of a block."""
        return KINDS[self.kind].sizes(self.width, self.kv_width)


NONE_LEFT_OUT = LeftOut(0, 0, 0, 0)


@dataclass(frozen=True)
class LayerSpikes:
    """Measured spikes per token of one block, summed over each population.

    events: what else the kind of attention counts in its core, per token. left_out: neurons of the
    attention that are not there.
    """

    encode: float
    query: float
    key: float
    value: float
    merged: float
    mlp_encode: float
    hidden: float
    events: Mapping[str, float] = field(default_factory=dict)
    left_out: LeftOut = NONE_LEFT_OUT

    def qkv(self, s: Shape) -> tuple[int, int, int]:
        """Query, key and value neurons that are there."""
        query, key, value = s.qkv
        out = self.left_out
        return query - out.query, key - out.key, value - out.value
