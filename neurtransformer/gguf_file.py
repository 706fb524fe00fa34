"""A dense model in one GGUF file, read through transformers and its `gguf`.

Such weights are stored in a few bits each and come out as float32: the model that is converted is
the one that the file holds, not the one that it was made from.
"""

from pathlib import Path
from typing import Any

from neurtransformer.checkpoint import checked_config
from neurtransformer.errors import UserError, shortened

SUFFIX = ".gguf"
ARCHITECTURES = ("llama",)
"""Kinds of model that were tried in this format."""


def check(file: Path) -> dict[str, Any]:
    """The config of the model in a GGUF file. Raises UserError for a damaged file, a kind of model
    that we do not convert, and if the package `gguf` is not installed."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise UserError(
            f"{file} is read with the package gguf, which is not installed: type "
            "`neurtx install smollm2` or `pip install gguf`"
        ) from None
    try:
        reader = GGUFReader(file)
        field = reader.fields.get("general.architecture")
        kind = field.contents() if field is not None else None
    except Exception as error:  # of any kind, from arithmetic on damaged headers
        raise UserError(
            f"{file} is cut short or damaged ({shortened(error)}): fetch it again"
        ) from None
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{file} holds a model of kind '{kind}': only {', '.join(ARCHITECTURES)} is read "
            "from GGUF"
        )
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"{file} is refused: {shortened(error)}") from error
    values = config.to_dict()
    # says how the file was stored
    values.pop("quantization_config", None)
    return checked_config(file, values)
