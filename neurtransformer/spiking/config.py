"""The config of a spiking GPT-2."""

from typing import ClassVar

from transformers import AutoConfig, GPT2Config

from neurtransformer.recipe import Code, Coding


class SpikingGPT2Config(GPT2Config):
    """A GPT-2 config plus the kind of attention, the codes, and the teacher.

    attention_timesteps, attention_coding: None where the attention has the code of the rest.
    dense: the teacher's name or folder; dense_sha256: the hash of its weights
    (`provenance.model_sha256`).
    """

    model_type = "spiking_gpt2"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "cache",
        "past_key_values",
        "last_hidden_state",
    ]

    timesteps: int = 8
    coding: Coding = "rate"
    attention: str = "linear"
    attention_timesteps: int | None = None
    attention_coding: Coding | None = None
    dense: str | None = None
    dense_sha256: str | None = None

    @property
    def code(self) -> Code:
        """The code of the feed-forward blocks."""
        return Code(self.timesteps, self.coding)

    @property
    def attention_code(self) -> Code:
        """The code of the attention."""
        return Code(
            self.attention_timesteps or self.timesteps, self.attention_coding or self.coding
        )


AutoConfig.register(SpikingGPT2Config.model_type, SpikingGPT2Config, exist_ok=True)
