"""The sizes of an integer network."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neurtransformer.recipe import MAX_TIMESTEPS

Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]


class IntegerConfig(BaseModel):
    """Sizes of an IntegerGPT2, as they stand in a netlist's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Field(strict=True, ge=1, le=1024)]
    width: Size
    heads: Size
    hidden: Size
    vocabulary: Size
    positions: Size
    timesteps: Annotated[int, Field(strict=True, ge=1, le=MAX_TIMESTEPS)]
    epsilon: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _whole_heads(self) -> "IntegerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self
