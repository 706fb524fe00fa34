"""The sizes of an integer network."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neurtransformer.codes import HIDDEN_SPIKES, largest_count
from neurtransformer.errors import UserError
from neurtransformer.families import FAMILIES
from neurtransformer.recipe import MAX_PHASE_TIMESTEPS, MAX_TIMESTEPS, Code, Coding

Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]

MAX_STREAM_BITS = 14

FINAL_MOST = 127
"""The largest count of the neurons in front of the LM head: a graded spike of 8 bits with sign."""


def check_family(family: str) -> None:
    """Raise UserError unless a family of dense models has an integer form."""
    if family != "gpt2":
        raise UserError(
            f"a {FAMILIES[family].title} goes as far as the spiking form: integers and netlist are "
            "for GPT-2 alone"
        )


class IntegerConfig(BaseModel):
    """Sizes of an IntegerGPT2, as they stand in a netlist's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["gpt2"] = "gpt2"
    layers: Annotated[int, Field(strict=True, ge=1, le=1024)]
    width: Size
    heads: Size
    hidden: Size
    vocabulary: Size
    positions: Size
    timesteps: Annotated[int, Field(strict=True, ge=1, le=MAX_TIMESTEPS)]
    coding: Coding
    attention: str = "linear"
    attention_timesteps: Annotated[int, Field(strict=True, ge=1, le=MAX_TIMESTEPS)] | None = None
    attention_coding: Coding | None = None
    first_token: Annotated[int, Field(strict=True, ge=0)] | None = None
    """The innate token, which stands at position 0 of every text; None without one."""
    epsilon: Annotated[float, Field(ge=0, lt=1)]
    stream_bits: Annotated[int, Field(strict=True, ge=0, le=MAX_STREAM_BITS)]
    """Fraction bits of the residual stream, whose channels have 24 bits."""

    @property
    def most(self) -> int:
        """The largest count of the inputs of a feed-forward network."""
        return largest_count(self.timesteps, self.coding)

    @property
    def context(self) -> int:
        """Tokens of the longest text: an innate first token takes one position."""
        return self.positions - (self.first_token is not None)

    @property
    def attention_code(self) -> Code:
        """The code of the attention."""
        return Code(
            self.attention_timesteps or self.timesteps, self.attention_coding or self.coding
        )

    @property
    def hidden_most(self) -> int:
        """The largest count of a hidden channel."""
        return largest_count(self.timesteps, self.coding, HIDDEN_SPIKES[self.coding])

    @model_validator(mode="after")
    def _possible(self) -> "IntegerConfig":
        from neurtransformer.integer.attention import KINDS  # which are made of such configs

        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.first_token is not None and self.first_token >= self.vocabulary:
            raise ValueError(f"first token {self.first_token} is none of {self.vocabulary}")
        if self.context < 1:
            raise ValueError("the innate first token leaves no position for a text")
        for timesteps, coding in ((self.timesteps, self.coding), self.attention_code):
            if coding == "phase" and timesteps > MAX_PHASE_TIMESTEPS:
                raise ValueError(f"phase coding takes at most {MAX_PHASE_TIMESTEPS} timesteps")
        if self.attention not in KINDS:
            raise ValueError(f"attention must be {' or '.join(KINDS)}, not {self.attention}")
        KINDS[self.attention].check(self)
        return self
