"""GPT-2: LayerNorm, learned positions, one projection for q, k and v, a GELU, biases everywhere."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

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
    from transformers import GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

ACTIVATIONS: dict[str, Literal["none", "tanh"]] = {
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu": "none",
    "gelu_python": "none",
}
"""transformers' names of the activations that can be converted: torch's GELU, exact or by tanh."""

_DEFAULTS = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}

# transformers' other names of the same sizes
_ALIASES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}

# keys that, set to anything, make another function of the weights: GPT-2 has nothing of the kind,
# and transformers would ignore most of them without a word
_FOREIGN = re.compile(
    r"rope|rotary|alibi|relative_att|sliding_window|multi_query|soft_?cap|_multiplier$|experts"
    r"|layer_types|per_layer_config|qk_norm|logit_scale|parallel_(attn|attention|residual)|^mup"
    r"|pruned_heads|add_cross_attention|is_encoder_decoder|(quantization|compression)_config"
    r"|transformers_weights"
)


class GPT2(Family):
    """transformers' `GPT2LMHeadModel`."""

    model_type = "gpt2"
    title = "GPT-2"
    prefix = "transformer."
    embedding = "wte.weight"
    language_model = re.compile(r"(TF|Flax)?GPT2((LMHead)?Model|ForCausalLM)")
    language_model_name = "GPT2LMHeadModel"
    default_ends: ClassVar[dict[str, int]] = {"bos_token_id": 50256, "eos_token_id": 50256}
    buffers = re.compile(r"h\.\d+\.attn\.(masked_)?bias")

    def checked_config(self, path: Path, config: dict[str, Any]) -> dict[str, Any]:
        for alias, name in _ALIASES.items():
            if alias in config:
                value = config.pop(alias)
                if config.setdefault(name, value) != value:
                    raise UserError(f"{path}: {alias} is {value!r}, but {name} is {config[name]!r}")
        config = {**_DEFAULTS, "activation_function": "gelu_new", **config}
        for key in _DEFAULTS:
            check_size(path, config, key)
        if config.get("n_inner") is not None:
            check_size(path, config, "n_inner")
        if config["n_positions"] < 2:
            raise UserError(f"{path}: with n_positions 1 there is nothing to predict from")
        if config["n_embd"] % config["n_head"]:
            raise UserError(
                f"{path}: width {config['n_embd']} is no multiple of {config['n_head']} heads"
            )
        for key in ("layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
            check_fraction(path, config, key)
        activation = config["activation_function"]
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UserError(
                f"{path}: activation '{activation}' cannot be converted, "
                f"only {', '.join(ACTIVATIONS)}"
            )
        for key, value in config.items():
            if value and _FOREIGN.search(key):
                raise UserError(f"{path}: a model with {key} cannot be converted, GPT-2 has none")
        for key, own in (
            ("position_embedding_type", "absolute"),
            ("num_key_value_heads", config["n_head"]),
            ("head_dim", config["n_embd"] // config["n_head"]),
        ):
            if config.get(key) not in (None, own):
                raise UserError(f"{path}: {key} is {config[key]!r}, in GPT-2 it is {own!r}")
        return config

    def sizes(self, config: dict[str, Any]) -> Sizes:
        return Sizes(
            layers=config["n_layer"],
            width=config["n_embd"],
            heads=config["n_head"],
            kv_heads=config["n_head"],
            hidden=config.get("n_inner") or 4 * config["n_embd"],
            context=config["n_positions"],
            vocabulary=config["vocab_size"],
        )

    def shapes(self, sizes: Sizes) -> Shapes:
        s = sizes
        shapes: Shapes = {
            self.embedding: (s.vocabulary, s.width),
            "wpe.weight": (s.context, s.width),
            "ln_f.weight": (s.width,),
            "ln_f.bias": (s.width,),
        }
        for layer in range(s.layers):
            for norm in ("ln_1", "ln_2"):
                shapes[f"h.{layer}.{norm}.weight"] = (s.width,)
                shapes[f"h.{layer}.{norm}.bias"] = (s.width,)
            for part, rows, columns in (
                ("attn.c_attn", s.width, 3 * s.width),
                ("attn.c_proj", s.width, s.width),
                ("mlp.c_fc", s.width, s.hidden),
                ("mlp.c_proj", s.hidden, s.width),
            ):
                shapes[f"h.{layer}.{part}.weight"] = (rows, columns)
                shapes[f"h.{layer}.{part}.bias"] = (columns,)
        return shapes

    def classes(self) -> "tuple[type[PreTrainedConfig], type[PreTrainedModel]]":
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2Config, GPT2LMHeadModel

    def around(self, dense: "PreTrainedModel") -> Around:
        model = cast("GPT2LMHeadModel", dense)
        transformer = model.transformer
        return Around(transformer.wte, transformer.wpe, transformer.ln_f, model.lm_head)

    def blocks(self, dense: "PreTrainedModel") -> list[DenseBlock]:
        return [_Block(block) for block in cast("GPT2LMHeadModel", dense).transformer.h]


class _Block(DenseBlock):
    def __init__(self, block: "GPT2Block") -> None:
        self.block = block
        self.attn_norm, self.mlp_norm = block.ln_1, block.ln_2
        self.scaling = float(block.attn.scaling)

    def qkv(self) -> Rows:
        return _rows(self.block.attn.c_attn)

    def attn_out(self) -> Rows:
        return _rows(self.block.attn.c_proj)

    def up(self) -> Rows:
        return _rows(self.block.mlp.c_fc)

    def down(self) -> Rows:
        return _rows(self.block.mlp.c_proj)

    def share(
        self,
        qkv: "Tensor | None",
        attn_out: "Tensor | None",
        up: "Tensor | None",
        down: "Tensor | None",
    ) -> None:
        from torch import nn

        attn, mlp = self.block.attn, self.block.mlp
        ours = attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj
        for conv, weight in zip(ours, (qkv, attn_out, up, down), strict=True):
            if weight is not None:
                conv.weight = nn.Parameter(weight.T)

    def taps(self) -> "dict[str, tuple[nn.Module, bool]]":
        attn, mlp = self.block.attn, self.block.mlp
        return {
            "attn_in": (attn.c_attn, True),
            "merged": (attn.c_proj, True),
            "attn_out": (attn.c_proj, False),
            "mlp_in": (mlp.c_fc, True),
            "hidden": (mlp.c_proj, True),
        }


def _rows(conv: Any) -> Rows:
    """transformers' Conv1D holds weights (in, out)."""
    return Rows(conv.weight.T, conv.bias)
