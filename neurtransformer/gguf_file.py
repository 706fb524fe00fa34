"""A dense model in one GGUF file, read through transformers and its `gguf`.

Such weights are stored in a few bits each and come out as float32: the model that is converted is
the one that the file holds, not the one that it was made from.
"""

import copy
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from neurtransformer.checkpoint import checked_config
from neurtransformer.errors import UserError, shortened

SUFFIX = ".gguf"
FAMILIES = ("llama",)
"""Families that were tried in this format."""


def check(file: Path) -> dict[str, Any]:
    """The config of the model in a GGUF file. Raises UserError for a damaged file, a kind of model
    that we do not convert, and if the package `gguf` is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"{file} is read with the package gguf, which is not installed: type "
            "`neurtx install smollm2` or `pip install gguf`"
        )
    status = file.stat()
    values = checked_config(file, copy.deepcopy(_config(file, status.st_mtime_ns, status.st_size)))
    if values["model_type"] not in FAMILIES:
        raise UserError(f"{file}: only models of type {', '.join(FAMILIES)} are read from GGUF")
    return values


@lru_cache(maxsize=1)
def _config(file: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    """What transformers makes of the header. It unpacks the whole vocabulary for that, which takes
    seconds, so what was read of a file that has not changed since is kept."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of any kind, from arithmetic on damaged headers
        raise UserError(
            f"{file} is damaged, or of a kind that transformers cannot read: {shortened(error)}"
        ) from None
    values: dict[str, Any] = config.to_dict()
    # says how the file was stored
    values.pop("quantization_config", None)
    return values
