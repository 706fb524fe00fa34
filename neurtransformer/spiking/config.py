"""The configs of spiking networks: those of their dense families, and what is ours."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from transformers import AutoConfig, GPT2Config, LlamaConfig

from neurtransformer.families import FAMILIES
from neurtransformer.families.base import Sizes
from neurtransformer.families.llama import THETA
from neurtransformer.recipe import Code, Codes, Coding, Digits


@dataclass(init=False)  # transformers makes one of all fields, its own and these
class SpikingConfig(Codes):
    """What is the same for all families: the kind of attention, the codes, and the teacher.

    attention_timesteps, attention_coding: None where the attention has the code of the rest.
    digits: of what is phase coded, but for hidden neurons that stop, which have binary ones.
    first_token: the number of the innate first token (see `spiking/innate.py`), None without.
    hidden_timesteps, hidden_spikes: T of the hidden neurons, and after how many spikes they stop;
    None where they have the code of the rest.
    dense: the teacher's name or folder; dense_sha256: the hash of its weights
    (`provenance.model_sha256`).
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "cache",
        "past_key_values",
        "last_hidden_state",
    ]
    family: ClassVar[str]
    """The `model_type` of the dense model."""

    norm: ClassVar[Literal["layer", "rms"]]
    named: ClassVar[tuple[str, str]]
    """What the family calls the epsilon of its norms and the activation of its hidden neurons."""

    timesteps: int = 8
    coding: Coding = "rate"
    attention: str = "linear"
    attention_timesteps: int | None = None
    attention_coding: Coding | None = None
    digits: Digits = "binary"
    first_token: int | None = None
    hidden_timesteps: int | None = None
    hidden_spikes: int | None = None
    dense: str | None = None
    dense_sha256: str | None = None

    @property
    def hidden_code(self) -> Code:
        """The code of the hidden neurons, whatever their largest count."""
        return self.code if self.limited is None else Code(self.limited[0], self.coding)

    @property
    def limited(self) -> tuple[int, int] | None:
        """T and the most spikes of hidden neurons that stop, if they do."""
        if self.hidden_timesteps is None or self.hidden_spikes is None:
            return None
        return self.hidden_timesteps, self.hidden_spikes

    @property
    def sizes(self) -> Sizes:
        """The geometry."""
        return FAMILIES[self.family].sizes(vars(self))

    @property
    def context(self) -> int:
        """Tokens of the longest text: the innate first token takes one position."""
        return self.sizes.context - (self.first_token is not None)

    @property
    def epsilon(self) -> float:
        """What a norm adds to the variance."""
        return float(getattr(self, self.named[0]))

    @property
    def activation(self) -> str:
        """transformers' name of the activation of the hidden neurons."""
        return str(getattr(self, self.named[1]))

    @property
    def rotary(self) -> float | None:
        """The base of rotary positions; None where positions have learned embeddings."""
        return None


class SpikingGPT2Config(SpikingConfig, GPT2Config):
    """A GPT-2 config and `SpikingConfig`."""

    model_type = "spiking_gpt2"
    family = "gpt2"
    norm = "layer"
    named = "layer_norm_epsilon", "activation_function"


class SpikingLlamaConfig(SpikingConfig, LlamaConfig):
    """A Llama config and `SpikingConfig`."""

    model_type = "spiking_llama"
    family = "llama"
    norm = "rms"
    named = "rms_norm_eps", "hidden_act"

    @property
    def rotary(self) -> float | None:
        return float((self.rope_parameters or {}).get("rope_theta", THETA))


CONFIGS: dict[str, type[SpikingGPT2Config] | type[SpikingLlamaConfig]] = {
    config.family: config for config in (SpikingGPT2Config, SpikingLlamaConfig)
}
"""By the `model_type` of the dense family."""

for _config in CONFIGS.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
