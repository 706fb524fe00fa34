"""The config of a spiking GPT-2."""

from typing import ClassVar

from transformers import AutoConfig, GPT2Config

from neurtransformer.recipe import Coding


class SpikingGPT2Config(GPT2Config):
    """A GPT-2 config plus the T of the code, the code itself, and the teacher: `dense`, its name or
    folder, and `dense_sha256`, the hash of its weights (`provenance.model_sha256`)."""

    model_type = "spiking_gpt2"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "cache",
        "past_key_values",
        "last_hidden_state",
    ]

    timesteps: int = 8
    coding: Coding = "rate"
    dense: str | None = None
    dense_sha256: str | None = None


AutoConfig.register(SpikingGPT2Config.model_type, SpikingGPT2Config, exist_ok=True)
