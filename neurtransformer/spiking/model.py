"""SpikingGPT2: the spiking network as a transformers model (config, save, load, generate).

Names, shapes and the residual stream are GPT-2's; attention and feed-forward block are the spiking
ones. LayerNorm, embeddings and the tied LM head stay as they are.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.attention.base import State
from neurtransformer.spiking.config import SpikingGPT2Config
from neurtransformer.spiking.feedforward import SpikingFeedForward


class SSAState:
    """What generation keeps between tokens: the state of each layer's attention."""

    is_compileable = False

    def __init__(self, layers: int) -> None:
        self.states: list[State | None] = [None] * layers
        self.tokens_seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far (the name is transformers')."""
        return self.tokens_seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: follow the chosen beams."""
        self.states = [
            None if state is None else tuple(part[beam_idx] for part in state)
            for state in self.states
        ]


@dataclass
class SpikingGPT2Output(CausalLMOutputWithPast):
    """logits (batch, length, vocab), last_hidden_state (batch, length, width), state, loss."""

    last_hidden_state: Tensor | None = None


class SpikingBlock(nn.Module):
    """One transformer block on the residual stream."""

    def __init__(self, config: SpikingGPT2Config) -> None:
        super().__init__()
        width, epsilon = config.n_embd, config.layer_norm_epsilon
        hidden = config.n_inner or 4 * width
        self.ln_1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = KINDS[config.attention](width, config.n_head, config.attention_code)
        self.ln_2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = SpikingFeedForward(
            width, hidden, config.timesteps, config.activation_function, config.coding
        )

    def forward(
        self, x: Tensor, steps: bool, state: State | None, mask: Tensor | None
    ) -> tuple[Tensor, State | None]:
        attended, state = self.attn(self.ln_1(x), steps, state, mask)
        x = x + attended
        return x + self.mlp(self.ln_2(x), steps), state


class SpikingGPT2LMHeadModel(PreTrainedModel, GenerationMixin):
    """The spiking language model.

    `model.steps = True` runs the time-stepped simulation instead of counts; the results are equal.
    """

    config_class = SpikingGPT2Config
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: SpikingGPT2Config) -> None:
        super().__init__(config)
        self.steps = False
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "h": nn.ModuleList(SpikingBlock(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @property
    def blocks(self) -> list[SpikingBlock]:
        """The transformer blocks, in order."""
        return cast("list[SpikingBlock]", self.transformer["h"])

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SSAState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> SpikingGPT2Output:
        """input_ids (batch, length) to logits (batch, length or logits_to_keep, vocab).

        attention_mask: (batch, past + length), 0 for padding. labels: (batch, length), -100 is
        ignored.
        """
        past = past_key_values.tokens_seen if past_key_values is not None else 0
        length = input_ids.shape[1]
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = attention_mask[:, -length:].to(self.dtype)
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, past)
        if int(position_ids.max()) >= self.config.n_positions:
            raise ValueError(
                f"sequence reaches position {int(position_ids.max())}; this model has "
                f"{self.config.n_positions} positions"
            )
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"](position_ids)
        for i, block in enumerate(self.blocks):
            state = past_key_values.states[i] if past_key_values is not None else None
            x, state = block(x, self.steps, state, mask)
            if past_key_values is not None:
                past_key_values.states[i] = state
        if past_key_values is not None:
            past_key_values.tokens_seen = past + length
        x = self.transformer["ln_f"](x)
        logits = self.lm_head(x[:, -logits_to_keep:] if logits_to_keep else x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SpikingGPT2Output(
            loss=loss, logits=logits, past_key_values=past_key_values, last_hidden_state=x
        )

    @staticmethod
    def _positions(input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        length = input_ids.shape[1]
        if attention_mask is None:
            return torch.arange(past, past + length, device=input_ids.device).unsqueeze(0)
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` our state instead of a key-value cache."""
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = SSAState(self.config.n_layer)


AutoModelForCausalLM.register(SpikingGPT2Config, SpikingGPT2LMHeadModel, exist_ok=True)
