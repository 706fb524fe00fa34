"""The bundled gpt2-nano in disguise: of any folder we see what transformers sees, or refuse it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NANO
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from neurtransformer import dense
from neurtransformer.errors import UserError

Weights = dict[str, torch.Tensor]
Disguise = Callable[[Path], object]
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


def config(**values: object) -> Disguise:
    return lambda folder: merge(folder / "config.json", values)


def generation(**values: object) -> Disguise:
    return lambda folder: merge(folder / "generation_config.json", values)


def merge(path: Path, values: dict[str, object]) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({**old, **values}))


def weights(change: Callable[[Weights], Weights]) -> Disguise:
    def disguise(folder: Path) -> None:
        path = folder / "model.safetensors"
        changed = change(load_file(path))
        path.unlink()
        save_file({k: x.contiguous() for k, x in changed.items()}, path, {"format": "pt"})

    return disguise


def both(*disguises: Disguise) -> Disguise:
    return lambda folder: [disguise(folder) for disguise in disguises]


def written(name: str, content: str) -> Disguise:
    def disguise(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)

    return disguise


def stripped(w: Weights) -> Weights:
    return {key.removeprefix("transformer."): x for key, x in w.items()}


def with_head(factor: float) -> Disguise:
    return weights(lambda w: {**w, HEAD: w[WTE] * factor})


def head_alone(w: Weights) -> Weights:
    return {HEAD if key == WTE else key: x for key, x in w.items()}


def with_masks(w: Weights) -> Weights:
    causal = torch.ones(512, 512).tril().bool()[None, None]
    masks = {f"h.{i}.attn.bias": causal.clone() for i in range(4)}
    return {**stripped(w), **masks, "h.0.attn.masked_bias": torch.tensor(-1e4)}


def sharded(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"part-{i % 3}.safetensors" for i, key in enumerate(whole)}
    for file in set(names.values()):
        save_file({key: x for key, x in whole.items() if names[key] == file}, folder / file)
    merge(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})


def slimmed(w: Weights) -> Weights:
    """Feed-forward blocks of 333 neurons."""
    cut = {"c_fc.weight": (1, 333), "c_fc.bias": (0, 333), "mlp.c_proj.weight": (0, 333)}
    ends = {key: cut[end] for key in w for end in cut if key.endswith(end)}
    return {k: x.narrow(ends[k][0], 0, ends[k][1]) if k in ends else x for k, x in w.items()}


def padded(w: Weights) -> Weights:
    """A vocabulary rounded up to a multiple of 64, as many are."""
    return {**w, WTE: F.pad(w[WTE], (0, 0, 0, 64), value=0.01)}


def renamed_sizes(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    for alias, name in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")):
        values[alias] = values.pop(name)
    written("config.json", json.dumps(values))(folder)


DISGUISES: dict[str, Disguise] = {
    "as it is": lambda folder: None,
    "untied, the same numbers": both(with_head(1.0), config(tie_word_embeddings=False)),
    "untied, another head": both(with_head(1.1), config(tie_word_embeddings=False)),
    "tied by the config, two tensors": with_head(1.1),
    "tied, stored twice": with_head(1.0),
    "tied, stored as the head": weights(head_alone),
    "names without a prefix": both(weights(stripped), config(architectures=["GPT2Model"])),
    "another head, no prefix": weights(lambda w: stripped({**w, HEAD: w[WTE] * 0.9})),
    "masks as weights": weights(with_masks),
    "in three files": sharded,
    "float16": both(
        weights(lambda w: {k: x.half() for k, x in w.items()}), config(dtype="float16")
    ),
    "bfloat16": both(
        weights(lambda w: {k: x.bfloat16() for k, x in w.items()}), config(torch_dtype="bfloat16")
    ),
    "float64": weights(lambda w: {k: x.double() for k, x in w.items()}),
    "no begin, no end": config(bos_token_id=None, eos_token_id=None),
    "begin and end out of reach": config(bos_token_id=50256, eos_token_id=[50256, 3]),
    "scores divided by the layer": config(
        scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True
    ),
    "scores as they are": config(scale_attn_weights=False),
    "a wide epsilon": config(layer_norm_epsilon=1e-2),
    "an exact GELU": config(activation_function="gelu"),
    "a GELU under another name": config(activation_function="gelu_fast"),
    "dropout": config(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
    "333 hidden neurons": both(weights(slimmed), config(n_inner=333)),
    "a vocabulary padded": both(weights(padded), config(vocab_size=4160)),
    "sizes under other names": renamed_sizes,
    "all hidden states": config(output_hidden_states=True, output_attentions=True, use_cache=False),
    "text drawn in the config": config(do_sample=True, top_k=3, max_length=5, temperature=-1.0),
    "a word on how to draw": generation(num_beams=4, stop_strings=["\n"], top_k=1),
    "a generation config cut short": written("generation_config.json", "{"),
}

# what plain transformers cannot load, or loads as something else than what the folder says
OURS_ALONE: dict[str, Disguise] = {
    "tuples": config(return_dict=False),
    "a generation config that is a list": written("generation_config.json", "[1]"),
    "a generation config of nonsense": generation(watermarking_config={"a": 1}, eos_token_id="x"),
}


@pytest.fixture
def disguised(tmp_path: Path) -> Callable[..., Path]:
    def make(disguise: Disguise, source: Path = NANO) -> Path:
        folder = tmp_path / "disguised"
        ignore = shutil.ignore_patterns("*.png", "losses.json", "README.md")
        shutil.copytree(source, folder, ignore=ignore)
        disguise(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def words(nano_tokenizer: Any) -> torch.Tensor:
    from neurtransformer.text import load_blocks

    return load_blocks(None, nano_tokenizer, 96, split="heldout", limit_tokens=96)


def perplexity(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(ids).logits
    return math.exp(float(F.cross_entropy(logits[0, :-1].float(), ids[0, 1:])))


def plainly(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("disguise", DISGUISES)
def test_the_dense_model_is_the_one_that_transformers_sees(
    disguised: Callable[..., Path], words: torch.Tensor, disguise: str
) -> None:
    folder = disguised(DISGUISES[disguise])
    model, _ = dense.load_dense(str(folder))
    theirs = perplexity(plainly(folder), words)
    assert perplexity(model, words) == theirs
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tied = model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings == tied


def test_the_disguises_differ_where_they_should(
    disguised: Callable[..., Path], words: torch.Tensor
) -> None:
    """A switch that nobody reads would pass the test above."""
    plain = perplexity(dense.load_dense("gpt2-nano")[0], words)
    folder = disguised(DISGUISES["another head, no prefix"])
    assert abs(perplexity(dense.load_dense(str(folder))[0], words) / plain - 1) > 0.01


@pytest.mark.parametrize("disguise", OURS_ALONE)
def test_what_says_how_to_run_a_model_changes_nothing(
    disguised: Callable[..., Path], words: torch.Tensor, disguise: str
) -> None:
    plain = perplexity(dense.load_dense("gpt2-nano")[0], words)
    folder = disguised(OURS_ALONE[disguise])
    assert perplexity(dense.load_dense(str(folder))[0], words) == plain


@pytest.mark.parametrize(
    "disguise",
    [
        "untied, another head",
        "tied by the config, two tensors",
        "tied, stored as the head",
        "bfloat16",
        "scores divided by the layer",
        "333 hidden neurons",
        "a vocabulary padded",
    ],
)
def test_a_disguise_goes_through_convert_and_eval(
    disguised: Callable[..., Path], words: torch.Tensor, tmp_path: Path, disguise: str
) -> None:
    from neurtransformer.measure.quality import counting_spikes, evaluate
    from neurtransformer.spiking.convert import convert
    from neurtransformer.spiking.load import load_run, load_teacher

    folder, run = disguised(DISGUISES[disguise]), tmp_path / "run"
    model, tokenizer = dense.load_dense(str(folder))
    convert(model, words, 8, str(folder)).save_pretrained(run)
    tokenizer.save_pretrained(run)
    spiking, _ = load_run(run)
    for name in (WTE, HEAD):
        assert torch.equal(spiking.state_dict()[name], model.state_dict()[name])
    assert spiking.config.tie_word_embeddings == model.config.tie_word_embeddings
    with counting_spikes(spiking) as counter:
        found = evaluate(spiking, load_teacher(spiking), words, counter)
    assert found["ppl_dense"] == pytest.approx(perplexity(plainly(folder), words), rel=1e-6)
    assert found["ppl_ratio"] < 6


def test_a_head_of_its_own_reaches_the_integers(
    disguised: Callable[..., Path], tiny_dense_folder: Path, words: torch.Tensor
) -> None:
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.spiking.convert import convert

    def turned(w: Weights) -> Weights:
        return {**w, HEAD: w[WTE].flip(0) * 3}

    folder = disguised(both(weights(turned), config(tie_word_embeddings=False)), tiny_dense_folder)
    model, _ = dense.load_dense(str(folder))
    ids = words[:, :48]
    integer = IntegerGPT2.from_spiking(convert(model, ids, 8, str(folder)))
    with torch.no_grad():
        floats = model(ids).logits
    assert F.cosine_similarity(floats, integer(ids), dim=-1).mean() > 0.9


@pytest.mark.parametrize(
    ("disguise", "complaint"),
    [
        (config(tie_word_embeddings=False), "hold only wte.weight"),
        (both(weights(head_alone), config(tie_word_embeddings=False)), "hold only lm_head.weight"),
        (weights(lambda w: {k: x for k, x in w.items() if k != WTE}), "lack lm_head.weight"),
        (weights(lambda w: {**w, "wte.weight": w[WTE].clone()}), "under two names"),
        (weights(lambda w: {**w, "transformer.lm_head.weight": w[WTE].clone()}), "which no GPT-2"),
        (weights(lambda w: {**w, "score.weight": torch.ones(2, 64)}), "which no GPT-2"),
        (weights(lambda w: {**w, "lm_head.bias": torch.ones(4096)}), "which no GPT-2"),
        (
            weights(lambda w: {**w, "h.0.attn.c_attn.lora_A.weight": torch.ones(8, 64)}),
            "merge it into its model first",
        ),
        (written("adapter_config.json", "{}"), "merge it into its model first"),
        (
            both(
                lambda f: (f / "config.json").unlink(),
                lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            ),
            "merge it into its model first",
        ),
        (config(architectures=["GPT2ForSequenceClassification"]), "GPT2ForSequenceClassification"),
        (config(architectures=["GPT2DoubleHeadsModel"]), "GPT2DoubleHeadsModel"),
        (config(architectures="GPT3"), "GPT3"),
        (config(auto_map={"AutoModelForCausalLM": "mine.Mine"}), "auto_map"),
        (config(rope_theta=10000.0), "rope_theta"),
        (config(rope_scaling={"type": "linear", "factor": 2}), "rope_scaling"),
        (config(position_embedding_type="relative_key"), "position_embedding_type"),
        (config(num_key_value_heads=1), "num_key_value_heads"),
        (config(sliding_window=16), "sliding_window"),
        (config(alibi=True), "alibi"),
        (config(pruned_heads={"0": [1]}), "pruned_heads"),
        (config(per_layer_config={"0": {"n_head": 1}}), "per_layer_config"),
        (config(quantization_config={"bits": 4}), "quantization_config"),
        (config(transformers_weights="other.safetensors"), "transformers_weights"),
        (config(hidden_size=128), "hidden_size"),
        (config(n_inner=0), "n_inner"),
        (config(n_positions=1), "nothing to predict"),
        (config(layer_norm_epsilon=-1.0), "layer_norm_epsilon"),
        (config(resid_pdrop=2), "resid_pdrop"),
        (config(activation_function="quick_gelu"), "quick_gelu"),
        (config(activation_function=["gelu"]), "activation"),
        (config(tie_word_embeddings="no"), r"config\.json is refused"),
        (config(bos_token_id="<s>"), r"config\.json is refused"),
        (config(eos_token_id=[0, "x"]), r"config\.json is refused"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    disguised: Callable[..., Path], tiny_dense_folder: Path, disguise: Disguise, complaint: str
) -> None:
    folder = disguised(disguise, tiny_dense_folder)
    with pytest.raises(UserError, match=complaint) as caught:
        dense.load_dense(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [False, True])
def test_numbers_of_tokens_stay_within_the_vocabulary(
    disguised: Callable[..., Path], tiny_dense_folder: Path, missing: bool
) -> None:
    nowhere = None if missing else 50256
    folder = disguised(
        both(
            config(bos_token_id=nowhere, eos_token_id=[50256, 7], pad_token_id=nowhere),
            generation(eos_token_id=[9, 50256, 8], bos_token_id=nowhere, max_new_tokens=5),
        ),
        tiny_dense_folder,
    )
    model, tokenizer = dense.load_dense(str(folder))
    assert (model.config.bos_token_id, model.config.eos_token_id) == (None, [7])
    assert model.config.pad_token_id is None
    drawn = model.generation_config
    assert (drawn.bos_token_id, drawn.eos_token_id) == (tokenizer.bos_token_id, [9, 8])
    assert drawn.max_new_tokens == 5  # the author's, for who calls `generate` of a run


def test_a_token_number_beyond_the_vocabulary_is_refused(
    disguised: Callable[..., Path], tiny_dense_folder: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """As many tokens as the model has, but not its numbers."""
    from neurtransformer.spiking.load import load_run

    def gap(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text())
        values["model"]["vocab"]["\u0120the"] = 5000
        merge(folder / "tokenizer.json", values)

    with pytest.raises(UserError, match="token number 5000"):
        dense.load_dense(str(disguised(gap, tiny_dense_folder)))
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    gap(run)
    with pytest.raises(UserError, match="token number 5000"):
        load_run(run)


def test_gpt2_is_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def from_hub(name: str, repository: str, known: object = None) -> Path:
        asked.append((name, repository))
        return tmp_path

    monkeypatch.setattr(dense, "_from_hub", from_hub)
    monkeypatch.chdir(tmp_path)
    assert dense.locate("gpt2") == tmp_path
    assert dense.locate("openai-community/gpt2") == tmp_path
    assert asked == [
        ("gpt2-small", "openai-community/gpt2"),
        ("openai-community/gpt2", "openai-community/gpt2"),
    ]
    (tmp_path / "gpt2").mkdir()
    assert dense.locate("gpt2") == tmp_path / "gpt2"
    assert len(asked) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("my--model", "models/gpt2--ft", "gpt2-modèle", "out-", "-", "a/b.git", "a..b", ".hidden"),
        *("a/b/c", "owner/", "/nowhere", "~nosuchuser/gpt2", "C:\\models\\gpt2", "two words"),
        *("file:///gpt2", "https://huggingface.co/gpt2", "a@main", "a\nb", "\udcff"),
        *("x" * 97, "nobody/" + "x" * 200),
    ],
)
def test_a_name_that_the_hub_cannot_have_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neurtransformer.hub.reachable", lambda: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no model folder") as caught:
        dense.locate(name)
    assert "\n" not in str(caught.value).replace(name, "")
