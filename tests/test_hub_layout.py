"""A GPT-2 as the hub keeps openai-community/gpt2 goes the whole way.

Its tensors have no `transformer.` in front and no LM head, its causal masks lie among them, and its
tokenizer is vocab.json and merges.txt alone.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

from neurtransformer.runs import read_json

END = "<|endoftext|>"


def write_tokenizer(folder: Path) -> int:
    """vocab.json and merges.txt, and no tokenizer.json; returns the number of tokens."""
    tokenizer = ByteLevelBPETokenizer()
    words = "the history of the world is the history of those who worked the land " * 9
    tokenizer.train_from_iterator([words], vocab_size=290, special_tokens=[], show_progress=False)
    tokenizer.save_model(str(folder))
    # as in GPT-2 the token that ends a text is the last
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary[END] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return len(vocabulary)


def write_weights(folder: Path, vocabulary: int, **sizes: int) -> None:
    """Random weights, and a config with what the hub's has in it. sizes: n_layer, n_embd, n_head,
    n_positions."""
    torch.manual_seed(0)
    width, length = sizes["n_embd"], sizes["n_positions"]

    def drawn(*shape: int) -> torch.Tensor:
        # wider than GPT-2's own, or attention and blocks would do next to nothing
        return torch.randn(shape) * 0.1

    weights = {"wte.weight": drawn(vocabulary, width), "wpe.weight": drawn(length, width)}
    projections = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    norms = ["ln_f"]
    for layer in range(sizes["n_layer"]):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        weights[f"h.{layer}.attn.bias"] = torch.ones(length, length).tril()[None, None]
        for name, shape in projections.items():
            weights[f"h.{layer}.{name}.weight"] = drawn(*shape)
            weights[f"h.{layer}.{name}.bias"] = drawn(shape[1])
    for norm in norms:
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = 1 + drawn(width), drawn(width)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": vocabulary - 1,
        "embd_pdrop": 0.1,
        "eos_token_id": vocabulary - 1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_ctx": length,
        **sizes,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    folder.mkdir()
    write_weights(folder, write_tokenizer(folder), n_layer=2, n_embd=32, n_head=2, n_positions=64)
    return folder


def test_the_folder_is_as_the_hubs(hub_folder: Path) -> None:
    names = {path.name for path in hub_folder.iterdir()}
    assert names == {"config.json", "merges.txt", "model.safetensors", "vocab.json"}
    keys = set(load_file(hub_folder / "model.safetensors"))
    assert {"wte.weight", "h.1.attn.bias", "h.1.attn.c_attn.bias", "ln_f.weight"} < keys
    assert not any(key.startswith(("transformer.", "lm_head")) for key in keys)


@pytest.mark.slow
def test_from_the_hubs_layout_to_lava(
    neurtx: Any, lava: None, hub_folder: Path, tmp_path: Path
) -> None:
    def told(*words: str) -> dict[str, Any]:
        done = neurtx(*words, "--json")
        assert done.returncode == 0, done.stderr
        values: dict[str, Any] = json.loads(done.stdout)
        return values

    made = told("convert", str(hub_folder), "--out", "run")
    assert made["parameters"] > 20_000
    # a run has no masks, and brings its tokenizer along
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert not any(key.endswith(".attn.bias") for key in kept)
    end = read_json(hub_folder / "vocab.json")[END]
    assert read_json(tmp_path / "run" / "config.json")["eos_token_id"] == end

    quality = told("eval", "--limit", "256")
    # with weights drawn at random no token is likelier than another, and ours must follow that
    assert 100 < quality["ppl_dense"] < 3000
    assert quality["ppl_ratio"] == pytest.approx(1, abs=0.1)
    assert quality["cosine_similarity"] > 0.97
    saved = told("energy", "--limit", "256")["attention"]["reduction_percent"]
    assert math.isfinite(saved) and saved < 100

    prompt = "the world"
    for backend in ("torch", "integer"):
        done = neurtx("generate", "--prompt", prompt, "--tokens", "4", "--backend", backend)
        assert done.returncode == 0 and done.stdout.startswith(prompt), done.stderr
    net = told("export", "--target", "loihi2", "--out", "net")
    assert net["weight_bits"] == 8
    found = told("simulate", "--prompt", prompt, "--tokens", "1")
    assert (found["backend"], found["mismatches"], found["same_text"]) == ("lava", 0, True)
