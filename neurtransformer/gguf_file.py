"""A dense model in one GGUF file, read through transformers and its `gguf`.

Such weights are stored in a few bits each and come out as float32: the model that is converted is
the one that the file holds, not the one that it was made from.
"""

import copy
import importlib.util
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from neurtransformer.checkpoint import checked_config
from neurtransformer.errors import UserError, shortened

SUFFIX = ".gguf"
FAMILIES = ("llama",)
"""Families that were tried in this format."""

# bytes of each type of number, by its number in the format (github.com/ggml-org/ggml, docs/gguf.md)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9

_MOST_FIELDS, _MOST_ITEMS, _MOST_DIMENSIONS = 2**16, 2**22, 4
"""Far more than a model has: items are the tokens of a vocabulary."""


class _Stream(NamedTuple):
    """A file that is read from its beginning, and its size in bytes."""

    file: BinaryIO
    size: int


def check(file: Path) -> dict[str, Any]:
    """The config of the model in a GGUF file. Raises UserError for a damaged file, a kind of model
    that we do not convert, and if the package `gguf` is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"{file} is read with the package gguf, which is not installed: type "
            "`neurtx install smollm2` or `pip install gguf`"
        )
    _check_header(file)
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


def _check_header(file: Path) -> None:
    """Raise UserError unless all that the header names lies within the file.

    The package `gguf` believes every length that it reads, and would fill the memory with an array
    that a damaged header makes 2^60 items long.
    """
    try:
        with file.open("rb") as opened:
            stream = _Stream(opened, file.stat().st_size)
            if opened.read(4) != b"GGUF" or _number(stream, 4) not in (2, 3):
                raise ValueError("it does not begin as a GGUF file of version 2 or 3")
            tensors, fields = _number(stream, 8), _number(stream, 8)
            if max(tensors, fields) > _MOST_FIELDS:
                raise ValueError(f"its header says that it has {max(tensors, fields)} entries")
            for _ in range(fields):
                _skip(stream, _number(stream, 8))
                _skip_value(stream, _number(stream, 4))
            for _ in range(tensors):
                _skip_tensor(stream)
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged, or no GGUF file: {shortened(error)}") from None


def _number(stream: _Stream, width: int) -> int:
    data = stream.file.read(width)
    if len(data) < width:
        raise ValueError("it is cut short")
    return int.from_bytes(data, "little")


def _skip(stream: _Stream, length: int) -> None:
    if length > stream.size - stream.file.tell():
        raise ValueError(f"its header names {length} bytes that are not there")
    stream.file.seek(length, 1)


def _skip_value(stream: _Stream, kind: int, *, within_array: bool = False) -> None:
    if kind in _WIDTHS:
        _skip(stream, _WIDTHS[kind])
    elif kind == _STRING:
        _skip(stream, _number(stream, 8))
    elif kind == _ARRAY and not within_array:
        kind, length = _number(stream, 4), _number(stream, 8)
        if length > _MOST_ITEMS:
            raise ValueError(f"its header has an array of {length} items")
        for _ in range(length):
            _skip_value(stream, kind, within_array=True)
    else:
        raise ValueError(f"its header has a value of type {kind}")


def _skip_tensor(stream: _Stream) -> None:
    """Name, shape, type and place of a tensor, of which a value takes a bit or more."""
    _skip(stream, _number(stream, 8))
    dimensions = _number(stream, 4)
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"its header has a tensor of {dimensions} dimensions")
    values = math.prod(_number(stream, 8) for _ in range(dimensions))
    if values > 8 * stream.size:
        raise ValueError(f"its header has a tensor of {values} values, more than the file holds")
    _skip(stream, 4 + 8)
