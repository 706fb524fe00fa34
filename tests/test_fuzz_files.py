"""Files of a netlist with any byte of theirs wrong, or with something else in their place."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import (
    CHIP,
    MANIFEST,
    MANY,
    PROJECTION,
    TOKENIZER,
    fuzz,
    read,
    refused_by_the_command,
    same,
    sign,
    sound,
    spoilt,
)
from neurtransformer.loihi import netlist

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
def test_any_byte(
    whole: Path, original: netlist.TextNetlist, name: str, data: st.DataObject
) -> None:
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


# --- what stands in place of a file ---


def instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def link(target: str) -> Callable[[Path], None]:
    return instead(lambda path: path.symlink_to(target))


STAND_INS: dict[str, Callable[[Path], Any]] = {
    "fifo": instead(os.mkfifo),
    "directory": instead(Path.mkdir),
    "loop": instead(lambda path: path.symlink_to(path.name)),
    "dangling": link("nowhere"),
    "device": link("/dev/zero"),
    "empty": lambda path: path.write_bytes(b""),
    "sparse": lambda path: os.truncate(path, 2**40),
}


@pytest.mark.parametrize("name", [MANIFEST, CHIP, PROJECTION, TOKENIZER])
@pytest.mark.parametrize("kind", STAND_INS)
def test_no_file_at_all(whole: Path, name: str, kind: str) -> None:
    with spoilt(whole) as folder:
        STAND_INS[kind](folder / name)
        assert read(folder) is None


@pytest.mark.parametrize("name", [CHIP, PROJECTION, TOKENIZER])
def test_a_link_that_leads_out(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        outside = shutil.copy(folder / name, folder.parent / "outside")
        link(str(outside))(folder / name)
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


# --- by the command ---


def flipped(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CLASSES: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda folder: flipped(folder, PROJECTION),
    "manifest": lambda folder: flipped(folder, MANIFEST),
    "loop": lambda folder: STAND_INS["loop"](folder / CHIP),
    "pipe": lambda folder: STAND_INS["fifo"](folder / PROJECTION),
}


@pytest.mark.parametrize("name", CLASSES)
def test_one_line_by_the_command(neurtx: Any, whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        CLASSES[name](folder)
        refused_by_the_command(neurtx, folder)


@pytest.mark.slow
def test_many() -> None:
    """The properties in these files with many examples, other ones each time."""
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_fuzz_*.py"))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "any_", *files]
    done = subprocess.run(words, env={MANY: "500", **os.environ}, check=False)
    assert done.returncode == 0
