"""The sizes of an integer network."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neurtransformer.recipe import MAX_PHASE_TIMESTEPS, MAX_TIMESTEPS, Code, Coding
from neurtransformer.spiking.coding import largest_count
from neurtransformer.spiking.feedforward import HIDDEN_SPIKES

Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]

MAX_STREAM_BITS = 14

FINAL_MOST = 127
"""The largest count of the neurons in front of the LM head: a graded spike of 8 bits with sign."""


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
    epsilon: Annotated[float, Field(ge=0, lt=1)]
    stream_bits: Annotated[int, Field(strict=True, ge=0, le=MAX_STREAM_BITS)]
    """Fraction bits of the residual stream, whose channels have 24 bits."""

    @property
    def most(self) -> int:
        """The largest count of the inputs of a network and of the merged heads."""
        return largest_count(self.timesteps, self.coding)

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
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.coding == "phase" and self.timesteps > MAX_PHASE_TIMESTEPS:
            raise ValueError(f"phase coding takes at most {MAX_PHASE_TIMESTEPS} timesteps")
        return self
