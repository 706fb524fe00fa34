"""The sizes of an integer network."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neurtransformer.codes import HIDDEN_SPIKES, largest_count
from neurtransformer.recipe import (
    MAX_LIMITED_TIMESTEPS,
    MAX_PHASE_TIMESTEPS,
    MAX_TIMESTEPS,
    Code,
    Codes,
    Coding,
    Digits,
    check_digits,
)

Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]
Limited = Annotated[int, Field(strict=True, ge=1, le=MAX_LIMITED_TIMESTEPS)]

MAX_STREAM_BITS = 14

FINAL_MOST = 127
"""The largest count of the neurons in front of the LM head: a graded spike of 8 bits with sign."""

FINAL_DIGITS = 8
"""Those of their counts where they are phase coded."""


class IntegerConfig(Codes, BaseModel):
    """Sizes of an IntegerGPT2, as they stand in a netlist's manifest.

    model: the family. A Llama has no embeddings of positions but rotary ones, and hidden neurons
    that multiply two membranes. kv_heads: heads of keys and values, which as many query heads
    each share; None where each has its own. rotary: the base of the rotary positions.
    hidden_timesteps, hidden_spikes: T of phase-coding hidden neurons that stop after so many
    spikes; None where they have the code of the rest. digits: of all other phase-coding neurons.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["gpt2", "llama"] = "gpt2"
    layers: Annotated[int, Field(strict=True, ge=1, le=1024)]
    width: Size
    heads: Size
    kv_heads: Size | None = None
    rotary: Annotated[float, Field(gt=1, lt=1e12)] | None = None
    hidden: Size
    vocabulary: Size
    positions: Size
    timesteps: Annotated[int, Field(strict=True, ge=1, le=MAX_TIMESTEPS)]
    coding: Coding
    attention: str = "linear"
    attention_timesteps: Annotated[int, Field(strict=True, ge=1, le=MAX_TIMESTEPS)] | None = None
    attention_coding: Coding | None = None
    digits: Digits = "binary"
    first_token: Annotated[int, Field(strict=True, ge=0)] | None = None
    """The innate token, which stands at position 0 of every text; None without one."""
    hidden_timesteps: Limited | None = None
    hidden_spikes: Limited | None = None
    epsilon: Annotated[float, Field(ge=0, lt=1)]
    stream_bits: Annotated[int, Field(strict=True, ge=0, le=MAX_STREAM_BITS)]
    """Fraction bits of the residual stream, whose channels have 24 bits."""

    @property
    def most(self) -> int:
        """The largest count of the inputs of a feed-forward network."""
        return largest_count(self.timesteps, self.coding)

    @property
    def dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def shared(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // (self.kv_heads or self.heads)

    @property
    def kv_width(self) -> int:
        """Channels of all keys, and of all values."""
        return self.width // self.shared

    @property
    def gated(self) -> bool:
        """Whether a hidden neuron multiplies two membranes (SwiGLU)."""
        return self.model == "llama"

    @property
    def rows_in(self) -> int:
        """Columns of the embedding: of tokens, and of positions where they are embedded."""
        return self.vocabulary + (0 if self.rotary else self.positions)

    @property
    def turned(self) -> int:
        """Rows of queries and keys, the first, that rotary positions turn."""
        return self.width + self.kv_width if self.rotary else 0

    @property
    def context(self) -> int:
        """Tokens of the longest text: an innate first token takes one position."""
        return self.positions - (self.first_token is not None)

    @property
    def hidden_code(self) -> Code:
        """The code of the hidden neurons; their largest count is `hidden_most`."""
        if self.hidden_timesteps is None:
            return self.code
        return Code(self.hidden_timesteps, self.coding)

    @property
    def hidden_most(self) -> int:
        """The largest count of a hidden channel."""
        per_step = 1 if self.gated else HIDDEN_SPIKES[self.coding]
        timesteps = self.hidden_timesteps or self.timesteps
        return largest_count(timesteps, self.coding, per_step, self.hidden_spikes)

    def carries(self, coding: Coding) -> bool:
        """Whether spikes of this code carry powers of two in the blocks, and membranes that they
        drive saturate: where hidden neurons stop, as counts with such a range want it."""
        return coding == "phase" and self.hidden_spikes is not None

    @property
    def final_code(self) -> Code:
        """The code of the neurons in front of the LM head, whose graded spikes are rate coded."""
        if self.carries("phase"):
            return Code(FINAL_DIGITS, "phase", self.digits)
        return Code(FINAL_MOST, "rate")

    @property
    def final_slots(self) -> int:
        """Time steps in which they send a count."""
        return FINAL_DIGITS if self.carries("phase") else 1

    @model_validator(mode="after")
    def _possible(self) -> "IntegerConfig":
        from neurtransformer.integer.attention import KINDS  # which are made of such configs

        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"{self.heads} heads are no multiple of {self.kv_heads}")
        if (self.rotary is None) != (self.model == "gpt2"):
            raise ValueError("a Llama has rotary positions, and a GPT-2 none")
        if self.rotary and self.attention != "ttfs":
            raise ValueError("integers of a Llama are for attention ttfs alone")
        if self.rotary and self.dim % 2:
            raise ValueError(f"rotary positions need heads of even width, not {self.dim}")
        if self.first_token is not None and self.first_token >= self.vocabulary:
            raise ValueError(f"first token {self.first_token} is none of {self.vocabulary}")
        if self.context < 1:
            raise ValueError("the innate first token leaves no position for a text")
        check_digits(self.digits, self.coding, self.attention_code.coding)
        for code in (self.code, self.attention_code):
            if code.coding == "phase" and code.timesteps > MAX_PHASE_TIMESTEPS:
                raise ValueError(f"phase coding takes at most {MAX_PHASE_TIMESTEPS} timesteps")
        if (self.hidden_timesteps is None) != (self.hidden_spikes is None):
            raise ValueError("hidden neurons that stop have time steps and a number of spikes")
        if self.hidden_timesteps and self.hidden_spikes:
            if not self.gated or self.coding != "phase":
                raise ValueError("hidden neurons that stop are phase coded and multiply")
            if self.hidden_spikes > self.hidden_timesteps:
                raise ValueError("hidden neurons stop after as many spikes as time steps at most")
        if self.attention not in KINDS:
            raise ValueError(f"attention must be {' or '.join(KINDS)}, not {self.attention}")
        KINDS[self.attention].check(self)
        return self
