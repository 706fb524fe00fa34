"""Names of dense GPT-2 models -> where their weights come from -> a model that was checked.

Nothing heavy is imported until the files have passed: a mistake is answered at once.
"""

import difflib
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from neurtransformer import hub
from neurtransformer.errors import UserError
from neurtransformer.runs import BUNDLED, read_json

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

DEFAULT = "gpt2-nano"
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu")
# what a folder needs, and all that is fetched: no pickle, no code
_FILES = ["*.json", "*.safetensors", "merges.txt"]

log = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Known:
    """A short name: the hub id (None: bundled with the package) and the geometry."""

    hub: str | None
    layers: int
    width: int
    heads: int
    context: int = 1024
    vocabulary: int = 50257


KNOWN = {
    "gpt2-nano": Known(None, 4, 256, 4, 512, 4096),
    "distilgpt2": Known("distilbert/distilgpt2", 6, 768, 12),
    "gpt2-small": Known("openai-community/gpt2", 12, 768, 12),
    "gpt2-medium": Known("openai-community/gpt2-medium", 24, 1024, 16),
    "gpt2-large": Known("openai-community/gpt2-large", 36, 1280, 20),
    "gpt2-xl": Known("openai-community/gpt2-xl", 48, 1600, 25),
}


def list_models() -> list[dict[str, Any]]:
    """One dict per short name: name, layers, width, heads, context, vocabulary, parameters,
    source and `offline`, whether it loads on this machine without network."""
    rows = []
    for name, known in KNOWN.items():
        config = {
            "n_layer": known.layers,
            "n_embd": known.width,
            "n_positions": known.context,
            "vocab_size": known.vocabulary,
        }
        rows.append(
            {
                "name": name,
                "layers": known.layers,
                "width": known.width,
                "heads": known.heads,
                "context": known.context,
                "vocabulary": known.vocabulary,
                "parameters": sum(math.prod(s) for s in _expected(config).values()),
                "source": known.hub or "bundled",
                "offline": known.hub is None or _cached(known.hub) is not None,
            }
        )
    return rows


def load_dense(name: str) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]":
    """The dense GPT-2 called `name`, float32 and in eval mode, and its tokenizer.

    `name` is a short name (see KNOWN), a hub id or a local folder.
    Raises UserError for anything that is not a whole, finite GPT-2 of a kind we convert.
    """
    folder = locate(name)
    config = check_folder(folder)

    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    # whatever a damaged file makes these two say is the file's fault, not ours
    try:
        settings = GPT2Config.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"{folder}/config.json is refused: {_line(error)}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"the tokenizer in {folder} does not load: {_line(error)}") from error
    if not 0 < len(tokenizer) <= config["vocab_size"]:
        raise UserError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model "
            f"{config['vocab_size']}: they do not belong together"
        )
    model = GPT2LMHeadModel.from_pretrained(
        folder,
        config=settings,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{folder}: {key} holds NaN or infinite weights: fetch the model again")
    return model.eval(), tokenizer


# --- where the weights come from ---


def locate(name: str) -> Path:
    """The local folder that holds model `name`, fetched from the hub if need be.

    Raises UserError, within seconds, if there is no such model within reach.
    """
    known = KNOWN.get(name)
    if known is not None:
        return BUNDLED / name if known.hub is None else _from_hub(name, known.hub)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder.resolve()
    if name and folder.exists():
        raise UserError(f"{name} is a file: give the folder that holds config.json")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise UserError(f"no model folder at '{name}'; `neurtx models` lists the names")
    return _from_hub(name, name)


def _from_hub(name: str, repository: str) -> Path:
    cached = _cached(repository)
    if cached is not None:
        return cached
    if not hub.reachable():
        _unknown_name(name)
        raise UserError(
            f"model '{name}' is not in the local cache and there is no network to reach "
            f"{hub.endpoint()}: give a folder instead (on a machine with network type `hf download "
            f"{repository} --local-dir gpt2`, here `neurtx convert ./gpt2`), "
            f"or take {DEFAULT}, which is bundled"
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    try:
        # the config first: gigabytes of another kind of model need not be fetched to be refused
        check_config(Path(hf_hub_download(repository, "config.json")))
        log.info("fetching %s from %s", repository, hub.endpoint())
        return Path(snapshot_download(repository, allow_patterns=_FILES, ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise UserError(f"'{repository}' wants a login: type `hf auth login` first") from None
    except RepositoryNotFoundError:
        _unknown_name(name)
        raise UserError(f"there is no model '{repository}' on {hub.endpoint()}") from None
    except EntryNotFoundError:
        raise UserError(f"'{repository}' has no config.json: it is not a GPT-2") from None
    except (HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(f"could not fetch '{repository}': {_line(error)}; try again") from error


def _cached(repository: str) -> Path | None:
    """The folder of `repository` in the hub's local cache, if all that is needed is there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        complete = bool(_weight_files(folder))
    except UserError:
        return None
    return folder if complete and _has_tokenizer(folder) else None


def _unknown_name(name: str) -> None:
    """Raise UserError if `name` has no owner before a slash, as all but the oldest hub ids have."""
    if name in KNOWN or "/" in name:
        return
    near = difflib.get_close_matches(name, KNOWN, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown model '{name}': {meant}`neurtx models` lists the names; "
        "a hub id (owner/name) or a folder works too"
    )


# --- checks before belief ---


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of the GPT-2 in `folder`, after reading the headers of its weight files.

    Raises UserError unless config, tokenizer and every tensor are there and fit together.
    """
    config = check_config(folder / "config.json")
    files = _weight_files(folder)
    if not files:
        _no_safetensors(folder)
    if not _has_tokenizer(folder):
        raise UserError(
            f"{folder} has no tokenizer: put tokenizer.json (or vocab.json and merges.txt) into it"
        )
    found: Shapes = {}
    for file in files:
        found |= _shapes(file)
    if config["n_layer"] > len(found):
        raise UserError(f"the weights in {folder} lack layers: fetch the model again")
    expected = _expected(config)
    if "lm_head.weight" in found or not config.get("tie_word_embeddings", True):
        expected["lm_head.weight"] = expected["wte.weight"]
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            raise UserError(f"the weights in {folder} lack {key}: fetch the model again")
        if key not in expected:
            raise UserError(f"the weights in {folder} hold {key}, which no GPT-2 has")
        if found[key] != expected[key]:
            raise UserError(
                f"{key} in {folder} is {found[key]}, but config.json makes it {expected[key]}"
            )
    return config


def check_config(path: Path) -> dict[str, Any]:
    """The values of a GPT-2's config.json, defaults filled in.

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
    defaults = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}
    config = {**defaults, "vocab_size": 50257, "activation_function": "gelu_new", **config}
    for key in (*defaults, "vocab_size"):
        value = config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{path}: {key} is {value!r}, which is not a size")
    if config["n_embd"] % config["n_head"]:
        raise UserError(
            f"{path}: width {config['n_embd']} is no multiple of {config['n_head']} heads"
        )
    if config["activation_function"] not in ACTIVATIONS:
        raise UserError(
            f"{path}: activation '{config['activation_function']}' cannot be converted, "
            f"only {', '.join(ACTIVATIONS)}"
        )
    for option in ("add_cross_attention", "reorder_and_upcast_attn", "quantization_config"):
        if config.get(option):
            raise UserError(f"{path}: a model with {option} cannot be converted")
    return config


def _expected(config: dict[str, Any]) -> Shapes:
    """Name -> shape of every tensor of a GPT-2, the tied output matrix left out."""
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    shapes: Shapes = {
        "wte.weight": (config["vocab_size"], width),
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


def _weight_files(folder: Path) -> list[Path]:
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
                shapes[name] = tuple(part.get_shape())
    except SafetensorError as error:
        raise UserError(
            f"{file} is cut short or damaged ({_line(error)}): fetch the model again"
        ) from None
    return shapes


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
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


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
