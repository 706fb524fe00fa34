"""The config of a spiking GPT-2."""

from transformers import AutoConfig, GPT2Config

from neurtransformer.recipe import Coding


class SpikingGPT2Config(GPT2Config):
    """A GPT-2 config plus the T of the code, the code itself, and `dense`, what was converted."""

    model_type = "spiking_gpt2"

    timesteps: int = 8
    coding: Coding = "rate"
    dense: str | None = None


AutoConfig.register(SpikingGPT2Config.model_type, SpikingGPT2Config, exist_ok=True)
