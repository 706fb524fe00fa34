"""Text from a file, standard input, a hub data set or CPython itself -> blocks of tokens."""

import contextlib
import hashlib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import torch

from neurtransformer import hub
from neurtransformer.errors import UserError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Split = Literal["train", "heldout"]
# a stretch of text, and whether a document begins with it
Piece = tuple[bool, str]

SEPARATOR = "<|endoftext|>"
BLOCK = 1024
"""Most tokens of one text that quality and spikes are measured on, if nobody says otherwise."""

_PIECE = 1 << 16  # characters tokenised at once
_WRITERS = 256  # documents written side by side
_DOCUMENT = 256  # tokens of each
_HELDOUT_SHARE = 4  # one in so many of CPython's topics
_LONGEST_PROMPT = 1 << 20  # bytes
_LEAST_KNOWN = 0.5  # share of a text's characters that a tokenizer has to have tokens for


class UnreadableText(UserError):
    """Text that the tokenizer of a model has no tokens for, such as English for one of DNA."""


def load_blocks(
    source: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    block: int,
    *,
    split: Split,
    limit_tokens: int | None = None,
) -> torch.Tensor:
    """Tokens of `source`, cut into blocks: (n, block) int64.

    `source` is the path of a UTF-8 file, `-` for standard input, the name of a hub data set
    (`owner/name`, with a configuration `name:configuration`), or None for the English text that
    CPython ships. In a file a line `<|endoftext|>` separates documents; every document starts with
    the tokenizer's bos token, if it has one. `split` picks a part of a data set or of CPython's
    text; a file and standard input are taken whole for either split.

    In several processes (`torchrun`) the main one reads standard input, and all get the same.

    No more is read than `limit_tokens` needs. An unfinished block at the end is dropped, but text
    shorter than one block makes one block of its own length: (1, length), length >= 2.

    Raises UserError if the text cannot be had or is empty, not text, or too short, and
    UnreadableText if the tokenizer knows less than half of what it begins with.
    """
    if limit_tokens is not None and limit_tokens < 2:
        raise UserError(
            f"a limit of {limit_tokens} tokens leaves nothing to predict: give 2 or more"
        )
    if source == "-" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        tokens = _from_the_main_process(
            lambda: _tokens(source, tokenizer, split=split, limit_tokens=limit_tokens)
        )
    else:
        tokens = _tokens(source, tokenizer, split=split, limit_tokens=limit_tokens)
    length = min(block, len(tokens))
    whole = len(tokens) // length * length
    return tokens[:whole].view(-1, length)


def _tokens(
    source: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    split: Split,
    limit_tokens: int | None,
) -> torch.Tensor:
    """All tokens that `load_blocks` cuts into blocks, (n,) int64, n >= 2."""
    what, pieces = _open(source, split, limited=limit_tokens is not None)
    parts: list[torch.Tensor] = []
    count = read = known = 0
    start = False
    for begins, text in pieces:
        start = start or begins
        ids = _encoded(tokenizer, text, what, "--text")
        if read < _PIECE:
            read += _signs(text)
            known += _signs(_decoded(tokenizer, ids))
        if not ids:
            continue
        if start and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        start = False
        parts.append(torch.tensor(ids, dtype=torch.long))
        count += len(ids)
        if limit_tokens is not None and count >= limit_tokens:
            break
    if known < _LEAST_KNOWN * read:
        raise UnreadableText(
            f"the tokenizer of this model knows {known / read:.0%} of {what}: give --text of the "
            "kind that the model was trained on"
        )
    if not parts:
        raise UserError(f"{what} is empty: give some text")
    tokens = torch.cat(parts)[:limit_tokens]
    if len(tokens) < 2:
        raise UserError(f"{what} is too short: 2 tokens are the least, it has {len(tokens)}")
    return tokens


def read_prompt(path: Path) -> str:
    """The prompt in a UTF-8 file, or for `-` in standard input, without the line break at its end,
    which editors put there.

    Raises UserError if it cannot be read, is not text or is too long for any model.
    """
    standard = str(path) == "-"
    name = "standard input" if standard else str(path)
    try:
        if standard:
            read = sys.stdin.buffer.read(_LONGEST_PROMPT + 1)
        # a pipe that nobody writes to would be waited for, and a device may never end
        elif not path.is_file():
            what = "is no ordinary file" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}: --prompt-file takes a file of text")
        else:
            with path.open("rb") as file:
                read = file.read(_LONGEST_PROMPT + 1)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    if len(read) > _LONGEST_PROMPT:
        raise UserError(
            f"{name} is longer than the {_LONGEST_PROMPT:,} bytes of the longest prompt"
        )
    return "".join(_lines(io.BytesIO(read), name)).removesuffix("\n")


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """The tokens of a prompt, with what the tokenizer puts before a text and not what it puts
    behind one. Raises UserError if there are none."""
    ids = _encoded(tokenizer, prompt, "the prompt", "one")
    if not prompt:
        raise UserError("the prompt is empty: give some text to continue")
    if not ids:
        raise UnreadableText("the tokenizer of this model has no token for any of the prompt")
    whole = list(tokenizer.encode(prompt))
    for first in range(len(whole) - len(ids) + 1):
        if whole[first : first + len(ids)] == ids:
            return whole[: first + len(ids)]
    return whole


def _encoded(tokenizer: "PreTrainedTokenizerBase", text: str, what: str, wanted: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    except Exception as error:  # a bare one, where a sign is unknown and no token stands for that
        raise UnreadableText(
            f"the tokenizer of this model cannot read {what} ({shortened(error)}): give {wanted} "
            "of the kind that the model was trained on"
        ) from error


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """What is left of a text that was encoded: unknown parts are not."""
    return str(tokenizer.decode([token for token in ids if token != tokenizer.unk_token_id]))


def _signs(text: str) -> int:
    return sum(map(len, text.split()))


@contextlib.contextmanager
def drawn_with(model: Any, **settings: object) -> Iterator[None]:
    """Inside, `model.generate` obeys these settings and none of the model's own, which may be
    anything that stood in its folder's generation_config.json."""
    from transformers import GenerationConfig

    theirs = model.generation_config
    model.generation_config = GenerationConfig(**settings)
    try:
        yield
    finally:
        model.generation_config = theirs


def _from_the_main_process(read: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `read` returns in the main process, in every process; or the UserError that it raises.

    All have one standard input: each would get other pieces of it.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found: list[torch.Tensor | UserError | None] = [None]
    if PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        try:
            found[0] = read()
        except UserError as error:
            found[0] = error
    (got,) = broadcast_object_list(found)
    if isinstance(got, UserError):
        raise got
    return got


@torch.no_grad()
def write_text(dense: "PreTrainedModel", blocks: int, length: int, seed: int) -> torch.Tensor:
    """Text that the dense model writes itself, sampled from its own distribution.

    Blocks are short documents put end to end: a long one costs far more. Each begins with the token
    that begins a text, else the one that ends one, else any. Returns (blocks, length) int64; the
    same seed gives the same text on the same machine.
    """
    document = min(_DOCUMENT, dense.config.max_position_embeddings)
    documents = -(-blocks * length // document)
    vocabulary = dense.config.vocab_size
    begin, end = (
        _within(getattr(dense.generation_config, key), vocabulary)
        for key in ("bos_token_id", "eos_token_id")
    )
    # a document goes on to its last token, unless a model has no other token than ends
    never = end if len(set(end)) < vocabulary else None
    drawn = torch.Generator().manual_seed(seed)
    starts = torch.randint(vocabulary, (documents, 1), generator=drawn)
    for token in (begin + end)[:1]:
        starts.fill_(token)
    starts = starts.to(dense.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with drawn_with(dense, do_sample=True, top_k=0, suppress_tokens=never or None):
            parts = [
                dense.generate(
                    starting,
                    attention_mask=torch.ones_like(starting),
                    use_cache=True,
                    cache_implementation="static",  # the other kind is copied at every token
                    max_new_tokens=document - 1,
                    pad_token_id=0,
                )
                for starting in starts.split(_WRITERS)
            ]
    return torch.cat(parts).cpu().flatten()[: blocks * length].view(blocks, length)


def _within(number: int | list[int] | None, vocabulary: int) -> list[int]:
    """Those of a config's numbers of a token that are numbers of one."""
    numbers = number if isinstance(number, list) else [number]
    return [n for n in numbers if n is not None and 0 <= n < vocabulary]


def _open(source: str | None, split: Split, *, limited: bool) -> tuple[str, Iterable[Piece]]:
    """What to call the source in a message, and its pieces."""
    if source is None:
        return "CPython's text", ((True, topic) for topic in python_text(split))
    if source == "-":
        return "standard input", _standard_input()
    path = Path(os.path.expanduser(source))
    if source and path.is_dir():
        raise UserError(f"{source} is a folder: --text takes a file of text")
    if source and path.exists():
        return source, _file(path)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?", source) or path.suffix in {
        ".txt",
        ".text",
        ".md",
    }:
        raise UserError(f"there is no text file '{source}'")
    return f"data set {source}", _data_set(source, split, limited=limited)


def python_text(split: Split) -> Iterator[str]:
    """The topics of Python's `help()`; a topic's name decides for good which split it is in."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        heldout = hashlib.sha256(name.encode()).digest()[0] % _HELDOUT_SHARE == 0
        if heldout == (split == "heldout"):
            yield topics[name]


# --- files ---


def _file(path: Path) -> Iterator[Piece]:
    with path.open("rb") as file:
        yield from _pieces(file, str(path))


# What was read of standard input is kept, for it comes only once and both splits may ask for it.
_read_so_far: Iterator[Piece] | None = None


def _standard_input() -> Iterator[Piece]:
    global _read_so_far
    if _read_so_far is None:
        _read_so_far = _pieces(sys.stdin.buffer, "standard input")
    _read_so_far, again = itertools.tee(_read_so_far)
    return again


def _pieces(file: BinaryIO, what: str) -> Iterator[Piece]:
    """Cut text at its separators and, where a document is long, between a word and the space after
    it: a byte-level BPE never joins the two, so the tokens are those of the uncut text."""
    begins, buffer = True, ""
    for line in _lines(file, what):
        if line.strip() == SEPARATOR:
            if buffer.strip() or not begins:
                yield begins, buffer
            begins, buffer = True, ""
            continue
        buffer += line
        if len(buffer) >= _PIECE:
            cut = len(buffer[: max(buffer.rfind(" "), buffer.rfind("\n"), 0)].rstrip())
            if cut == 0 and len(buffer) >= 16 * _PIECE:
                cut = len(buffer)  # no spaces at all: any place will do
            if cut:
                yield begins, buffer[:cut]
                begins, buffer = False, buffer[cut:]
    if buffer.strip() or not begins:
        yield begins, buffer


def _lines(file: BinaryIO, what: str) -> Iterator[str]:
    """Lines of UTF-8 text, very long ones in parts."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    try:
        while line := text.readline(_PIECE):
            if "\0" in line:
                raise UserError(f"{what} is not text (it holds NUL bytes)")
            yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} is not UTF-8 text ({error.reason}): convert it with iconv"
        ) from None
    finally:
        text.detach()  # the file belongs to the caller


# --- data sets ---


def _data_set(source: str, split: Split, *, limited: bool) -> Iterator[Piece]:
    """Rows of a hub data set. A row that follows one ending in a line break goes on with the same
    document, as in WikiText; otherwise every row is a document."""
    online = hub.reachable()
    import datasets
    import huggingface_hub

    if not online:
        # what an earlier call left in the cache, and no half-minute of retries
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    name, _, configuration = source.partition(":")
    try:
        parts = datasets.load_dataset(name, configuration or None, streaming=online and limited)
    except Exception as error:  # the library raises dozens of kinds
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = line if online else f"no network to {hub.endpoint()}, and not in the local cache"
        raise UserError(
            f"'{source}' is neither a file here nor a data set that can be reached ({reason}): "
            "give a text file"
        ) from error
    wanted = ("train",) if split == "train" else ("test", "validation", "train")
    rows = next((parts[key] for key in wanted if key in parts), None)
    if rows is None:
        raise UserError(f"data set {source} has no part for {split}, only {', '.join(parts)}")
    begins = True
    for row in rows:
        columns = [row["text"]] if "text" in row else row.values()
        text = next((value for value in columns if isinstance(value, str)), None)
        if text is None:
            raise UserError(f"data set {source} has no column of text")
        if text:
            yield begins, text
            begins = not text.endswith("\n")
