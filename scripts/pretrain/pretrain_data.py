"""For pretrain.py: text -> tokens on the disk, and folders that are whole or not there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

DOCUMENT = "<|endoftext|>"


class Mistake(click.ClickException):
    """The caller's mistake: one line, exit code 2."""

    exit_code = 2


def parse_mixture(texts: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """FILE[=WEIGHT] ... -> files and their shares."""
    if not texts:
        raise Mistake("give at least one --text FILE[=WEIGHT]")
    files, weights = [], []
    for text in texts:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            weights.append(float(weight))
        except ValueError:
            raise Mistake(f"--text {text}: {weight!r} is not a number") from None
        files.append(Path(name))
    if min(weights) < 0 or sum(weights) <= 0:
        raise Mistake("the weights of --text must not be negative, nor all 0")
    return files, np.array(weights) / sum(weights)


def documents(path: Path) -> list[str]:
    """The documents of a file, in order."""
    parts = path.read_text(encoding="utf-8").split(DOCUMENT + "\n")
    return [d.strip("\n") for d in parts if d.strip()]


def train_tokenizer(files: list[Path], size: int, place: Path) -> None:
    """Byte-level BPE (GPT-2's kind) of `size` entries; number 0 starts a document."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[DOCUMENT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((d for f in files for d in documents(f)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=DOCUMENT, eos_token=DOCUMENT, unk_token=DOCUMENT
    )
    fast.save_pretrained(place)


def read_tokens(path: Path, tokenizer: Any, cache: Path) -> np.ndarray:
    """A file as token numbers, each document after the start token; kept in `cache`."""
    bpe = tokenizer.backend_tokenizer
    key = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns} {bpe.to_str()}"
    file = cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    if not file.exists():
        kind = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
        texts, ids = documents(path), []
        for i in range(0, len(texts), 64):
            for encoded in bpe.encode_batch(texts[i : i + 64], add_special_tokens=False):
                ids.append(np.array([tokenizer.bos_token_id, *encoded.ids], dtype=kind))
        part = file.with_name(file.name + ".part.npy")
        np.save(part, np.concatenate(ids) if ids else np.zeros(0, dtype=kind))
        part.rename(file)
    return np.load(file, mmap_mode="r")


def replace_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under another name and give it its own when complete."""
    new, old = place.with_name(place.name + ".new"), place.with_name(place.name + ".old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
