"""Ways to break an input file, for the matrix of every command and every kind of broken input.

A way takes the path of a whole file and leaves something broken in its place.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim > 1)


def _fill(number: float) -> Way:
    """One number of a matrix of weights is another."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[_first_matrix(tensors)][0, 0] = number

    return _weights(change)


def _all_huge(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            most = torch.finfo(tensor.dtype).max
            tensors[name] = torch.full_like(tensor, min(1e30, most))


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


def _archive(change: Callable[[dict[str, bytes]], object]) -> Way:
    """A zip archive with other members."""

    def way(path: Path) -> None:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)

    return way


def _of_first(data: bytes) -> Way:
    """The first picture of an archive is another."""

    def change(members: dict[str, bytes]) -> None:
        members[min(name for name in members if name.endswith(".png"))] = data

    return _archive(change)


def _field(value: int, *, local: int, central: int) -> Way:
    """What the headers of the first member say at these places is another number, of 2 bytes."""

    def way(path: Path) -> None:
        data = bytearray(path.read_bytes())
        for mark, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            begin = data.index(mark) + at
            data[begin : begin + 2] = value.to_bytes(2, "little")
        path.write_bytes(data)

    return way


def _garbled(path: Path) -> None:
    """The packed bytes of the first member make no sense; the headers are whole."""
    with zipfile.ZipFile(path) as file:
        first = file.infolist()[0]
    data = bytearray(path.read_bytes())
    begin = first.header_offset + 30 + len(first.filename.encode())
    data[begin : begin + first.compress_size] = b"\xff" * first.compress_size
    path.write_bytes(data)


def _picture(side: int) -> bytes:
    """A PNG that says of itself that it has these sides, and little more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return len(data).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


ZIP: dict[str, Way] = {
    "no members": _archive(dict.clear),
    "a picture that is none": _of_first(b"no picture"),
    "a picture cut short": _of_first(_picture(105)[:40]),
    "a picture without pixels": _of_first(_picture(105)),
    "a picture of another size": _of_first(_picture(9)),
    "a picture of 2^30 sides": _of_first(_picture(2**30)),
    "a picture of 10^8 bytes": _of_first(bytes(10**8)),
    "a picture left out": _archive(lambda members: members.pop(min(members))),
    "a member that is garbled": _garbled,
    "a member with a password": _field(1, local=6, central=8),
    "a member packed in no known way": _field(77, local=8, central=10),
}
"""Of a zip archive of drawings."""


def _labels(text: bytes) -> Way:
    def change(members: dict[str, bytes]) -> None:
        for name in members:
            if name.endswith(".txt"):
                members[name] = text

    return _archive(change)


LABELS: dict[str, Way] = {
    "labels that are noise": _labels(bytes(range(256))),
    "labels of three words": _labels(b"a b c"),
    "labels of what is not there": _labels(b"run01/test/none.png run01/training/none.png"),
    "labels of another run": _labels(b"run01/test/item01.png run02/training/class01.png"),
    "runs of different sizes": _labels(
        b"run01/test/item01.png run01/training/class01.png\n"
        b"run01/test/item02.png run01/training/class02.png\n"
        b"run02/test/item01.png run02/training/class01.png"
    ),
}
"""Of the archive of the official runs."""


def _arrays(**arrays: Any) -> Way:
    def way(path: Path) -> None:
        whole = dict(np.load(path))
        np.savez_compressed(path, **(whole | arrays))

    return way


def _array_header(header: str) -> Way:
    """Arrays of which the first one's header says this."""

    def change(members: dict[str, bytes]) -> None:
        data = header.encode().ljust(118) + b"\n"
        members["images.npy"] = b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data

    return _archive(change)


ARRAYS: dict[str, Way] = {
    "no arrays": _archive(dict.clear),
    "arrays left out": _archive(lambda members: members.pop("images.npy")),
    "names left out": _archive(lambda members: members.pop("alphabet.npy")),
    "an array that is garbled": _garbled,
    "objects": _arrays(images=np.array([{}, 1], dtype=object)),
    "images of floats": _arrays(images=np.zeros((4, 3, 105, 105))),
    "images of another size": _arrays(images=np.zeros((4, 3, 9, 9), np.uint8)),
    "images of one dimension": _arrays(images=np.zeros(4, np.uint8)),
    "no images": _arrays(images=np.zeros((0, 3, 105, 105), np.uint8), alphabet=np.array([], "U4")),
    "no drawers": _arrays(images=np.zeros((4, 0, 105, 105), np.uint8)),
    "images of 255": _arrays(images=np.full((4, 3, 105, 105), 255, np.uint8)),
    "a single name": _arrays(alphabet=np.array("Greek")),
    "names of two dimensions": _arrays(alphabet=np.full((4, 2), "Greek")),
    "names that are numbers": _arrays(alphabet=np.zeros(4)),
    "an array of 2^50 bytes": _array_header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,), }"
    ),
    "an array of -4": _array_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4,), }"),
    "a header of no kind": _array_header("[1, 2]"),
    "a nested header": _array_header("(" * 60 + ")" * 60),
}
"""Of an .npz file of drawings."""


def _steps(steps: object) -> Way:
    """A checkpoint's record says something else of the steps that were done."""
    return lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "steps": steps})
    )


STEPS: dict[str, Way] = {
    "no steps": _steps([]),
    "steps of null": _steps(None),
    "steps that are a number": _steps(3),
    "steps of words": _steps([["1", "distil", "x", "y", "z"]]),
    "a step of too few": _steps([[1]]),
    "a step of too many": _steps([list(range(9))]),
    "a step of no stage": _steps([[1, "x", 1.0, 0.0, 0.0]]),
    "a loss of null": _steps([[1, "distil", None, 0.0, 0.0]]),
    "more steps than there are": _steps([[n, "distil", 1.0, 0.0, 0.0] for n in range(9)]),
}
"""Of the record of a checkpoint."""


def _optimizer(change: Callable[[torch.Tensor], torch.Tensor | None], part: str = "avg") -> Way:
    """A tensor of the optimizer's state is another, or none."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = min(n for n in tensors if n.startswith("optimizer.") and part in n)
        other = change(tensors.pop(name))
        if other is not None:
            tensors[name] = other

    return _weights(spoil)


OPTIMIZER: dict[str, Way] = {
    "a state of another shape": _optimizer(lambda x: x.reshape(-1)[:1].clone()),
    "a state of integers": _optimizer(lambda x: x.to(torch.int64)),
    "a state of NaN": _optimizer(lambda x: torch.full_like(x, float("nan"))),
    "a state of 1e30": _optimizer(lambda x: torch.full_like(x, 1e30)),
    "a state left out": _optimizer(lambda _: None),
    "a count of -5": _optimizer(lambda x: torch.full_like(x, -5), "step"),
    "a count left out": _optimizer(lambda _: None, "step"),
    "counts": _optimizer(lambda x: torch.ones(7), "step"),
}
"""Of the tensors of a checkpoint, beside those of WEIGHTS."""
