"""Text from anywhere becomes blocks of tokens, or one line that says why not."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurtransformer import hub, text
from neurtransformer.errors import UserError
from neurtransformer.text import load_blocks

WORDS = st.lists(
    st.sampled_from(["the", " ", "\n", "\n\n", "  ", "a", "é", "'s", "12", "...", "\t"])
)


@pytest.fixture
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_PIECE", 8)
        yield


@given(words=WORDS)
@pytest.mark.usefixtures("small_pieces")
def test_cutting_long_text_changes_no_token(nano_tokenizer: Any, words: list[str]) -> None:
    whole = "".join(words)
    pieces = list(text._pieces(io.BytesIO(whole.encode()), "it"))
    cut = [
        token
        for _, piece in pieces
        for token in nano_tokenizer.encode(piece, add_special_tokens=False)
    ]
    if not whole.strip():
        assert cut == []
    else:
        assert cut == nano_tokenizer.encode(whole, add_special_tokens=False)
        assert [begins for begins, _ in pieces] == [True] + [False] * (len(pieces) - 1)


@given(
    count=st.integers(1, 300),
    block=st.integers(2, 64),
    limit=st.none() | st.integers(2, 400),
)
def test_blocks_are_the_beginning_of_the_text(
    tmp_path_factory: pytest.TempPathFactory,
    nano_tokenizer: Any,
    count: int,
    block: int,
    limit: int | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "words"
    content = " word" * count
    path.write_text(content)
    ids = [0, *nano_tokenizer.encode(content, add_special_tokens=False)]
    blocks = load_blocks(str(path), nano_tokenizer, block, split="train", limit_tokens=limit)
    have = min(len(ids), limit or len(ids))
    assert blocks.dtype == torch.long
    assert blocks.shape == ((have // block, block) if have >= block else (1, have))
    assert blocks.flatten().tolist() == ids[: blocks.numel()]


def test_documents_begin_with_bos(tmp_path: Path, nano_tokenizer: Any) -> None:
    path = tmp_path / "documents"
    path.write_bytes("\ufeffone\r\n<|endoftext|>\r\n<|endoftext|>\ntwo\n".encode())
    blocks = load_blocks(str(path), nano_tokenizer, 4, split="heldout")
    assert nano_tokenizer.decode(load_blocks(str(path), nano_tokenizer, 99, split="train")[0]) == (
        "<|endoftext|>one\n<|endoftext|>two\n"
    )
    assert blocks.shape[1] == 4


def test_python_text_is_split_for_good(nano_tokenizer: Any) -> None:
    train = list(text.python_text("train"))
    heldout = list(text.python_text("heldout"))
    assert not set(train) & set(heldout)
    assert 0.1 < sum(map(len, heldout)) / sum(map(len, train)) < 0.4
    blocks = load_blocks(None, nano_tokenizer, 128, split="heldout", limit_tokens=1000)
    assert blocks.shape == (7, 128)
    assert blocks[0, 0] == 0


def test_a_limit_saves_reading(tmp_path: Path, nano_tokenizer: Any) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"word " * 200_000 + b"\xff")
    blocks = load_blocks(str(path), nano_tokenizer, 64, split="train", limit_tokens=1280)
    assert blocks.shape == (20, 64)
    with pytest.raises(UserError, match="not UTF-8"):
        load_blocks(str(path), nano_tokenizer, 64, split="train")


def test_a_limit_that_is_met_asks_for_no_more_text(tmp_path: Path, nano_tokenizer: Any) -> None:
    """Not even where a document ends with the last token that is wanted."""
    path = tmp_path / "documents"
    path.write_bytes(b"one word\n<|endoftext|>\n" + b"word " * 10_000 + b"\xff")
    ids = [0, *nano_tokenizer.encode("one word\n", add_special_tokens=False)]

    def begun(limit: int) -> list[int]:
        return load_blocks(
            str(path), nano_tokenizer, 64, split="train", limit_tokens=limit
        ).tolist()

    assert begun(len(ids)) == [ids]
    with pytest.raises(UserError, match="not UTF-8"):
        begun(len(ids) + 1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"<|endoftext|>\n", "is empty"),
        (b"text\0text", "NUL"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        ("text".encode("utf-16"), "not UTF-8"),
        (b"\x00\x01\x02", "NUL"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, nano_tokenizer: Any, content: bytes, complaint: str
) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        load_blocks(str(path), nano_tokenizer, 16, split="train")
    assert "\n" not in str(caught.value)


def test_other_mistakes(tmp_path: Path, nano_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="folder"):
        load_blocks(str(tmp_path), nano_tokenizer, 16, split="train")
    for name in ("nowhere.txt", "/nowhere/at/all", "", "two words"):
        with pytest.raises(UserError, match="no text file"):
            load_blocks(name, nano_tokenizer, 16, split="train")
    for limit in (0, 1):
        with pytest.raises(UserError, match="2 or more"):
            load_blocks(None, nano_tokenizer, 16, split="train", limit_tokens=limit)


def test_one_token_is_too_short(tmp_path: Path, nano_tokenizer: Any) -> None:
    path = tmp_path / "short"
    path.write_text("a")

    class NoBos:
        bos_token_id = unk_token_id = None
        encode = nano_tokenizer.encode
        decode = nano_tokenizer.decode

    assert load_blocks(str(path), nano_tokenizer, 16, split="train").shape == (1, 2)
    with pytest.raises(UserError, match="too short"):
        load_blocks(str(path), NoBos(), 16, split="train")


def test_standard_input_serves_both_splits(
    nano_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"some words\n" * 50)))
    monkeypatch.setattr(text, "_read_so_far", None)
    first = load_blocks("-", nano_tokenizer, 8, split="train", limit_tokens=16)
    again = load_blocks("-", nano_tokenizer, 8, split="heldout")
    assert first.shape == (2, 8)
    assert again[:2].equal(first)
    assert len(again) > 2


SHARES = """
import sys
from transformers import AutoTokenizer
from neurtransformer.errors import UserError
from neurtransformer.text import load_blocks
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
try:
    blocks = load_blocks("-", tokenizer, 64, split="train", limit_tokens=6000)
    print(blocks.shape, blocks.sum().item(), blocks[0].tolist())
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", ["text", "nothing"])
def test_processes_of_one_training_share_standard_input(
    tmp_path: Path, tiny_dense_folder: Path, nano_tokenizer: Any, given: str
) -> None:
    """As torchrun starts them. Each would read other pieces of what they share."""
    words = " ".join(f"word {number}" for number in range(40_000)) if given == "text" else ""
    (tmp_path / "text").write_text(words)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    with (tmp_path / "text").open() as shared:  # one place in the file, as in a pipe
        both = [
            subprocess.Popen(
                [sys.executable, "-c", SHARES, str(tiny_dense_folder)],
                stdin=shared,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"},
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                },
            )
            for rank in "01"
        ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] != ""
    if given == "nothing":
        assert "standard input is empty" in said[0]
    else:
        whole = load_blocks(
            str(tmp_path / "text"), nano_tokenizer, 64, split="train", limit_tokens=6000
        )
        assert said[0] == f"{whole.shape} {whole.sum().item()} {whole[0].tolist()}\n"


def test_data_sets(nano_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    lines = datasets.Dataset.from_dict({"text": ["", " = Title = \n", "", " First line .\n"]})
    rows = datasets.Dataset.from_dict({"id": [1, 2], "content": ["one", "two"]})
    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return datasets.DatasetDict({"train": lines, "validation": rows})

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    train = load_blocks("owner/name:raw-v1", nano_tokenizer, 999, split="train", limit_tokens=500)
    heldout = load_blocks("name", nano_tokenizer, 999, split="heldout")
    assert nano_tokenizer.decode(train[0]) == "<|endoftext|> = Title = \n First line .\n"
    assert nano_tokenizer.decode(heldout[0]) == "<|endoftext|>one<|endoftext|>two"
    assert asked == [
        (("owner/name", "raw-v1"), {"streaming": True}),
        (("name", None), {"streaming": False}),
    ]


def test_a_data_set_without_network(nano_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="no network"):
        load_blocks("nobody/no-such-data", nano_tokenizer, 16, split="train")
