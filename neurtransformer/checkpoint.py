"""What a folder of a dense language model holds, checked before it is believed.

Everything in it is carried over or refused: a key of config.json that makes another function of the
same weights, a tensor that no language model of its family has, a token number that the embedding
has no row for. Only headers of weight files are read here, so a mistake is answered at once.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from neurtransformer.errors import UserError, shortened
from neurtransformer.families import FAMILIES
from neurtransformer.families.base import HEAD, Family, Shapes
from neurtransformer.runs import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# how somebody ran the model or stored it, and nothing of what it is
_SWITCH = re.compile(
    r"output_(hidden_states|attentions)|(use_)?return_dict|use_cache|torchscript"
    r"|gradient_checkpointing|(torch_)?dtype|.*(attn|experts)_implementation.*"
)

_TOKENIZER_JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)

LARGEST = 1e18
"""The largest weight that is taken: norms square what they are given, and float32 ends at 3e38."""

_ADAPTER = re.compile(r"lora_|\.base_layer\.|adapter")

_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tokenizer.model",),
)


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of the language model in `folder`, after reading the headers of its weight files.

    Raises UserError unless config, tokenizer and every tensor are there and fit together.
    """
    for pattern in ("adapter_config.json", "adapter_model.*"):
        if any(folder.glob(pattern)):
            _refuse_adapter(folder)
    config = check_config(folder / "config.json")
    family = FAMILIES[config["model_type"]]
    files = weight_files(folder)
    if not files:
        _no_safetensors(folder)
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder} has no tokenizer: put tokenizer.json (or vocab.json and merges.txt) into it"
        )
    found: Shapes = {}
    for file in files:
        for name, shape in _shapes(file, family).items():
            if name in found:
                raise UserError(f"the weights in {folder} hold {name} twice: save the model again")
            found[name] = shape
    if family.sizes(config).layers > len(found):
        raise UserError(f"the weights in {folder} lack layers: fetch the model again")
    expected = family.expected_shapes(config)
    tied = config.get("tie_word_embeddings", True)
    _expect_embeddings(folder, family.embedding, tied, expected, found)
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            raise UserError(f"the weights in {folder} lack {key}: fetch the model again")
        if key not in expected and _ADAPTER.search(key):
            _refuse_adapter(folder)
        if key not in expected:
            raise UserError(
                f"the weights in {folder} hold {key}, which no {family.title} has beside its LM "
                "head"
            )
        if found[key] != expected[key]:
            raise UserError(
                f"{key} in {folder} is {found[key]}, but config.json makes it {expected[key]}"
            )
    return config


def _expect_embeddings(
    folder: Path, embedding: str, tied: object, expected: Shapes, found: Shapes
) -> None:
    """Settle in `expected` which of embedding and head a file must hold.

    A tied pair may be stored as one tensor, under either name. Two that differ are two, whatever
    the config says: so does transformers.
    """
    expected[HEAD] = expected[embedding]
    stored = [name for name in (embedding, HEAD) if name in found]
    if len(stored) != 1:
        return
    if not tied:
        raise UserError(
            f"{folder}/config.json says that embedding and head are two tensors "
            f"(tie_word_embeddings is false), but the weights hold only {stored[0]}: set it to "
            "true if they are one, else save the model again"
        )
    del expected[HEAD if stored == [embedding] else embedding]


def check_config(path: Path) -> dict[str, Any]:
    """What config.json says of the model: sizes under its family's own names, defaults filled in,
    and nothing about how the model was run.

    Raises UserError if it is of no family that we have, or asks for what we do not convert.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no config.json: give the folder that `save_pretrained` wrote"
        )
    return checked_config(path, read_json(path))


def checked_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`check_config` of what was read from `path`."""
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if str(kind).startswith("spiking_"):
        raise UserError(f"{path.parent} is a run already: `neurtx eval` measures it")
    if family is None:
        raise UserError(
            f"{path} is of model type '{kind}': only {' and '.join(FAMILIES)} can be converted"
        )
    config = family.checked_config(path, config)
    code = config.get("auto_map")
    if isinstance(code, dict) and any("Model" in name for name in code):
        raise UserError(
            f"{path} names a model of its own code (auto_map), which is not run: only transformers'"
            f" own {family.title} can be converted"
        )
    kinds = config.get("architectures") or [family.language_model_name]
    if not isinstance(kinds, list) or not any(
        family.language_model.fullmatch(str(k)) for k in kinds
    ):
        raise UserError(
            f"{path} is of a {shortened(kinds[0] if isinstance(kinds, list) else kinds)}: only one "
            f"that writes text ({family.language_model_name}) can be converted"
        )
    return {key: value for key, value in config.items() if not _SWITCH.fullmatch(key)}


def check_json(folder: Path, *names: str) -> None:
    """Raise UserError unless each of these files that is in `folder` holds a JSON object:
    transformers would wait for a pipe, and read a device to its end."""
    for name in names:
        if (folder / name).exists() or (folder / name).is_symlink():
            read_json(folder / name)


def load_tokenizer(folder: Path, vocabulary: int, **where: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`. where: more arguments for transformers.

    Raises UserError if it does not load, or gives a number that is none of `vocabulary` rows.
    """
    from transformers import AutoTokenizer

    if "gguf_file" not in where:  # what stands beside such a file is none of its
        check_json(folder, "config.json", *_TOKENIZER_JSON)
    # whatever a damaged file makes the library say is the file's fault, not ours
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **where
        )
        _check_tokenizer(tokenizer, vocabulary, folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the tokenizer in {folder} does not load: {shortened(error)}") from error
    return tokenizer


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocabulary: int, folder: Path) -> None:
    """Raise UserError unless every number that the tokenizer gives is one of `vocabulary` rows."""
    numbers = set(tokenizer.get_vocab().values())
    if not numbers - set(tokenizer.all_special_ids):
        raise UserError(f"the tokenizer in {folder} has no tokens but special ones")
    if max(numbers) >= vocabulary:
        raise UserError(
            f"the tokenizer in {folder} gives token number {max(numbers)}, but the model has "
            f"{vocabulary} tokens, 0 to {vocabulary - 1}: they do not belong together"
        )


def check_numbers(tensor: "Tensor", what: str) -> None:
    """Raise UserError for a tensor with numbers that nothing can be computed with: not finite, or
    beyond LARGEST. what: the tensor's name, for the message."""
    # the largest number of one that is NaN is NaN
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    if not math.isfinite(largest):
        raise UserError(f"{what} holds NaN or infinite numbers: fetch or make the model again")
    if largest > LARGEST:
        raise UserError(f"{what} holds a number of {largest:.0e}, whose square float32 cannot hold")


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


def _shapes(file: Path, family: Family) -> Shapes:
    """Name -> shape of the tensors in one safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    try:
        with safe_open(file, framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(key)
                name = key.removeprefix(family.prefix)
                # what old versions of transformers saved as if it were weights
                if family.buffers.fullmatch(name):
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
                " (AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR))"
            )
    raise UserError(f"{folder} has no model.safetensors: only safetensors weights are read")
