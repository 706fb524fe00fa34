"""What has to be known of a family of dense language models.

A family is a subclass of `Family`, which checks a folder without torch, and one of `DenseBlock`,
through which the rest of the library looks at a block of the model in memory. Whatever stands
behind these two is the same for all families.

    x -> attn_norm -> [query; key; value] -> rotation, if any -> softmax attention -> output -> + x
    x -> mlp_norm -> [gate; up] or up -> activation -> down -> + x
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from neurtransformer.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = dict[str, tuple[int, ...]]
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Sizes:
    """The geometry of a language model. kv_heads: heads of keys and values, each of which
    `heads / kv_heads` query heads share. hidden: neurons of a feed-forward block. context: in
    tokens. gated: whether those neurons multiply two inputs (SwiGLU)."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    vocabulary: int
    gated: bool = False

    @property
    def kv_width(self) -> int:
        """Channels of all keys, and of all values."""
        return self.width // self.heads * self.kv_heads


class Rows(NamedTuple):
    """A linear layer: weight (out, in) and bias (out,)."""

    weight: "Tensor"
    bias: "Tensor"


class Family(ABC):
    """A kind of dense model. Nothing but `classes` and `blocks` needs torch."""

    model_type: ClassVar[str]
    title: ClassVar[str]
    """What people call it."""

    prefix: ClassVar[str]
    """What names of tensors beside the LM head begin with; files may leave it out."""

    embedding: ClassVar[str]
    """The name of the token embedding, without the prefix."""

    language_model: ClassVar[re.Pattern[str]]
    """Names of `architectures` that are a language model of this family."""

    language_model_name: ClassVar[str]
    """The one that transformers has."""

    buffers: ClassVar[re.Pattern[str]]
    """Names, without the prefix, of what old files hold beside weights."""

    default_ends: ClassVar[dict[str, int]] = {}
    """Tokens that begin and end a text where the config is silent."""

    @abstractmethod
    def checked_config(self, path: Path, config: dict[str, Any]) -> dict[str, Any]:
        """What config.json, read from `path`, says of the model: defaults filled in, and sizes
        under the family's own names. Raises UserError for what we do not convert."""

    @abstractmethod
    def sizes(self, config: dict[str, Any]) -> Sizes:
        """The geometry that a checked config means."""

    @abstractmethod
    def shapes(self, sizes: Sizes) -> Shapes:
        """Name without prefix -> shape of every tensor, the LM head left out."""

    def expected_shapes(self, config: dict[str, Any]) -> Shapes:
        """The same for what a checked config says."""
        return self.shapes(self.sizes(config))

    @abstractmethod
    def classes(self) -> "tuple[type[PreTrainedConfig], type[PreTrainedModel]]":
        """transformers' config and language model."""

    @abstractmethod
    def around(self, dense: "PreTrainedModel") -> "Around":
        """What stands around the blocks of a dense model."""

    @abstractmethod
    def blocks(self, dense: "PreTrainedModel") -> "list[DenseBlock]":
        """The blocks of a dense model, in order."""


@dataclass(frozen=True)
class Around:
    """What stands around the blocks. positions: learned embeddings of positions, if any."""

    embedding: "nn.Module"
    positions: "nn.Module | None"
    norm: "nn.Module"
    head: "nn.Module"


class DenseBlock(ABC):
    """One block of a dense model, looked at through the same names for every family."""

    attn_norm: "nn.Module"
    mlp_norm: "nn.Module"
    scaling: float
    """What scores q.k are multiplied by."""

    @abstractmethod
    def qkv(self) -> Rows:
        """The projection to queries, keys and values, in this order, each head by head."""

    @abstractmethod
    def attn_out(self) -> Rows:
        """The projection of the merged heads."""

    @abstractmethod
    def up(self) -> Rows:
        """The projection to the hidden neurons; of gated ones first to the gates."""

    @abstractmethod
    def down(self) -> Rows:
        """The projection of the hidden neurons."""

    @abstractmethod
    def share(
        self,
        qkv: "Tensor | None",
        attn_out: "Tensor | None",
        up: "Tensor | None",
        down: "Tensor | None",
    ) -> None:
        """Put views of these weights (out, in), which hold the same numbers, in the place of the
        block's own. None: it keeps its own."""

    @abstractmethod
    def taps(self) -> "dict[str, tuple[nn.Module, bool]]":
        """Where activations can be had: the input (True) or the output of a module.

        `attn_in` and `mlp_in` (after the norms), `merged` (heads joined), `attn_out`, `hidden`.
        """


def family_of(dense: "PreTrainedModel") -> Family:
    """The family of a dense model in memory."""
    from neurtransformer.families import FAMILIES

    return FAMILIES[dense.config.model_type]


Taps = dict[str, "Tensor"]


@contextmanager
def tapped(
    dense: "PreTrainedModel", on_block: Callable[[int, Taps], None] | None = None
) -> Iterator[list[Taps]]:
    """While open, every forward pass of `dense` leaves its activations here, one dict a block.

    Keys are those of `DenseBlock.taps`, values (batch, length, channels). on_block: called with the
    number of a block when its activations are all there, during the pass. They are forgotten then:
    those of all blocks of a large model can be more than its weights.
    """
    blocks = family_of(dense).blocks(dense)
    taps: list[Taps] = [{} for _ in blocks]
    hooks = []

    def keep(number: int, name: str, inputs: bool, of: int) -> Callable[..., None]:
        def hook(module: "nn.Module", args: "tuple[Tensor]", output: "Tensor") -> None:
            store = taps[number]
            store[name] = args[0] if inputs else output
            if on_block is not None and len(store) == of:
                on_block(number, store)
                store.clear()

        return hook

    for number, block in enumerate(blocks):
        places = block.taps()
        for name, (module, inputs) in places.items():
            hooks.append(module.register_forward_hook(keep(number, name, inputs, len(places))))
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


# --- checks that families share ---


def check_size(path: Path, config: dict[str, Any], key: str) -> None:
    """Raise UserError unless `key` of a config is a whole number of at least 1."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}, which is not a size")


def check_fraction(path: Path, config: dict[str, Any], key: str) -> None:
    """Raise UserError if `key` of a config is there and no number from 0 to below 1."""
    value = config.get(key, 0.1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{path}: {key} is {value!r}, not a number from 0 to below 1")
