"""JSON of a netlist that says something else: the manifest's, and the tokenizer's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import (
    MANIFEST,
    alter,
    fuzz,
    read,
    refused_by_the_command,
    refused_for_its_content,
    same,
    sign,
    signed,
    sound,
    spoilt,
)
from neurtransformer.loihi import netlist

# --- the manifest ---


def announce(folder: Path, name: str) -> None:
    """List a file that need not be there, with the checksum that agrees."""
    values = json.loads((folder / MANIFEST).read_bytes())
    values["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    (folder / MANIFEST).write_text(json.dumps(signed(values)))


@pytest.mark.parametrize("sealed", [False, True])
@fuzz
@given(st.data())
def test_any_value_of_the_manifest(
    whole: Path, original: netlist.TextNetlist, sealed: bool, data: st.DataObject
) -> None:
    values = json.loads((whole / MANIFEST).read_bytes())
    alter(values, data)
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
        announce(folder, name)
        assert read(folder) is None


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
    "a length that is a list": {
        "tokenizer/tokenizer_config.json": {
            "tokenizer_class": "TokenizersBackend",
            "model_max_length": [],
        }
    },
}


def ran(folder: Path) -> Path:
    """Leaves code that would note here that it was run."""
    mark = folder.parent / "ran"
    mark.unlink(missing_ok=True)
    code = f"open({str(mark)!r}, 'w')\nclass Bad: pass\n"
    (folder / "tokenizer/code.py").write_text(code)
    announce(folder, "tokenizer/code.py")
    return mark


def other_tokenizer(folder: Path, name: str) -> Path:
    mark = ran(folder)
    for file, value in BAD_TOKENIZERS[name].items():
        (folder / file).write_text(json.dumps(value))
    sign(folder)
    return mark


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_other_tokenizer(whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        mark = other_tokenizer(folder, name)
        refused_for_its_content(folder)
        assert not mark.exists()


def test_no_code_of_a_tokenizer_is_run(whole: Path) -> None:
    """A map to code beside a class that is known: the class is taken."""
    with spoilt(whole) as folder:
        mark = ran(folder)
        path = folder / "tokenizer/tokenizer_config.json"
        values = {**json.loads(path.read_bytes()), "auto_map": RUNS_CODE["auto_map"]}
        path.write_text(json.dumps(values))
        sign(folder)
        found = read(folder)
        assert found is not None
        sound(found)
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
    alter(values, data)
    with spoilt(whole) as folder:
        (folder / "tokenizer" / name).write_text(json.dumps(values))
        sign(folder)
        sound(read(folder))


# --- by the command ---

CLASSES: dict[str, Callable[[Path], Any]] = {
    "strange name": lambda folder: announce(folder, "\ud800\n"),
    "tokenizer": lambda folder: other_tokenizer(folder, "code to run"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_one_line_by_the_command(neurtx: Any, whole: Path, name: str) -> None:
    with spoilt(whole) as folder:
        CLASSES[name](folder)
        refused_by_the_command(neurtx, folder)
