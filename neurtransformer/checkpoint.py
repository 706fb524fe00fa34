"""What a folder of a dense GPT-2 holds, checked before it is believed.

Everything in it is carried over or refused: a key of config.json that makes another function of the
same weights, a tensor that no GPT-2 language model has, a token number that the embedding has no
row for. Only headers of weight files are read here, so a mistake is answered at once.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from neurtransformer.errors import UserError, shortened
from neurtransformer.runs import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shapes = dict[str, tuple[int, ...]]

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

# how somebody ran the model or stored it, and nothing of what it is
_SWITCH = re.compile(
    r"output_(hidden_states|attentions)|(use_)?return_dict|use_cache|torchscript"
    r"|gradient_checkpointing|(torch_)?dtype|.*(attn|experts)_implementation.*"
)

# keys that, set to anything, make another function of the weights: GPT-2 has nothing of the kind,
# and transformers would ignore most of them without a word
_FOREIGN = re.compile(
    r"rope|rotary|alibi|relative_att|sliding_window|multi_query|soft_?cap|_multiplier$|experts"
    r"|layer_types|per_layer_config|qk_norm|logit_scale|parallel_(attn|attention|residual)|^mup"
    r"|pruned_heads|add_cross_attention|is_encoder_decoder|(quantization|compression)_config"
    r"|transformers_weights"
)

_LANGUAGE_MODEL = re.compile(r"(TF|Flax)?GPT2((LMHead)?Model|ForCausalLM)")
_ADAPTER = re.compile(r"lora_|\.base_layer\.|adapter")

_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tokenizer.model",),
)
FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model"]
"""What a folder may need, and all that is fetched: no pickle, no code."""

WTE, HEAD = "wte.weight", "lm_head.weight"


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of the GPT-2 in `folder`, after reading the headers of its weight files.

    Raises UserError unless config, tokenizer and every tensor are there and fit together.
    """
    for pattern in ("adapter_config.json", "adapter_model.*"):
        if any(folder.glob(pattern)):
            _refuse_adapter(folder)
    config = check_config(folder / "config.json")
    files = weight_files(folder)
    if not files:
        _no_safetensors(folder)
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder} has no tokenizer: put tokenizer.json (or vocab.json and merges.txt) into it"
        )
    found: Shapes = {}
    for file in files:
        for name, shape in _shapes(file).items():
            if name in found:
                raise UserError(f"the weights in {folder} hold {name} twice: save the model again")
            found[name] = shape
    if config["n_layer"] > len(found):
        raise UserError(f"the weights in {folder} lack layers: fetch the model again")
    expected = expected_shapes(config)
    _expect_embeddings(folder, config.get("tie_word_embeddings", True), expected, found)
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            raise UserError(f"the weights in {folder} lack {key}: fetch the model again")
        if key not in expected and _ADAPTER.search(key):
            _refuse_adapter(folder)
        if key not in expected:
            raise UserError(
                f"the weights in {folder} hold {key}, which no GPT-2 has beside its LM head"
            )
        if found[key] != expected[key]:
            raise UserError(
                f"{key} in {folder} is {found[key]}, but config.json makes it {expected[key]}"
            )
    return config


def _expect_embeddings(folder: Path, tied: object, expected: Shapes, found: Shapes) -> None:
    """Settle in `expected` which of embedding and head a file must hold.

    A tied pair may be stored as one tensor, under either name. Two that differ are two, whatever
    the config says: so does transformers.
    """
    expected[HEAD] = expected[WTE]
    stored = [name for name in (WTE, HEAD) if name in found]
    if len(stored) != 1:
        return
    if not tied:
        raise UserError(
            f"{folder}/config.json says that embedding and head are two tensors "
            f"(tie_word_embeddings is false), but the weights hold only {stored[0]}: set it to "
            "true if they are one, else save the model again"
        )
    del expected[HEAD if stored == [WTE] else WTE]


def check_config(path: Path) -> dict[str, Any]:
    """What a GPT-2's config.json says of the model: sizes under GPT-2's own names, defaults filled
    in, and nothing about how the model was run.

    Raises UserError if it is another kind of model or asks for what we do not convert.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no config.json: give the folder that `save_pretrained` wrote"
        )
    config = read_json(path)
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UserError(f"{path} is of model type '{kind}': only gpt2 can be converted")
    for alias, name in _ALIASES.items():
        if alias in config:
            value = config.pop(alias)
            if config.setdefault(name, value) != value:
                raise UserError(f"{path}: {alias} is {value!r}, but {name} is {config[name]!r}")
    config = {**_DEFAULTS, "activation_function": "gelu_new", **config}
    _check_sizes(path, config)
    _check_numbers(path, config)
    activation = config["activation_function"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: activation '{activation}' cannot be converted, only {', '.join(ACTIVATIONS)}"
        )
    _check_function(path, config)
    return {key: value for key, value in config.items() if not _SWITCH.fullmatch(key)}


def _check_sizes(path: Path, config: dict[str, Any]) -> None:
    for key in (*_DEFAULTS, "n_inner"):
        value = config.get(key)
        if key == "n_inner" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{path}: {key} is {value!r}, which is not a size")
    if config["n_positions"] < 2:
        raise UserError(f"{path}: with n_positions 1 there is nothing to predict from")
    if config["n_embd"] % config["n_head"]:
        raise UserError(
            f"{path}: width {config['n_embd']} is no multiple of {config['n_head']} heads"
        )


def _check_numbers(path: Path, config: dict[str, Any]) -> None:
    for key in ("layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        value = config.get(key, 0.1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{path}: {key} is {value!r}, not a number from 0 to below 1")


def _check_function(path: Path, config: dict[str, Any]) -> None:
    """Refuse what makes the weights mean something else than GPT-2."""
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
    code = config.get("auto_map")
    if isinstance(code, dict) and any("Model" in name for name in code):
        raise UserError(
            f"{path} names a model of its own code (auto_map), which is not run: only transformers'"
            " own GPT-2 can be converted"
        )
    kinds = config.get("architectures") or ["GPT2LMHeadModel"]
    if not isinstance(kinds, list) or not any(_LANGUAGE_MODEL.fullmatch(str(k)) for k in kinds):
        raise UserError(
            f"{path} is of a {shortened(kinds[0] if isinstance(kinds, list) else kinds)}: only one "
            "that writes text (GPT2LMHeadModel) can be converted"
        )


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocabulary: int, folder: Path) -> None:
    """Raise UserError unless every number that the tokenizer gives is one of `vocabulary` rows."""
    numbers = set(tokenizer.get_vocab().values())
    if not numbers - set(tokenizer.all_special_ids):
        raise UserError(f"the tokenizer in {folder} has no tokens but special ones")
    if max(numbers) >= vocabulary:
        raise UserError(
            f"the tokenizer in {folder} gives token number {max(numbers)}, but the model has "
            f"{vocabulary} tokens, 0 to {vocabulary - 1}: they do not belong together"
        )


def expected_shapes(config: dict[str, Any]) -> Shapes:
    """Name -> shape of every tensor of a GPT-2, the tied output matrix left out."""
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    shapes: Shapes = {
        WTE: (config["vocab_size"], width),
        "wpe.weight": (config["n_positions"], width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for layer in range(config["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{layer}.{norm}.weight"] = (width,)
            shapes[f"h.{layer}.{norm}.bias"] = (width,)
        for part, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            shapes[f"h.{layer}.{part}.weight"] = (rows, columns)
            shapes[f"h.{layer}.{part}.bias"] = (columns,)
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model; empty if there are none."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index} names no weight files: fetch the model again")
    files = [folder / name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing: fetch the model again")
    return files


def _shapes(file: Path) -> Shapes:
    """Name -> shape of the tensors in one safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    try:
        with safe_open(file, framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(key)
                name = key.removeprefix("transformer.")
                # causal masks that old versions of transformers saved as if they were weights
                if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
                    continue
                if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise UserError(f"{file}: {key} is {part.get_dtype()}, not a float tensor")
                if name in shapes:
                    raise UserError(f"{file} holds {name} under two names: save the model again")
                # the head stands beside the transformer, not in it
                shapes[key if name == HEAD else name] = tuple(part.get_shape())
    except SafetensorError as error:
        raise UserError(
            f"{file} is cut short or damaged ({shortened(error)}): fetch the model again"
        ) from None
    return shapes


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the files of a tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)


def _refuse_adapter(folder: Path) -> NoReturn:
    raise UserError(
        f"{folder} holds an adapter: merge it into its model first"
        " (peft's merge_and_unload(), then save_pretrained(DIR), and give that folder)"
    )


def _no_safetensors(folder: Path) -> NoReturn:
    for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5"):
        for file in sorted(folder.glob(pattern)):
            raise UserError(
                f"{folder} has {file.name} but no safetensors, and a pickle can run code when it is"
                " opened: if you trust it, save it anew with transformers"
                " (GPT2LMHeadModel.from_pretrained(DIR).save_pretrained(DIR))"
            )
    raise UserError(f"{folder} has no model.safetensors: only safetensors weights are read")
