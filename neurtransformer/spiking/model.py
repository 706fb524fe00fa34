"""The spiking network as a transformers model (config, save, load, generate).

Names of modules are GPT-2's, for every family; attention and feed-forward block are the spiking
ones. Norms, embeddings and LM head stay as they are in the dense model.

transformers calls what generation keeps between tokens `past_key_values`, from 5.24 on `cache`.
Both names are taken, and outputs have the one that is in use. Should the name change once more,
that costs an error and not the context: `forward` refuses arguments that it does not know, and an
attention mask that tells of tokens which it has not seen.
"""

import logging
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.attention.base import State
from neurtransformer.spiking.config import (
    SpikingConfig,
    SpikingGPT2Config,
    SpikingLlamaConfig,
)
from neurtransformer.spiking.feedforward import SpikingFeedForward
from neurtransformer.spiking.float32 import NORMS, Embedding, Linear
from neurtransformer.spiking.neuron import unchanging
from neurtransformer.spiking.rotary import Rotation, rotation

log = logging.getLogger(__name__)

CACHE = next(
    field.name
    for field in fields(CausalLMOutputWithPast)
    if field.name in ("cache", "past_key_values")
)
"""What the installed transformers calls the state between tokens."""


class SSAState:
    """What generation keeps between tokens: the state of each layer's attention."""

    is_compileable = False

    def __init__(self, layers: int) -> None:
        self.states: list[State | None] = [None] * layers
        self.tokens_seen = 0
        self.passed: Tensor | None = None
        """(batch, 1): 1 for texts that begin with the innate token, which was passed over."""

        # transformers': false for what knows how many tokens it has read
        self.is_linear = [False] * layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far (the name is transformers')."""
        return self.tokens_seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: follow the chosen beams."""
        self.states = [
            None if state is None else tuple(part[beam_idx] for part in state)
            for state in self.states
        ]
        if self.passed is not None:
            self.passed = self.passed[beam_idx]


@dataclass
class SpikingOutput(CausalLMOutputWithPast):
    """logits (batch, length, vocab), last_hidden_state (batch, length, width), the state, the loss,
    and hidden_states: what enters the first block, and what leaves each, the last normalised."""

    last_hidden_state: Tensor | None = None


class SpikingBlock(GradientCheckpointingLayer):
    """One transformer block on the residual stream."""

    def __init__(self, config: SpikingConfig) -> None:
        super().__init__()
        sizes, norm = config.sizes, NORMS[config.norm]
        self.ln_1 = norm(sizes.width, eps=config.epsilon)
        innate = config.first_token is not None
        self.attn = KINDS[config.attention](sizes, config.attention_code, innate=innate)
        self.ln_2 = norm(sizes.width, eps=config.epsilon)
        self.mlp = SpikingFeedForward(
            sizes.width,
            sizes.hidden,
            config.code,
            config.activation,
            gated=sizes.gated,
            limited=config.limited,
        )

    def forward(
        self,
        x: Tensor,
        steps: bool,
        state: State | None,
        mask: Tensor | None,
        turned: Rotation | None,
    ) -> tuple[Tensor, State | None]:
        attended, state = self.attn(self.ln_1(x), steps, state, mask, turned)
        x = x + attended
        return x + self.mlp(self.ln_2(x), steps), state


class SpikingLanguageModel(PreTrainedModel, GenerationMixin):
    """The spiking language model, of any family.

    `model.steps = True` runs the time-stepped simulation instead of counts; the results are equal.
    """

    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    _is_stateful = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    """For transformers' Trainer: `forward` takes num_items_in_batch."""

    first_hidden: Tensor
    """What the final norm makes of the innate first token, (width,)."""

    def __init__(self, config: SpikingGPT2Config | SpikingLlamaConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # transformers would look for it in the name of the class
        self.steps = False
        sizes = config.sizes
        self.transformer = nn.ModuleDict({"wte": Embedding(sizes.vocabulary, sizes.width)})
        if config.rotary is None:
            self.transformer["wpe"] = Embedding(sizes.context, sizes.width)
        self.transformer["h"] = nn.ModuleList(SpikingBlock(config) for _ in range(sizes.layers))
        self.transformer["ln_f"] = NORMS[config.norm](sizes.width, eps=config.epsilon)
        self.lm_head = Linear(sizes.width, sizes.vocabulary)
        if config.first_token is not None:
            self.register_buffer("first_hidden", torch.zeros(sizes.width))
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
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: SSAState | None = None,
        past_key_values: SSAState | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> SpikingOutput | tuple[Any, ...]:
        """input_ids (batch, length), or inputs_embeds (batch, length, width), to logits (batch,
        length or logits_to_keep, vocab), float32. What arguments mean is what they mean for GPT-2:

        attention_mask: (batch, past + length), 0 for padding, which stands before or after a text.
        token_type_ids: (batch, length), embedded as tokens and added.
        cache, or past_key_values: the state to go on from, changed in place. use_cache: whether the
        output has the state; None is what the config says, and no in training mode.
        labels: (batch, length) whole numbers, -100 is ignored. num_items_in_batch: labels in all
        batches of an optimizer step, which the loss is divided by.
        logits_to_keep: how many of the last logits, or the indices of some; 0 for all.
        cache_position: what early 5.x pass beside the state, which knows it.
        Raises ValueError or TypeError for what does not fit together, attentions and, in training
        mode, a state.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("a spiking attention computes no attention maps: leave them out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        state = self._state(cache, past_key_values, use_cache)
        # counts and states do not fit a half: neither as weights (`float32`) nor by autocast
        with torch.autocast(self.device.type, enabled=False):
            x = self._embedded(input_ids, inputs_embeds, token_type_ids)
            past = state.tokens_seen if state is not None else 0
            mask = self._new_tokens(attention_mask, past, x.shape[1])
            first = self._first_again(input_ids, mask, past)
            passed = first.sum(1, keepdim=True) if first is not None else None
            if state is not None:
                passed = state.passed = passed if past == 0 else state.passed
            positions = self._positions(x, position_ids, attention_mask, past, passed)
            if first is not None:
                mask = (torch.ones_like(first).float() if mask is None else mask) * ~first
            turned = None
            if self.config.rotary is None:
                x = x + self.transformer["wpe"](positions)
            else:
                turned = self.rotation(positions)
            hidden = [x]
            for i, block in enumerate(self.blocks):
                kept = state.states[i] if state is not None else None
                x, kept = block(x, self.steps, kept, mask, turned)
                hidden.append(x)
                if state is not None:
                    state.states[i] = kept
            if state is not None:
                state.tokens_seen = past + x.shape[1]
            x = self.transformer["ln_f"](x)
            if first is not None:
                x = torch.where(first[..., None], self.first_hidden.float(), x)
            hidden[-1] = x
            if isinstance(logits_to_keep, int):
                kept_positions: slice | Tensor = slice(-logits_to_keep or None, None)
            else:
                kept_positions = logits_to_keep
            logits = self.lm_head(x[:, kept_positions])
            loss = self._loss(logits, labels, num_items_in_batch) if labels is not None else None
        wanted = self._config_or("output_hidden_states", output_hidden_states)
        output = SpikingOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(hidden) if wanted else None,
            last_hidden_state=x,
            **{CACHE: state if self._config_or("use_cache", use_cache) else None},
        )
        return output if self._config_or("return_dict", return_dict) else output.to_tuple()

    def _config_or(self, name: str, value: bool | None) -> bool:
        return bool(getattr(self.config, name) if value is None else value)

    def _state(
        self, cache: SSAState | None, past_key_values: SSAState | None, use_cache: bool | None
    ) -> SSAState | None:
        """The state to go on from, a new one if one is to be kept, or None."""
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one thing: give one")
        state = cache if cache is not None else past_key_values
        if not isinstance(state, SSAState | None):
            raise TypeError(
                f"{type(state).__name__} is no state of a spiking network: leave cache and "
                "past_key_values out, or give what an earlier call returned"
            )
        if self.training:
            if state is not None or use_cache:
                raise ValueError(
                    "in training mode no state is kept between tokens: call eval() first, or "
                    "leave use_cache and the state out"
                )
            return None
        if state is None and self._config_or("use_cache", use_cache):
            return SSAState(len(self.blocks))
        return state

    def _embedded(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        wte = self.transformer["wte"]
        x = inputs_embeds.float() if inputs_embeds is not None else wte(input_ids)
        return x if token_type_ids is None else x + wte(token_type_ids)

    @staticmethod
    def _new_tokens(attention_mask: Tensor | None, past: int, length: int) -> Tensor | None:
        """Which of the new tokens are none but padding: (batch, length), 0 or 1, None for no one.

        Raises ValueError for a mask of other tokens than those in the state and the new ones.
        """
        if attention_mask is None:
            return None
        if attention_mask.ndim != 2 or attention_mask.shape[1] != past + length:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)}, but should be (batch, "
                f"{past + length}): {past} tokens in the state and {length} new ones"
            )
        real = attention_mask.bool()
        if bool(real.all()):
            return None
        if bool((real[:, 1:] & ~real[:, :-1] & (real.cumsum(-1)[:, :-1] > 0)).any()):
            raise ValueError("padding must stand before or after a text, not between its tokens")
        return real[:, -length:].float()

    def _first_again(
        self, input_ids: Tensor | None, mask: Tensor | None, past: int
    ) -> Tensor | None:
        """Where a text begins with the innate token: bool (batch, length), None for nowhere."""
        if self.config.first_token is None or input_ids is None or past:
            return None
        begins = torch.ones_like(input_ids) if mask is None else mask.long()
        first = (begins.cumsum(-1) == 1) & begins.bool() & (input_ids == self.config.first_token)
        return first if bool(first.any()) else None

    def _positions(
        self,
        x: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past: int,
        passed: Tensor | None,
    ) -> Tensor:
        """Where the new tokens stand in their text, (batch or 1, length), behind the innate one.

        passed: (batch, 1), 1 for texts that begin with the innate token, None for no one.
        Raises ValueError beyond the last position, and for a token that stands later than all
        tokens that have been read allow: `generate` gives no mask where nothing is padding, so that
        this is what tells of a lost state.
        """
        length = x.shape[1]
        order = torch.arange(past, past + length, device=x.device).unsqueeze(0)
        if position_ids is None:
            position_ids = order
            if attention_mask is not None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
        ahead = bool((position_ids > order).any())
        latest = int(position_ids.max())
        if self.config.first_token is not None:
            position_ids = position_ids + 1
        if passed is not None:
            position_ids = (position_ids - passed).clamp_min(0)
        positions = self.config.sizes.context
        if bool((position_ids >= positions).any()):
            built_in = ", of which its built-in first token has the first"
            raise ValueError(
                f"sequence reaches position {int(position_ids.max())}; this model has "
                f"{positions} positions{built_in if self.config.first_token is not None else ''}"
            )
        if ahead:
            raise ValueError(
                f"position_ids reach {latest}, but there are {past} tokens in the state and "
                f"{length} new ones"
            )
        return position_ids

    def rotation(self, positions: Tensor) -> Rotation | None:
        """The angles of rotary positions (batch or 1, length); None where there are none."""
        sizes, base = self.config.sizes, self.config.rotary
        return None if base is None else rotation(positions, sizes.width // sizes.heads, base)

    def _loss(
        self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if labels.is_floating_point():
            raise TypeError(f"labels are {labels.dtype}, but should be whole numbers")
        loss = self.loss_function(logits, labels.long(), logits.shape[-1], num_items_in_batch)
        return cast("Tensor", loss)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, always in eval mode: training mode keeps no state and rounds
        no weights, and text is to be what the network that is saved would write."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with unchanging(self):
                return super().generate(*args, **kwargs)
        finally:
            for module in training:
                module.training = True

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` our state instead of a key-value cache."""
        if generation_config.cache_implementation is not None:
            log.warning(
                "cache_implementation=%r is for key-value caches and without effect here",
                generation_config.cache_implementation,
            )
        if generation_config.use_cache and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = SSAState(len(self.blocks))


class SpikingGPT2LMHeadModel(SpikingLanguageModel):
    """A spiking GPT-2."""

    config_class = SpikingGPT2Config


class SpikingLlamaForCausalLM(SpikingLanguageModel):
    """A spiking Llama."""

    config_class = SpikingLlamaConfig


MODELS: dict[str, type[SpikingLanguageModel]] = {
    model.config_class.family: model for model in (SpikingGPT2LMHeadModel, SpikingLlamaForCausalLM)
}
"""By the `model_type` of the dense family."""

for _model in MODELS.values():
    AutoModelForCausalLM.register(_model.config_class, _model, exist_ok=True)
    # who asks by name whether a class predicts the next token: Trainer's label smoothing, pipelines
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_model.config_class.model_type] = _model.__name__
