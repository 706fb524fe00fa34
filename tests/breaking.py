"""Ways to break an input file, for the matrix of every command and every kind of broken input.

A way takes the path of a whole file and leaves something broken in its place.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Way = Callable[[Path], object]


def _instead(make: Callable[[Path], object]) -> Way:
    def way(path: Path) -> None:
        path.unlink()
        make(path)

    return way


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _noise(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(255 - byte for byte in data[: len(data) // 2])
    path.write_bytes(data)


ANY_FILE: dict[str, Way] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": _cut,
    "noise": _noise,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x80" * 40),
    "a folder": _instead(Path.mkdir),
    "a symlink loop": _instead(lambda path: path.symlink_to(path.name)),
    "a dangling link": _instead(lambda path: path.symlink_to("nowhere")),
    "a pipe": _instead(os.mkfifo),
    "a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "endless": lambda path: os.truncate(path, 2**42),
}
"""Of whatever file."""


def _text(text: str) -> Way:
    return lambda path: path.write_text(text)


JSON: dict[str, Way] = {
    "a list": _text("[1, 2]"),
    "a number": _text("1"),
    "an empty object": _text("{}"),
    "nested": _text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "values of other types": lambda path: path.write_text(
        json.dumps({key: [{}] for key in json.loads(path.read_text())})
    ),
    "values of null": lambda path: path.write_text(
        json.dumps(dict.fromkeys(json.loads(path.read_text())))
    ),
    "numbers of 10^18": lambda path: path.write_text(
        json.dumps(_numbers(json.loads(path.read_text()), 10**18))
    ),
    "numbers of -1": lambda path: path.write_text(
        json.dumps(_numbers(json.loads(path.read_text()), -1))
    ),
}
"""Of a JSON file."""


def _numbers(value: Any, number: float) -> Any:
    """`value` with every number in it replaced."""
    if isinstance(value, dict):
        return {key: _numbers(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, number) for item in value]
    return number if isinstance(value, int | float) and not isinstance(value, bool) else value


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Way:
    def way(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return way


def _first_matrix(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2)


def _fill(number: float) -> Way:
    """One number of a matrix of weights is another."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[_first_matrix(tensors)][0, 0] = number

    return _weights(change)


def _all_huge(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.full_like(tensor, 1e30)


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = _first_matrix(tensors)
    tensors[name] = tensors[name][:, 1:].contiguous()


def _integers(tensors: dict[str, torch.Tensor]) -> None:
    name = _first_matrix(tensors)
    tensors[name] = tensors[name].to(torch.int64)


def _without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[_first_matrix(tensors)]


def _header(header: bytes, size: int | None = None) -> Way:
    """A safetensors file with that header, which says of itself that it has so many bytes."""
    length = len(header) if size is None else size

    def way(path: Path) -> None:
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(64))

    return way


def _tensor(**says: object) -> bytes:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **says}
    return json.dumps({"x": entry}).encode()


WEIGHTS: dict[str, Way] = {
    "NaN": _fill(float("nan")),
    "infinity": _fill(float("inf")),
    "one weight of 1e30": _fill(1e30),
    "weights of 1e30": _weights(_all_huge),
    "another shape": _weights(_reshape),
    "integers": _weights(_integers),
    "a matrix left out": _weights(_without),
}
"""Of a file of weights, in floats."""

HEADERS: dict[str, Way] = {
    "a header of 2^60 bytes": _header(b"{}", 2**60),
    "a tensor of 2^50 bytes": _header(_tensor(shape=[2**48], data_offsets=[0, 2**50])),
    "a tensor outside of the file": _header(_tensor(data_offsets=[2**40, 2**40 + 16])),
    "a tensor that ends before it begins": _header(_tensor(data_offsets=[16, 0])),
    "a negative shape": _header(_tensor(shape=[-4])),
    "a type that is none": _header(_tensor(dtype="OBJECT")),
    "a nested header": _header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
}
"""Of a safetensors file: headers that lie, which must neither be believed nor take memory."""


YAML: dict[str, Way] = {
    "code": _text("!!python/object/apply:os.system ['touch owned']"),
    "a list": _text("[1, 2]"),
    "a word": _text("word"),
    "a bomb": _text(
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    ),
    "nested": _text("[" * 100_000),
    "a key twice nested in itself": _text("a: &a [*a]"),
    "tabs": _text("a:\n\t- b"),
    "another file": _text("timesteps: !include /etc/passwd"),
    "a NaN": _text("timesteps: .nan"),
}
"""Of a YAML file."""
