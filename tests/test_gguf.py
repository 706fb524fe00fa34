"""Dense models in GGUF files: read through transformers, refused in one line where they are not."""

import contextlib
import importlib.util
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from transformers import LlamaConfig, LlamaForCausalLM

from neurtransformer import dense
from neurtransformer.errors import UserError
from neurtransformer.families.base import Sizes

WORDS = 300


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order of rows that GGUF keeps queries and keys in: pairs that turn stand together."""
    half = weight.shape[0] // heads // 2
    return weight.view(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)


def written(place: Path, architecture: str = "llama", spoil: float | None = None) -> Path:
    """The model above as a GGUF file, float32, with a byte-level tokenizer without merges."""
    writer = GGUFWriter(place, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(WORDS)
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<s>", "</s>", "<|endoftext|>", *bytes_to_unicode().values(), "Ġt", "he"]
    tokens += [f"<{i}>" for i in range(WORDS - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (WORDS - 3)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm",
        "layers.0.input_layernorm": "blk.0.attn_norm",
        "layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "layers.0.self_attn.q_proj": "blk.0.attn_q", "layers.0.self_attn.k_proj": "blk.0.attn_k",
        "layers.0.self_attn.v_proj": "blk.0.attn_v",
        "layers.0.self_attn.o_proj": "blk.0.attn_output",
        "layers.0.mlp.gate_proj": "blk.0.ffn_gate", "layers.0.mlp.up_proj": "blk.0.ffn_up",
        "layers.0.mlp.down_proj": "blk.0.ffn_down",
    }  # fmt: skip
    weights = dict(model().model.named_parameters())
    for ours, theirs in names.items():
        weight = weights[f"{ours}.weight"].detach().clone()
        if ours.endswith("q_proj"):
            weight = permuted(weight, 2)
        if ours.endswith("k_proj"):
            weight = permuted(weight, 1)
        if spoil is not None:
            weight.view(-1)[0] = spoil
        writer.add_tensor(f"{theirs}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def test_what_it_holds_is_what_is_loaded(tmp_path: Path) -> None:
    loaded, tokenizer = dense.load_dense(str(written(tmp_path / "tiny.gguf")))
    ids = torch.randint(WORDS, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(loaded(ids).logits, model()(ids).logits, atol=1e-5)
    assert loaded.config.tie_word_embeddings and loaded.generation_config.bos_token_id == 0
    assert tokenizer.decode(tokenizer.encode("the sea")) == "the sea"
    loaded.save_pretrained(tmp_path / "saved")  # nothing is left of how it was stored
    again, _ = LlamaForCausalLM.from_pretrained(tmp_path / "saved"), None
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])


def no_gguf(file: Path) -> None:
    file.write_bytes(b"GGUX" + file.read_bytes()[4:])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(cut, "damaged"), (no_gguf, "damaged"), (lambda file: file.write_bytes(b""), "damaged")],
)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    file = written(tmp_path / "tiny.gguf")
    spoil(file)
    with pytest.raises(UserError, match=said):
        dense.check(dense.locate(str(file)))


def header(*numbers: tuple[int, int]) -> Callable[[Path], Any]:
    """A GGUF file of version 3 with these numbers, each with its width in bytes; zeros follow."""
    data = b"GGUF" + (3).to_bytes(4, "little")
    data += b"".join(number.to_bytes(width, "little") for number, width in numbers)
    return lambda file: file.write_bytes(data + bytes(4096))


FIELD = ((0, 8), (1, 8), (1, 8), (ord("a"), 1))  # no tensors, one field, whose name is "a"
TENSOR = ((1, 8), (0, 8), (1, 8), (ord("a"), 1))
HOSTILE = {
    "2^60 fields": header((0, 8), (2**60, 8)),
    "2^60 tensors": header((2**60, 8), (0, 8)),
    "a name of 2^60 bytes": header((0, 8), (1, 8), (2**60, 8)),
    "a string of 2^60 bytes": header(*FIELD, (8, 4), (2**60, 8)),
    "an array of 2^60 numbers": header(*FIELD, (9, 4), (4, 4), (2**60, 8)),
    "an array of 2^60 strings": header(*FIELD, (9, 4), (8, 4), (2**60, 8)),
    "arrays in arrays": header(*FIELD, *((9, 4), (9, 4), (1, 8)) * 3),
    "a type that is none": header(*FIELD, (99, 4)),
    "2^32 - 1 dimensions": header(*TENSOR, (2**32 - 1, 4)),
    "a tensor of 2^120 values": header(*TENSOR, (2, 4), (2**60, 8), (2**60, 8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_not_believed(tmp_path: Path, name: str) -> None:
    """Nor does it take memory or time."""
    file = tmp_path / "hostile.gguf"
    HOSTILE[name](file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="damaged, or no GGUF file") as caught:
        dense.check(dense.locate(str(file)))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("seed", range(40))
def test_any_byte_of_a_header(tmp_path: Path, seed: int) -> None:
    """A file with some wrong bytes in its header is refused, or is a model."""
    file = written(tmp_path / "tiny.gguf")
    data = bytearray(file.read_bytes())
    random = np.random.default_rng(seed)
    for at in random.integers(4, 600 if seed % 2 else 8000, size=1 + seed % 3):
        data[at] = random.integers(256)
    file.write_bytes(data)
    with contextlib.suppress(UserError):
        dense.load_dense(str(file))


def test_other_kinds_and_other_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'mamba'"):
        dense.check(written(tmp_path / "other.gguf", "mamba"))
    with pytest.raises(UserError, match="NaN"):
        dense.load_dense(str(written(tmp_path / "nan.gguf", spoil=float("nan"))))


def test_without_its_reader_it_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "tiny.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="neurtx install smollm2"):
        dense.check(file)


def test_a_model_may_come_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the registry, which is found and not imported."""
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    known = dense.Known(
        "owner/nowhere", Sizes(1, 32, 2, 1, 64, 64, WORDS, True), "llama",
        ("some_model", "tiny.gguf"),
    )  # fmt: skip
    monkeypatch.setitem(dense.KNOWN, "some-model", known)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neurtx install some"):
        dense.locate("some-model")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="neurtx install some"):
        dense.locate("some-model")
    file = written(package / "tiny.gguf")
    assert dense.locate("some-model") == file
    assert any(row["name"] == "some-model" and row["offline"] for row in dense.list_models())
