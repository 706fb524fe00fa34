"""Numbers of a netlist that are other ones, and signed: netx's HDF5 and the chip's tensors."""

import contextlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fuzzing import (
    CHANGES,
    CHIP,
    CONFIG,
    KEYS,
    MANIFEST,
    PROJECTION,
    TOKENIZER,
    fuzz,
    places,
    put,
    read,
    refused_by_the_command,
    refused_for_its_content,
    sign,
    sound,
    spoilt,
)
from neurtransformer.errors import UserError
from neurtransformer.integer.layout import layout
from neurtransformer.loihi import netlist

# --- HDF5 ---

W, B, V = "layer/1/weight", "layer/1/bias", "layer/1/neuron/vThMant"
DATASETS = (
    "layer/0/type",
    "layer/0/shape",
    "layer/1/type",
    "layer/1/shape",
    W,
    B,
    V,
    "layer/1/neuron/type",
    "layer/1/neuron/iDecay",
    "layer/1/neuron/vDecay",
)
SHAPE = (16, 8)
"""Of the weights of PROJECTION."""


@contextlib.contextmanager
def projection(folder: Path) -> Iterator[h5py.File]:
    """Open to be spoilt, and signed afterwards."""
    with h5py.File(folder / PROJECTION, "r+") as file:
        yield file
    sign(folder)


def replaced(name: str, **options: Any) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return spoil


def linked(name: str, link: Any) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return spoil


def moved(name: str) -> Callable[[h5py.File], None]:
    """A soft link to the same dataset elsewhere in the file."""

    def spoil(file: h5py.File) -> None:
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink("/elsewhere")

    return spoil


def virtual(file: h5py.File) -> None:
    del file[W]
    view = h5py.VirtualLayout(SHAPE, np.int16)
    view[:] = h5py.VirtualSource("other.net", W, SHAPE)
    file.create_virtual_dataset(W, view)


def chunk(file: h5py.File, data: bytes, mask: int = 0) -> None:
    """Weights whose one compressed chunk has other bytes in it."""
    del file[W]
    weight = file.create_dataset(W, SHAPE, np.int16, chunks=SHAPE, compression="gzip")
    weight.id.write_direct_chunk((0, 0), data, mask)


def broken(data: bytes, mask: int = 0) -> Callable[[h5py.File], None]:
    return lambda file: chunk(file, data, mask)


def bomb(file: h5py.File) -> None:
    """A chunk that says 256 bytes and inflates to 128 megabytes."""
    packer = zlib.compressobj(1)
    block = bytes(2**20)
    chunk(file, b"".join([*(packer.compress(block) for _ in range(128)), packer.flush()]))


def wide_chunks(file: h5py.File) -> None:
    del file[W]
    file.create_dataset(
        W, SHAPE, np.int16, chunks=(2**12, 2**12), maxshape=(None, None), compression="gzip"
    )[0, 0] = 2


def group(name: str) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        del file[name]
        file.create_group(name)

    return spoil


def added(name: str, value: Any) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        file[name] = value

    return spoil


def cycle(file: h5py.File) -> None:
    del file["layer/1"]
    file["layer/1"] = file["layer"]


EVEN = np.full(SHAPE, 2, np.int16)
BAD_HDF5: dict[str, Callable[[h5py.File], None]] = {
    "external link to a file": linked(W, h5py.ExternalLink("h.0.attn.c_proj.net", W)),
    "external link to a device": linked(W, h5py.ExternalLink("/dev/zero", W)),
    "external link, group": linked("layer/1", h5py.ExternalLink("h.0.mlp.c_proj.net", "layer/1")),
    "soft link in a circle": linked(W, h5py.SoftLink(f"/{W}")),
    "soft link": moved(W),
    "virtual dataset": virtual,
    "external storage": replaced(
        W, shape=SHAPE, dtype=np.int16, external=[("other", 0, h5py.h5f.UNLIMITED)]
    ),
    "huge shape": replaced(W, shape=(2**31, 2**31), dtype=np.int16, chunks=(64, 64)),
    "huge shape, thin": replaced(W, shape=(16, 2**40), dtype=np.int16, chunks=(16, 64)),
    "huge bias": replaced(B, shape=(2**40,), dtype=np.int16, chunks=(64,)),
    "huge threshold": replaced(V, shape=(2**40,), dtype=np.int16, chunks=(64,)),
    "huge type": replaced("layer/1/type", shape=(2**40,), dtype="S5", chunks=(64,)),
    "huge string": replaced("layer/1/type", shape=(2**12,), dtype="S1000000", chunks=(1,)),
    "no bytes behind it": replaced(W, shape=SHAPE, dtype=np.int16, chunks=SHAPE),
    "a fill value": replaced(W, shape=SHAPE, dtype=np.int16, chunks=SHAPE, fillvalue=2),
    "wide chunks": wide_chunks,
    "bomb": bomb,
    "broken chunk": broken(b"not zlib"),
    "short chunk": broken(b"x\x9c\x03\x00\x00\x00\x00\x01"),
    "short chunk, not compressed": broken(bytes(7), mask=1),
    "two filters": replaced(W, data=EVEN, compression="gzip", shuffle=True),
    "another filter": replaced(W, data=EVEN, compression="lzf"),
    "cycle": cycle,
    "group for a dataset": group(W),
    "dataset for a group": linked("layer/1/neuron", 3),
    "unsigned": replaced(W, data=EVEN.astype(np.uint16)),
    "complex": replaced(W, data=EVEN.astype(complex)),
    "compound": replaced(W, data=np.zeros(SHAPE, [("a", "i2"), ("b", "i2")])),
    "objects": replaced(W, data=np.full(SHAPE, "2", object), dtype=h5py.string_dtype()),
    "ragged": replaced(W, shape=SHAPE, dtype=h5py.vlen_dtype(np.int16)),
    "references": replaced(W, shape=SHAPE, dtype=h5py.ref_dtype),
    "region references": replaced(W, shape=SHAPE, dtype=h5py.regionref_dtype),
    "opaque": replaced(W, data=np.zeros(SHAPE, "V2")),
    "array type": replaced(W, shape=(16,), dtype=np.dtype((np.int16, (8,)))),
    "scalar": replaced(W, data=np.int16(2)),
    "null": replaced(W, data=h5py.Empty(np.int16)),
    "empty": replaced(W, shape=(0, 8), dtype=np.int16),
    "three axes": replaced(W, data=EVEN[None]),
    "booleans": replaced(W, data=EVEN.astype(bool)),
    "threshold, an array": replaced(V, data=np.array([3, 3])),
    "threshold, null": replaced(V, data=h5py.Empty(np.int64)),
    "threshold, a float": replaced(V, data=3.0),
    "bias whose magnitude overflows": replaced(B, data=np.full(16, -(2**63), np.int64)),
    "bias, a scalar": replaced(B, data=np.int16(0)),
    "type, ragged text": replaced("layer/1/type", data="dense"),
    "shape, compound": replaced("layer/1/shape", data=np.zeros(1, [("a", "i2")])),
    "another layer": added("layer/2/type", np.bytes_("dense")),
    "a delay": added("layer/1/delay", np.ones(16, np.int16)),
    "another key of the neuron": added("layer/1/neuron/vDecay2", 3),
    "no positive weight": replaced(W, data=-EVEN),
    "a silent input that is not announced": replaced(W, data=np.full((16, 9), 2, np.int16)),
}


@pytest.mark.parametrize("name", BAD_HDF5)
def test_other_hdf5(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        # for links and views that lead to it
        shutil.copy(folder / PROJECTION, folder / "netx/other.net")
        with projection(folder) as file:
            BAD_HDF5[name](file)
        refused_for_its_content(folder)


@pytest.mark.parametrize("spoil", [bomb, wide_chunks])
def test_a_bomb_is_refused_before_it_is_unpacked(
    whole: Path, spoil: Callable[[h5py.File], None]
) -> None:
    with spoilt(whole) as folder:
        with projection(folder) as file:
            spoil(file)
        with pytest.raises(UserError, match="does not stand in the file"):
            netlist.read(folder)


DTYPES = st.sampled_from(["i1", "<i2", ">i2", "i4", "i8", "u1", "u8", "f2", "f8", "S1", "S5", "?"])
NUMBERS = st.sampled_from([-(2**63), -256, -2, 0, 1, 2, 3, 4096, 2**17, 2**31, 2**63 - 1])


@fuzz
@given(
    st.sampled_from(DATASETS),
    st.lists(st.sampled_from([0, 1, 8, 9, 16, 17]), max_size=3).map(tuple),
    DTYPES,
    NUMBERS,
    st.sampled_from([None, "gzip", "lzf"]),
)
@example(W, SHAPE, ">i2", 2, "gzip")
@example(W, SHAPE, "i4", 4096, "gzip")
@example(B, (16,), "i8", -(2**63), None)
@example(V, (), "i8", 3, None)
def test_any_dataset(
    whole: Path, name: str, shape: tuple[int, ...], dtype: str, number: int, packed: str | None
) -> None:
    with spoilt(whole) as folder:
        with projection(folder) as file, np.errstate(all="ignore"):
            del file[name]
            data = np.full(shape, number).astype(dtype)
            file.create_dataset(
                name, data=data, compression=packed if data.size and shape else None
            )
        sound(read(folder))


# --- tensors ---


def split(folder: Path) -> tuple[bytes, bytes]:
    """The header of the chip's file, which is JSON, and what follows it."""
    content = (folder / CHIP).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + size].strip(), content[8 + size :]


def join(folder: Path, header: bytes, body: bytes, size: int | None = None) -> None:
    """The inverse, signed; `size` is a lie about the header's."""
    length = struct.pack("<Q", len(header) if size is None else size)
    (folder / CHIP).write_bytes(length + header + body)
    sign(folder)


def retype(folder: Path, dtype: str) -> None:
    header, body = split(folder)
    join(folder, header.replace(b'"I32"', f'"{dtype}"'.encode(), 1), body)


@fuzz
@given(st.data())
def test_any_header_of_tensors(whole: Path, data: st.DataObject) -> None:
    header, body = split(whole)
    values = json.loads(header)
    names = sorted(values)
    place = data.draw(st.sampled_from(places(values)))
    dtypes = st.sampled_from(["BF16", "F8_E4M3", "I64", "BOOL", "F32", "U8", "C64", "I32"])
    offsets = st.tuples(*2 * [st.sampled_from([0, 4, 32, 64, len(body), 2**62, 2**64 - 1])])
    new = data.draw(st.one_of(CHANGES, dtypes, offsets.map(list)))
    put(values, place, new, data.draw(KEYS | st.sampled_from(names)))
    lie = data.draw(st.sampled_from([None] * 5 + [0, 7, len(header) + 1, 2**31, 2**63, 2**64 - 1]))
    with spoilt(whole) as folder:
        join(folder, json.dumps(values).encode(), body, lie)
        sound(read(folder))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "F6_E2M3", "I64", "BOOL", "NONE"])
def test_tensors_of_another_type(whole: Path, dtype: str) -> None:
    with spoilt(whole) as folder:
        retype(folder, dtype)
        refused_for_its_content(folder)


def test_a_tensor_that_stands_twice(whole: Path, original: netlist.TextNetlist) -> None:
    with spoilt(whole) as folder:
        header, body = split(folder)
        values = json.loads(header)
        first = next(name for name in values if name != "__metadata__")
        twice = header[:-1] + f',"{first}":{json.dumps(values[first])}'.encode() + b"}"
        join(folder, twice, body)
        found = read(folder)
    if found is not None:
        assert np.array_equal(found.model.tensors[first], original.model.tensors[first])


@fuzz
@given(st.integers(0, 2**32 - 1), st.data())
def test_any_numbers_in_range(whole: Path, seed: int, data: st.DataObject) -> None:
    """What is in range is a network: it runs, and its steps equal its counts."""
    rng = np.random.default_rng(seed)
    with spoilt(whole) as folder:
        tensors = load_file(folder / CHIP)
        names = data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=6, unique=True))
        for name in names:
            entry = layout(CONFIG)[name]
            ends = data.draw(st.booleans())
            tensors[name] = (
                rng.choice([entry.low, entry.high], entry.shape)
                if ends
                else rng.integers(entry.low, entry.high + 1, entry.shape)
            ).astype(np.int32)
        save_file(tensors, folder / CHIP)
        sign(folder)
        sound(read(folder))


# --- what is as sound as it was ---


def other_weight(folder: Path) -> None:
    with projection(folder) as file:
        weight = file[W][()]
        weight[3, 5] = -weight[3, 5] or 2
        replaced(W, data=weight, compression="gzip")(file)


def other_threshold(folder: Path) -> None:
    with projection(folder) as file:
        replaced(V, data=7)(file)


def other_number(folder: Path) -> None:
    header, body = split(folder)
    at = json.loads(header)["h.0.mlp.c_fc.bias"]["data_offsets"][0]
    join(folder, header, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])


def exchanged(folder: Path) -> None:
    header, body = split(folder)
    values = json.loads(header)
    one, other = "h.0.attn.encode.theta", "h.0.mlp.encode.theta"
    values[one], values[other] = values[other], values[one]
    join(folder, json.dumps(values).encode(), body)


def json_with(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_bytes())
        change(values)
        (folder / name).write_text(json.dumps(values))
        sign(folder)

    return spoil


def turned(values: dict[str, Any]) -> None:
    tokens = values["model"]["vocab"]
    tokens["x"], tokens["y"] = tokens["y"], tokens["x"]


# what is changed, and the tensors that are others then
SOUND: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "nothing": (sign, set()),
    "a weight": (other_weight, {"h.0.mlp.c_fc.weight"}),
    "a threshold of stock netx": (other_threshold, set()),
    "a number": (other_number, {"h.0.mlp.c_fc.bias"}),
    "two tensors": (exchanged, {"h.0.attn.encode.theta", "h.0.mlp.encode.theta"}),
    "two tokens": (json_with(TOKENIZER, turned), set()),
    "the run": (json_with(MANIFEST, lambda values: values.update(run="elsewhere")), set()),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_signed_and_sound_is_read(
    whole: Path, original: netlist.TextNetlist, name: str
) -> None:
    """Else every property of a signed netlist would hold because none was ever read."""
    change, others = SOUND[name]
    with spoilt(whole) as folder:
        change(folder)
        found = read(folder)
        assert found is not None
        sound(found)
    tensors = original.model.tensors
    differ = {n for n, x in found.model.tensors.items() if not np.array_equal(x, tensors[n])}
    assert differ == others
    assert (found.manifest.run == "elsewhere") == (name == "the run")
    told = found.tokenizer.encode("x") == original.tokenizer.encode("y")
    assert told == (name == "two tokens")


# --- by the command ---


def to_a_device(folder: Path) -> None:
    with projection(folder) as file:
        BAD_HDF5["external link to a device"](file)


CLASSES: dict[str, Callable[[Path], None]] = {
    "HDF5": to_a_device,
    "tensors": lambda folder: retype(folder, "F8_E4M3"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_one_line_by_the_command(neurtx: Any, whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        CLASSES[name](folder)
        refused_by_the_command(neurtx, folder)
