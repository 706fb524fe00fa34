"""Llama on the way to the chip."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, nano_tokenizer: Any) -> Path:
    """A random Llama of 2 layers, 64 wide, 4 heads of 16 that share 2 of keys and values."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(nano_tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    nano_tokenizer.save_pretrained(folder)
    return folder


def test_it_goes_as_far_as_the_spiking_form(neurtx: Callable[..., Any], llama_folder: Path) -> None:
    assert neurtx("convert", str(llama_folder), "--out", "run").returncode == 0
    for words in (
        ("export", "run", "--target", "loihi2", "--out", "net"),
        ("export", "run", "--target", "nir", "--out", "nir"),
        ("generate", "run", "--prompt", "a", "--tokens", "2", "--backend", "integer"),
    ):
        assert "a Llama goes as far as" in neurtx(*words).mistake()
    assert "is not a netlist" in neurtx("simulate", "run", "--prompt", "a").mistake()
    assert not Path("net").exists() and not Path("nir").exists()
    assert "a Llama goes as far as" in neurtx("place", "smollm2-135m").mistake()
