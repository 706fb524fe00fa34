"""Netlists damaged in every way there is: one clear error, or the very network that was written.

Two promises. Whatever byte of a netlist is wrong, `netlist.read` refuses it or has read what was
written. And where the damage is signed, so that every hash agrees, it refuses the netlist or reads
another sound network, which runs: then only the checks of the content stand between the file and
the chip.
"""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neurtransformer.errors import UserError
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.layout import check, layout
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist
from neurtransformer.loihi.simulate import prompt_ids, simulate

MANY = "NEURTX_FUZZ_EXAMPLES"
fuzz = settings(
    max_examples=int(os.environ.get(MANY, "30")),
    deadline=None,
    derandomize=MANY not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

CHIP, MANIFEST = "chip.safetensors", "manifest.json"
PROJECTION, TOKENIZER = "netx/h.0.mlp.c_fc.net", "tokenizer/tokenizer.json"
CONFIG = IntegerConfig(
    layers=1,
    width=8,
    heads=2,
    hidden=16,
    vocabulary=260,
    positions=16,
    timesteps=4,
    coding="rate",
    epsilon=1e-5,
    stream_bits=8,
)
CPU_SECONDS, SECONDS, MEMORY = 10, 120, 2**29
"""More than reading takes here on a busy machine, and less than a hang or a bomb."""


def tensors_of(seed: int) -> dict[str, np.ndarray]:
    """Integers that fit the layout, biases and thresholds near the middle of their ranges."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, entry in layout(CONFIG).items():
        if entry.home == "synapses":
            x = 2 * rng.integers(-127, 128, entry.shape)
        elif name.endswith("shift") and not name.endswith("ssa.shift"):
            x = rng.integers(0, 12, entry.shape)
        else:
            x = rng.integers(max(entry.low, -9999), min(entry.high, 9999) + 1, entry.shape)
        found[name] = x.astype(entry.dtype)
    return found


def small_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", unk_token="<end>"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A netlist of a network as small as can be: reading it takes a moment. For reading only."""
    folder = tmp_path_factory.mktemp("fuzz") / "whole"
    folder.mkdir()
    netlist.write(folder, IntegerGPT2(CONFIG, tensors_of(0)), small_tokenizer(), "rate")
    return folder


@pytest.fixture(scope="module")
def original(whole: Path) -> netlist.Netlist:
    return netlist.read(whole)


@contextlib.contextmanager
def spoilt(whole: Path) -> Iterator[Path]:
    """A copy to spoil. Its place is always the same, so that hypothesis may try again."""
    folder = whole.with_name("spoilt")
    shutil.copytree(whole, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def sign(folder: Path) -> None:
    """Make hashes and sizes agree with what stands in the files, so that only content tells."""
    path = folder / MANIFEST
    values = json.loads(path.read_bytes())
    for name in values["files"]:
        if (folder / name).is_file():
            values["files"][name] = netlist._entry(folder / name).model_dump()
    path.write_text(json.dumps(signed(values)))


def signed(values: Any) -> Any:
    """The manifest with the checksum it would have, where it is one at all."""
    try:
        manifest = netlist.Manifest.model_validate(values)
    except (ValidationError, RecursionError):
        return values
    return {**values, "checksum": netlist.checksum(manifest)}


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """No hang and no bomb: a limit on time and on memory that is not yet there."""

    def late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail("it hangs")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    before = [signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, memory[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def read(folder: Path) -> netlist.Netlist | None:
    """What was read, or None where it was refused as it should be."""
    try:
        with bounded():
            return netlist.read(folder)
    except UserError as error:
        text = str(error)
        assert len(text.splitlines()) == 1 and text.isprintable(), text
        assert len(text) < 1000, text[:2000]
        assert str(folder) in text, text
        return None


def same(found: netlist.Netlist | None, original: netlist.Netlist) -> None:
    """Refused, or equal to what was written."""
    if found is None:
        return
    assert found.manifest == original.manifest
    assert found.model.tensors.keys() == original.model.tensors.keys()
    for name, x in original.model.tensors.items():
        assert np.array_equal(found.model.tensors[name], x), name
    assert found.tokenizer.get_vocab() == original.tokenizer.get_vocab()


def sound(found: netlist.Netlist | None) -> None:
    """Refused, or a network that runs and agrees with itself."""
    if found is None:
        return
    check(found.manifest.config, found.model.tensors, pytest.fail)
    most = found.manifest.config.vocabulary - 1
    ids = [0, min(7, most), most]
    with bounded(), contextlib.suppress(UserError):
        found.model.check_length(3)
        found.model.logits(np.array([ids]))
        values = simulate(found, ids, "integer")
        assert values["mismatches"] == 0 and values["same_text"], values
        simulate(found, prompt_ids(found, "x y", 1), "integer")


# --- bytes ---


@dataclasses.dataclass
class Edit:
    """Some bytes put in place of `length` bytes at `at`; sizes beyond the end are cut to it."""

    at: int
    length: int
    put: bytes | None
    """None: what is there, doubled."""

    def of(self, data: bytes) -> bytes:
        at = self.at % (len(data) + 1)
        there = data[at : at + self.length]
        return data[:at] + (2 * there if self.put is None else self.put) + data[at + len(there) :]


def edits(size: int) -> st.SearchStrategy[list[Edit]]:
    """Bytes flipped, inserted, deleted, doubled, zeroed, cut off: at the beginning, at the end
    and anywhere between."""
    at = st.one_of(
        st.integers(0, 256), st.integers(0, size), st.integers(0, 256).map(lambda n: size - n)
    )
    lengths = st.sampled_from([1, 1, 1, 4, 8, 64, 1000])
    byte = st.integers(0, 255).map(lambda n: bytes([n]))
    edit = st.one_of(
        st.builds(Edit, at, st.just(1), byte),
        st.builds(Edit, at, st.just(1), byte),
        st.builds(Edit, at, st.just(0), st.binary(min_size=1, max_size=16)),
        st.builds(Edit, at, lengths, st.just(b"")),
        st.builds(Edit, at, lengths, st.none()),
        lengths.flatmap(lambda n: st.builds(Edit, at, st.just(n), st.just(bytes(n)))),
        lengths.flatmap(lambda n: st.builds(Edit, at, st.just(n), st.just(b"\xff" * n))),
        st.builds(Edit, at, st.just(size), st.just(b"")),
    )
    return st.lists(edit, min_size=1, max_size=3)


FILES = (CHIP, PROJECTION, "netx/embed.table.net", TOKENIZER, "tokenizer/tokenizer_config.json")


def change(path: Path, changes: list[Edit]) -> bool:
    """Whether anything is other than it was."""
    data = before = path.read_bytes()
    for edit in changes:
        data = edit.of(data)
    path.write_bytes(data)
    return data != before


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@fuzz
@given(st.data())
def test_any_byte(whole: Path, original: netlist.Netlist, name: str, data: st.DataObject) -> None:
    with spoilt(whole) as folder:
        changed = change(folder / name, data.draw(edits((whole / name).stat().st_size)))
        found = read(folder)
        same(found, original)
        if changed and name != MANIFEST:
            assert found is None


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@fuzz
@given(st.data())
def test_any_byte_signed(whole: Path, name: str, data: st.DataObject) -> None:
    with spoilt(whole) as folder:
        change(folder / name, data.draw(edits((whole / name).stat().st_size)))
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            sign(folder)  # a manifest may not be one any more
        sound(read(folder))


# --- the manifest's values ---

HUGE = 10**30
WORDS = st.sampled_from(
    ["", "rate", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "a\nb", "\x1b[31m", "é"]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**24, 2**31, 2**63, HUGE, -HUGE, 1024]),
    st.floats(),
    WORDS,
    st.text(st.characters(), max_size=9),
)
KEYS = WORDS | st.text(st.characters(), max_size=9)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
REMOVE, RENAME, DOUBLE = object(), object(), object()


def places(values: Any, above: tuple = ()) -> list[tuple]:
    """The path to every node of a JSON document, but for the document itself."""
    if isinstance(values, dict):
        inner = list(values.items())
    elif isinstance(values, list):
        inner = list(enumerate(values))
    else:
        return [above]
    deeper = [place for key, value in inner for place in places(value, (*above, key))]
    return ([above] if above else []) + deeper


def put(values: Any, place: tuple, new: Any, key: str) -> None:
    at = values
    for part in place[:-1]:
        at = at[part]
    last = place[-1]
    if new is REMOVE:
        del at[last]
    elif new is RENAME and isinstance(at, dict):
        at[key] = at.pop(last)
    elif new is DOUBLE and isinstance(at, list):
        at.insert(last, at[last])
    elif new is not RENAME and new is not DOUBLE:
        at[last] = new


@pytest.mark.parametrize("sealed", [False, True])
@fuzz
@given(st.data())
def test_any_value_of_the_manifest(
    whole: Path, original: netlist.Netlist, sealed: bool, data: st.DataObject
) -> None:
    values = json.loads((whole / MANIFEST).read_bytes())
    # by its first part first, or the many nodes of the networks would have it all
    part = data.draw(st.sampled_from(sorted(values)))
    place = data.draw(st.sampled_from([p for p in places(values) if p[0] == part]))
    new = data.draw(VALUES | st.sampled_from([REMOVE, RENAME, DOUBLE]))
    put(values, place, new, data.draw(KEYS))
    with spoilt(whole) as folder:
        (folder / MANIFEST).write_text(json.dumps(signed(values) if sealed else values))
        found = read(folder)
        if sealed:
            sound(found)
        else:
            same(found, original)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format": "neurtx netlist", "version": ' + "9" * 4000 + "}",
        '{"format": "neurtx netlist", "version": ' + "9" * 5000 + "}",
        '{"format": "neurtx netlist", "version": "' + "x" * 10**6 + '"}',
        '{"format": "neurtx netlist", "version": {"a\\nb\\u2028": "\\ud800"}}',
        '{"format": NaN}',
        "\ufeff{}",
        "Infinity",
    ],
)
def test_a_manifest_of_strange_json(whole: Path, text: str) -> None:
    with spoilt(whole) as folder:
        (folder / MANIFEST).write_text(text)
        assert read(folder) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"run": null', '"run": "elsewhere"'),
        ('"run": null', '"run": null, "run": "elsewhere"'),
        ('"epsilon": 1e-05', '"epsilon": 0.5'),
        ('"host": "', '"host": "never '),
        ('"transport": "', '"transport": "never '),
    ],
)
def test_what_only_the_checksum_tells(whole: Path, old: str, new: str) -> None:
    text = (whole / MANIFEST).read_text()
    assert old in text
    with spoilt(whole) as folder:
        (folder / MANIFEST).write_text(text.replace(old, new, 1))
        assert read(folder) is None


@pytest.mark.parametrize("name", ["\ud800", "x" * 5000, "a\0b", "a\nb", "", "."])
def test_a_name_that_no_file_has(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        values = json.loads((folder / MANIFEST).read_bytes())
        values["files"][name] = {"sha256": "0" * 64, "bytes": 0}
        (folder / MANIFEST).write_text(json.dumps(signed(values)))
        assert read(folder) is None


# --- what stands in place of a file ---


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def outside(path: Path) -> None:
    shutil.copy(path, path.parents[2] / "elsewhere")
    path.unlink()
    path.symlink_to(path.parents[2] / "elsewhere")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sparse(path: Path) -> None:
    os.truncate(path, 2**40)


@pytest.mark.parametrize("name", [MANIFEST, CHIP, PROJECTION, TOKENIZER])
@pytest.mark.parametrize("spoil", [fifo, directory, loop, dangling, device, empty, sparse])
def test_no_file_at_all(whole: Path, name: str, spoil: Callable[[Path], None]) -> None:
    with spoilt(whole) as folder:
        spoil(folder / name)
        assert read(folder) is None


@pytest.mark.parametrize("name", [CHIP, PROJECTION, TOKENIZER])
def test_a_link_that_leads_out(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        outside(folder / name)
        assert read(folder) is None


@pytest.mark.parametrize("name", [MANIFEST, CHIP, PROJECTION, TOKENIZER])
def test_a_file_that_may_not_be_read(
    whole: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the system is played."""
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == whole / name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert read(whole) is None


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


def bomb(file: h5py.File) -> None:
    """A chunk that says 256 bytes and inflates to 128 megabytes."""
    del file[W]
    weight = file.create_dataset(W, SHAPE, np.int16, chunks=SHAPE, compression="gzip")
    packer = zlib.compressobj(1)
    block = bytes(2**20)
    data = b"".join([*(packer.compress(block) for _ in range(128)), packer.flush()])
    weight.id.write_direct_chunk((0, 0), data)


def broken(data: bytes, mask: int = 0) -> Callable[[h5py.File], None]:
    """A compressed chunk with other bytes in it."""

    def spoil(file: h5py.File) -> None:
        del file[W]
        weight = file.create_dataset(W, SHAPE, np.int16, chunks=SHAPE, compression="gzip")
        weight.id.write_direct_chunk((0, 0), data, mask)

    return spoil


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
        with h5py.File(folder / PROJECTION, "r+") as file:
            BAD_HDF5[name](file)
        sign(folder)
        assert read(folder) is None


@pytest.mark.parametrize("spoil", [bomb, wide_chunks])
def test_a_bomb_is_refused_before_it_is_unpacked(
    whole: Path, spoil: Callable[[h5py.File], None]
) -> None:
    with spoilt(whole) as folder:
        with h5py.File(folder / PROJECTION, "r+") as file:
            spoil(file)
        sign(folder)
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
        with h5py.File(folder / PROJECTION, "r+") as file, np.errstate(all="ignore"):
            del file[name]
            data = np.full(shape, number).astype(dtype)
            file.create_dataset(
                name, data=data, compression=packed if data.size and shape else None
            )
        sign(folder)
        sound(read(folder))


# --- tensors ---


def written(header: bytes, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


@fuzz
@given(st.data())
def test_any_header_of_tensors(whole: Path, data: st.DataObject) -> None:
    content = (whole / CHIP).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    values, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = sorted(values)
    place = data.draw(st.sampled_from(places(values)))
    dtypes = st.sampled_from(["BF16", "F8_E4M3", "I64", "BOOL", "F32", "U8", "C64", "I32"])
    offsets = st.tuples(*2 * [st.sampled_from([0, 4, 32, 64, len(body), 2**62, 2**64 - 1])])
    new = data.draw(
        st.one_of(VALUES, dtypes, offsets.map(list), st.sampled_from([REMOVE, RENAME, DOUBLE]))
    )
    put(values, place, new, data.draw(KEYS | st.sampled_from(names)))
    lie = data.draw(st.sampled_from([None] * 5 + [0, 7, size + 1, 2**31, 2**63, 2**64 - 1]))
    with spoilt(whole) as folder:
        header = json.dumps(values).encode()
        (folder / CHIP).write_bytes(written(header, body, lie))
        sign(folder)
        sound(read(folder))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "F6_E2M3", "I64", "BOOL", "NONE"])
def test_tensors_of_another_type(whole: Path, dtype: str) -> None:
    with spoilt(whole) as folder:
        content = (folder / CHIP).read_bytes().replace(b'"I32"', f'"{dtype}"'.encode(), 1)
        (size,) = struct.unpack("<Q", content[:8])
        content = written(content[8 : content.index(b"}}") + 2], content[8 + size :])
        (folder / CHIP).write_bytes(content)
        sign(folder)
        assert read(folder) is None


def test_a_tensor_that_stands_twice(whole: Path) -> None:
    with spoilt(whole) as folder:
        content = (folder / CHIP).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + size].strip()
        values = json.loads(header)
        first = next(name for name in values if name != "__metadata__")
        twice = header[:-1] + f',"{first}":{json.dumps(values[first])}'.encode() + b"}"
        (folder / CHIP).write_bytes(written(twice, content[8 + size :]))
        sign(folder)
        sound(read(folder))


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


# --- the tokenizer ---

RUNS_CODE = {
    "auto_map": {"AutoTokenizer": ["code.Bad", "code.Bad"]},
    "tokenizer_class": "Bad",
}
BAD_TOKENIZERS: dict[str, dict[str, Any]] = {
    "code to run": {"tokenizer/tokenizer_config.json": RUNS_CODE},
    "code to run, known class": {
        "tokenizer/tokenizer_config.json": {
            **RUNS_CODE,
            "tokenizer_class": "TokenizersBackend",
            "extra_special_tokens": 3,
        }
    },
    "no object": {"tokenizer/tokenizer.json": []},
    "no model": {"tokenizer/tokenizer.json": {"version": "1.0"}},
    "a token beyond the vocabulary": {
        "tokenizer/tokenizer.json": {
            "version": "1.0",
            "model": {"type": "WordLevel", "vocab": {"x": 5000, "<end>": 0}, "unk_token": "<end>"},
        }
    },
    "config is a number": {"tokenizer/tokenizer_config.json": 3},
}


def ran(folder: Path) -> Path:
    """Leaves code that would note here that it was run."""
    mark = folder.parent / "ran"
    mark.unlink(missing_ok=True)
    code = f"open({str(mark)!r}, 'w')\nclass Bad: pass\n"
    (folder / "tokenizer/code.py").write_text(code)
    values = json.loads((folder / MANIFEST).read_bytes())
    values["files"]["tokenizer/code.py"] = {"sha256": "0" * 64, "bytes": 0}
    (folder / MANIFEST).write_text(json.dumps(values))
    return mark


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_other_tokenizer(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        mark = ran(folder)
        for file, value in BAD_TOKENIZERS[name].items():
            (folder / file).write_text(json.dumps(value))
        sign(folder)
        assert read(folder) is None
        assert not mark.exists()


def test_no_code_of_a_tokenizer_is_run(whole: Path) -> None:
    """A map to code beside a class that is known: the class is taken."""
    with spoilt(whole) as folder:
        mark = ran(folder)
        path = folder / "tokenizer/tokenizer_config.json"
        values = {**json.loads(path.read_bytes()), "auto_map": RUNS_CODE["auto_map"]}
        path.write_text(json.dumps(values))
        sign(folder)
        sound(read(folder))
        assert not mark.exists()


@pytest.mark.parametrize("name", ["added_tokens.json", "vocab.json", "config.json", "x/y.pkl"])
def test_a_file_beside_the_tokenizer_that_is_not_listed(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        path = folder / "tokenizer" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"more": 7}')
        assert read(folder) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@fuzz
@given(st.data())
def test_any_value_of_the_tokenizer(whole: Path, name: str, data: st.DataObject) -> None:
    values = json.loads((whole / "tokenizer" / name).read_bytes())
    part = data.draw(st.sampled_from(sorted(values)))
    place = data.draw(st.sampled_from([p for p in places(values) if p[0] == part]))
    new = data.draw(VALUES | st.sampled_from([REMOVE, RENAME, DOUBLE]))
    put(values, place, new, data.draw(KEYS))
    with spoilt(whole) as folder:
        (folder / "tokenizer" / name).write_text(json.dumps(values))
        sign(folder)
        sound(read(folder))


# --- by the command ---


def flipped(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def hdf5(folder: Path) -> None:
    with h5py.File(folder / PROJECTION, "r+") as file:
        BAD_HDF5["external link to a device"](file)
    sign(folder)


def tokens(folder: Path) -> None:
    ran(folder)
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(RUNS_CODE))
    sign(folder)


def header(folder: Path) -> None:
    content = (folder / CHIP).read_bytes().replace(b'"I32"', b'"F8_E4M3"', 1)
    (folder / CHIP).write_bytes(content)
    sign(folder)


def surrogate(folder: Path) -> None:
    values = json.loads((folder / MANIFEST).read_bytes())
    values["files"]["\ud800\n"] = {"sha256": "0" * 64, "bytes": 0}
    (folder / MANIFEST).write_text(json.dumps(values))


CLASSES: dict[str, Callable[[Path], None]] = {
    "bytes": lambda folder: flipped(folder, PROJECTION),
    "manifest": lambda folder: flipped(folder, MANIFEST),
    "strange name": surrogate,
    "HDF5": hdf5,
    "tensors": header,
    "tokenizer": tokens,
    "loop": lambda folder: loop(folder / CHIP),
    "pipe": lambda folder: fifo(folder / PROJECTION),
}


@pytest.mark.parametrize("name", CLASSES)
def test_one_line_by_the_command(neurtx: Any, whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        CLASSES[name](folder)
        words = (str(folder), "--prompt", "x", "--backend", "integer", "--json")
        assert str(folder) in neurtx("simulate", *words).mistake()


@pytest.mark.slow
def test_many() -> None:
    """The properties above with many examples, other ones each time."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "any_", __file__]
    done = subprocess.run(words, env={"NEURTX_FUZZ_EXAMPLES": "500", **os.environ}, check=False)
    assert done.returncode == 0
