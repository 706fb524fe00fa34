"""The Llama family in the spiking form: what is carried over, and that its two forms are equal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Done, words
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from neurtransformer.checkpoint import check_config, check_folder
from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.families.base import tapped
from neurtransformer.families.llama import Llama
from neurtransformer.recipe import Code
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.calibrate import softmax_weights
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.rotary import rotate, rotation

KINDS = ["ttfs", "linear"]
WORDS = 4096


def llama(**changed: Any) -> LlamaForCausalLM:
    """Random: 2 layers, 64 wide, 4 heads of 16 that share 2 of keys and values, context 64."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": WORDS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_implementation": "eager",
    }
    dense = LlamaForCausalLM(LlamaConfig(**{**settings, **changed})).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(3.0) if parameter.ndim == 2 else parameter.uniform_(0.5, 1.5)
    return dense


@pytest.fixture(scope="module")
def dense() -> LlamaForCausalLM:
    return llama()


@pytest.fixture
def folder(tiny_llama_folder: Path) -> Path:
    return tiny_llama_folder


def spiking(dense: LlamaForCausalLM, kind: str, first: int | None = 0) -> SpikingLanguageModel:
    code = Code(5, "phase") if kind == "ttfs" else Code(4, "rate")
    return convert(
        dense, words(4, 24), 6, "", coding="phase", attention=kind, attention_code=code,
        first_token=first, limited=(10, 3),
    )  # fmt: skip


# --- what is looked at and carried over ---


def test_softmax_weights_are_transformers_own(dense: LlamaForCausalLM) -> None:
    ids = words(2, 16)
    family = Llama()
    sizes, turned = family.sizes(dense.config.to_dict()), rotation(torch.arange(16)[None], 16, 1e4)
    with torch.no_grad(), tapped(dense) as taps:
        theirs = dense(ids, output_attentions=True).attentions
        for block, tap, expected in zip(family.blocks(dense), taps, theirs, strict=True):
            found = softmax_weights(block, tap["attn_in"], sizes, turned)
            assert torch.allclose(found, expected, atol=1e-6)


def test_what_is_tapped_is_what_flows(dense: LlamaForCausalLM) -> None:
    with torch.no_grad(), tapped(dense) as taps:
        dense(words(2, 16))
    for block, tap in zip(Llama().blocks(dense), taps, strict=True):
        gate, up = torch.nn.functional.linear(tap["mlp_in"], *block.up()).chunk(2, dim=-1)
        hidden = torch.nn.functional.silu(gate) * up
        assert torch.allclose(hidden, tap["hidden"], atol=1e-5)
        out = torch.nn.functional.linear(tap["merged"], *block.attn_out())
        assert torch.allclose(out, tap["attn_out"], atol=1e-5)


def test_both_networks_can_live_in_one_memory() -> None:
    dense = llama(attention_bias=True)
    with torch.no_grad():
        logits = dense(words(2, 16)).logits
        network = convert(dense, words(4, 24), 6, "", attention="ttfs", shared=True)
        assert torch.allclose(dense(words(2, 16)).logits, logits, atol=1e-5)
    ours = {p.untyped_storage().data_ptr() for p in network.parameters() if p.ndim == 2}
    theirs = {p.untyped_storage().data_ptr() for p in dense.parameters() if p.ndim == 2}
    # queries, keys and values are three there; so are gates and inputs
    assert ours == theirs and len(ours) == 2 + 2 * 4


def test_turning_back_and_forth_changes_nothing_and_position_0_does_not_turn() -> None:
    x = torch.randn(2, 5, 48)
    forth = rotation(torch.arange(5)[None], 16, 1e4)
    back = forth[0], -forth[1]
    assert torch.allclose(rotate(rotate(x, forth), back), x, atol=1e-5)
    assert torch.equal(rotate(x, forth)[:, 0], x[:, 0])
    assert not torch.allclose(rotate(x, forth)[:, 1], x[:, 1], atol=1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_fine_code_computes_what_the_dense_model_does(tied: bool) -> None:
    """Nothing is left out: with phase codes of 8 steps little differs. With biases, too."""
    dense = llama(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.3)
    model = convert(dense, words(16, 40), 8, "", coding="phase", attention="ttfs", first_token=0)
    ids = words(4, 32, seed=1)
    with torch.no_grad():
        theirs = dense(torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)).logits[:, 1:]
        ours = model(ids).logits
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).mean() > 0.99
    assert (model.lm_head.weight is model.transformer["wte"].weight) == tied


# --- two forms, token by token, batches ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, None])
@torch.no_grad()
def test_steps_are_counts_and_tokens_one_by_one_too(
    dense: LlamaForCausalLM, kind: str, first: int | None
) -> None:
    model = spiking(dense, kind, first)
    ids = words(3, 12, seed=2)
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, :1] = 0, 0
    whole = model(ids, attention_mask=mask).logits
    model.steps = True
    steps = model(ids, attention_mask=mask).logits
    model.steps = False
    assert torch.equal(whole, steps)
    state, parts = None, []
    for i in range(12):
        output = model(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=state,
                       use_cache=True)  # fmt: skip
        state = output.get("past_key_values", output.get("cache"))
        parts.append(output.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    alone = model(ids[:1, 5:]).logits
    assert torch.allclose(whole[:1, 5:], alone, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_training_and_evaluation_agree(dense: LlamaForCausalLM, kind: str) -> None:
    """The parallel form beside the one with a state: all but the rounding of the mean."""
    model = spiking(dense, kind)
    ids = words(2, 20, seed=3)
    evaluated = model(ids).logits
    trained = model.train()(ids).logits
    near = torch.nn.functional.cosine_similarity(evaluated, trained, dim=-1)
    assert near.mean() > 0.98


# --- checks of a folder ---


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_act", "gelu", "'gelu'"),
        ("head_dim", 8, "head_dim"),
        ("num_key_value_heads", 3, "3 heads"),
        ("num_attention_heads", 5, "64"),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}, "'llama3'"),
        ("rope_parameters", {"rope_theta": "high"}, "rope_theta"),
        ("rope_parameters", [1], "rope_parameters"),
        ("rms_norm_eps", -1.0, "rms_norm_eps"),
        ("intermediate_size", 0, "intermediate_size"),
        ("num_local_experts", 8, "num_local_experts"),
        ("sliding_window", 16, "sliding_window"),
        ("max_position_embeddings", 1, "one position"),
        ("architectures", ["LlamaForSequenceClassification"], "LlamaForCausalLM"),
    ],
)
def test_what_is_not_converted_is_refused(
    folder: Path, copy_of: Callable[[Path], Path], key: str, value: Any, said: str
) -> None:
    spoilt = copy_of(folder)
    write_json(spoilt / "config.json", {**read_json(spoilt / "config.json"), key: value})
    with pytest.raises(UserError, match=said):
        check_folder(spoilt)


def test_old_configs_say_theta_elsewhere(folder: Path, copy_of: Callable[[Path], Path]) -> None:
    old = copy_of(folder)
    values = read_json(old / "config.json")
    del values["rope_parameters"]
    write_json(old / "config.json", {**values, "rope_theta": 500.0, "rope_scaling": None})
    assert check_config(old / "config.json")["rope_parameters"]["rope_theta"] == 500.0
    assert load_dense(str(old))[0].config.rope_parameters["rope_theta"] == 500.0


# --- commands ---


# the race goes on to Lava in tests/test_llama_on_chip.py
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "ttfs")) for kind in KINDS]
)
def test_all_commands_up_to_the_chip(
    neurtx: Callable[..., Done], tmp_path: Path, folder: Path, kind: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The captain gave the letter to the old sailor, who read it aloud. " * 30)
    made = ("convert", str(folder), "--out", "run", "--attention", kind, "--text", str(text))
    assert neurtx(*made).returncode == 0
    config = read_json(tmp_path / "run" / "config.json")
    assert config["model_type"] == "spiking_llama" and config["first_token"] == 0
    on_text = ("--text", str(text), "--limit", "128")
    for call in (
        ("finetune", "run", "--text", str(text), "--steps", "2"),
        ("eval", "run", *on_text, "--json"),
        ("eval", "run", *on_text, "--mode", "steps", "--json"),
        ("energy", "run", *on_text, "--json"),
        ("generate", "run", "--prompt", "The old man", "--tokens", "5"),
        ("report", "run"),
    ):
        done = neurtx(*call)
        assert done.returncode == 0, (call, done.stderr)
    model, _ = load_run(tmp_path / "run")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    ids = words(1, 9)
    assert torch.equal(model(ids).logits, again.eval()(ids).logits)


def test_a_code_with_range(neurtx: Callable[..., Done], tmp_path: Path, folder: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The captain gave the letter to the old sailor, who read it aloud. " * 30)
    made = ("convert", str(folder), "--out", "run", "--coding", "phase", "--text", str(text))
    assert neurtx(*made).returncode == 0
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["hidden_timesteps"], config["hidden_spikes"]) == (12, 4)
    called = ("generate", "run", "--prompt", "The old", "--tokens", "3")
    assert neurtx(*called).returncode == 0
    assert neurtx(*called, "--backend", "integer").returncode == 0
    for name, values in (("more", (17, 4)), ("none", (12, 0)), ("text", ("a", 4))):
        copied = {**config, "hidden_timesteps": values[0], "hidden_spikes": values[1]}
        write_json(tmp_path / "run" / "config.json", copied)
        assert "hidden" in neurtx("eval", "run").mistake(), name
