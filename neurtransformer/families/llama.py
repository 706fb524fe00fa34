"""Llama: RMSNorm, rotary positions, keys and values that query heads share, SwiGLU, no biases.

SmolLM2 is of this family. Refused are variants that make another function of the weights: scaled
rotary positions, heads that are wider or narrower than the model, experts.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neurtransformer.errors import UserError
from neurtransformer.families.base import (
    Around,
    DenseBlock,
    Family,
    Rows,
    Shapes,
    Sizes,
    check_fraction,
    check_size,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

_DEFAULTS = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_SIZES = tuple(_DEFAULTS)[:6]
THETA = 10000.0
"""The base of rotary positions where a config is silent."""

_FOREIGN = re.compile(
    r"alibi|relative_att|sliding_window|soft_?cap|_multiplier$|experts|layer_types|qk_norm"
    r"|per_layer_config|logit_scale|parallel_(attn|attention|residual)|^mup|pruned_heads"
    r"|add_cross_attention|is_encoder_decoder|compression_config|partial_rotary"
    r"|transformers_weights|quantization_config"
)


class Llama(Family):
    """transformers' `LlamaForCausalLM`."""

    model_type = "llama"
    title = "Llama"
    prefix = "model."
    embedding = "embed_tokens.weight"
    language_model = re.compile(r"LlamaForCausalLM")
    language_model_name = "LlamaForCausalLM"
    buffers = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

    def checked_config(self, path: Path, config: dict[str, Any]) -> dict[str, Any]:
        config = {**_DEFAULTS, **config}
        if config.get("num_key_value_heads") is None:
            config["num_key_value_heads"] = config["num_attention_heads"]
        for key in (*_SIZES, "num_key_value_heads"):
            check_size(path, config, key)
        width, heads = config["hidden_size"], config["num_attention_heads"]
        if config["max_position_embeddings"] < 2:
            raise UserError(f"{path}: with one position there is nothing to predict from")
        if width % heads or width // heads % 2:
            raise UserError(f"{path}: width {width} is no even multiple of {heads} heads")
        if heads % config["num_key_value_heads"]:
            raise UserError(
                f"{path}: {heads} heads are no multiple of {config['num_key_value_heads']} heads "
                "of keys and values"
            )
        if config.get("head_dim") not in (None, width // heads):
            raise UserError(
                f"{path}: head_dim is {config['head_dim']!r}; only heads that together are as wide "
                "as the model can be converted"
            )
        for key in ("rms_norm_eps", "attention_dropout"):
            check_fraction(path, config, key)
        if config["hidden_act"] not in ("silu", "swish"):
            raise UserError(
                f"{path}: activation '{config['hidden_act']}' cannot be converted, only silu"
            )
        for key, value in config.items():
            if value and _FOREIGN.search(key):
                raise UserError(f"{path}: a model with {key} cannot be converted")
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": _theta(path, config)}
        config.pop("rope_theta", None)
        config.pop("rope_scaling", None)
        return config

    def sizes(self, config: dict[str, Any]) -> Sizes:
        return Sizes(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            hidden=config["intermediate_size"],
            context=config["max_position_embeddings"],
            vocabulary=config["vocab_size"],
            gated=True,
        )

    def shapes(self, sizes: Sizes) -> Shapes:
        s = sizes
        shapes: Shapes = {self.embedding: (s.vocabulary, s.width), "norm.weight": (s.width,)}
        for layer in range(s.layers):
            name = f"layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{name}{norm}.weight"] = (s.width,)
            for part, rows, columns in (
                ("self_attn.q_proj", s.width, s.width),
                ("self_attn.k_proj", s.kv_width, s.width),
                ("self_attn.v_proj", s.kv_width, s.width),
                ("self_attn.o_proj", s.width, s.width),
                ("mlp.gate_proj", s.hidden, s.width),
                ("mlp.up_proj", s.hidden, s.width),
                ("mlp.down_proj", s.width, s.hidden),
            ):
                shapes[f"{name}{part}.weight"] = (rows, columns)
        return shapes

    def expected_shapes(self, config: dict[str, Any]) -> Shapes:
        shapes = super().expected_shapes(config)
        for part, key in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")):
            biased = [name for name in shapes if config.get(key) and f".{part}." in name]
            for name in biased:
                shapes[f"{name.removesuffix('weight')}bias"] = shapes[name][:1]
        return shapes

    def classes(self) -> "tuple[type[PreTrainedConfig], type[PreTrainedModel]]":
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaConfig, LlamaForCausalLM

    def around(self, dense: "PreTrainedModel") -> Around:
        model = cast("LlamaForCausalLM", dense)
        return Around(model.model.embed_tokens, None, model.model.norm, model.lm_head)

    def blocks(self, dense: "PreTrainedModel") -> list[DenseBlock]:
        layers = cast("LlamaForCausalLM", dense).model.layers
        return [_Block(cast("LlamaDecoderLayer", layer)) for layer in layers]


def _theta(path: Path, config: dict[str, Any]) -> float:
    """The base of the rotary positions. Raises UserError for positions that are scaled."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise UserError(f"{path}: rope_parameters is {scaling!r}, not a mapping")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rotary positions of type '{kind}' cannot be converted")
    theta = scaling.get("rope_theta", config.get("rope_theta", THETA))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta < 1e12:
        raise UserError(f"{path}: rope_theta is {theta!r}, not a number above 1")
    return float(theta)


class _Block(DenseBlock):
    def __init__(self, block: "LlamaDecoderLayer") -> None:
        self.block = block
        self.attn_norm, self.mlp_norm = block.input_layernorm, block.post_attention_layernorm
        self.scaling = float(block.self_attn.scaling)

    def qkv(self) -> Rows:
        attn = self.block.self_attn
        return _stacked(attn.q_proj, attn.k_proj, attn.v_proj)

    def attn_out(self) -> Rows:
        return _stacked(self.block.self_attn.o_proj)

    def up(self) -> Rows:
        return _stacked(self.block.mlp.gate_proj, self.block.mlp.up_proj)

    def down(self) -> Rows:
        return _stacked(self.block.mlp.down_proj)

    def share(
        self,
        qkv: "Tensor | None",
        attn_out: "Tensor | None",
        up: "Tensor | None",
        down: "Tensor | None",
    ) -> None:
        from torch import nn

        attn, mlp = self.block.self_attn, self.block.mlp
        for parts, weight in (
            ((attn.q_proj, attn.k_proj, attn.v_proj), qkv),
            ((attn.o_proj,), attn_out),
            ((mlp.gate_proj, mlp.up_proj), up),
            ((mlp.down_proj,), down),
        ):
            if weight is not None:
                sizes = [len(part.weight) for part in parts]
                for part, rows in zip(parts, weight.split(sizes), strict=True):
                    part.weight = nn.Parameter(rows)

    def taps(self) -> "dict[str, tuple[nn.Module, bool]]":
        attn, mlp = self.block.self_attn, self.block.mlp
        return {
            "attn_in": (attn.q_proj, True),
            "merged": (attn.o_proj, True),
            "attn_out": (attn.o_proj, False),
            "mlp_in": (mlp.up_proj, True),
            "hidden": (mlp.down_proj, True),
        }


def _stacked(*parts: "nn.Linear") -> Rows:
    """Linear layers of one input as one, with a bias of zeros where they have none."""
    import torch

    weight = torch.cat([part.weight for part in parts]) if len(parts) > 1 else parts[0].weight
    if parts[0].bias is None:
        return Rows(weight, weight.new_zeros(len(weight)))
    return Rows(weight, torch.cat([part.bias for part in parts]))
