"""A dense model is believed only after it was checked."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from neurtransformer import checkpoint, dense, hub
from neurtransformer.errors import UserError

Copy = Callable[[Path], Path]
Spoil = Callable[[Path], object]


def test_the_bundled_model_loads() -> None:
    model, tokenizer = dense.load_dense("gpt2-nano")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    row = next(row for row in dense.list_models() if row["name"] == "gpt2-nano")
    config = model.config
    geometry = (config.n_layer, config.n_embd, config.n_head, config.n_positions, len(tokenizer))
    assert geometry == tuple(
        row[key] for key in ("layers", "width", "heads", "context", "vocabulary")
    )
    assert row["parameters"] == model.num_parameters()
    assert row["offline"]


def test_known_sizes() -> None:
    sizes = {row["name"]: row["parameters"] for row in dense.list_models()}
    assert sizes["gpt2-small"] == 124_439_808
    assert sizes["gpt2-xl"] == 1_557_611_200


def test_a_folder_loads_as_it_was_saved(tiny_dense_folder: Path) -> None:
    model, _ = dense.load_dense(str(tiny_dense_folder))
    saved = load_file(tiny_dense_folder / "model.safetensors")
    assert saved["transformer.h.1.mlp.c_fc.weight"].equal(model.transformer.h[1].mlp.c_fc.weight)


def test_old_names_and_masks_and_shards_load(tiny_dense_folder: Path, copy_of: Copy) -> None:
    """The hub's GPT-2 names tensors without `transformer.` and carries causal masks."""
    folder = copy_of(tiny_dense_folder)
    weights = load_file(folder / "model.safetensors")
    old = {key.removeprefix("transformer."): value.half() for key, value in weights.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    (folder / "model.safetensors").unlink()
    names = {key: f"part-{index % 2}.safetensors" for index, key in enumerate(old)}
    for file in set(names.values()):
        save_file({key: old[key] for key in old if names[key] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    model, _ = dense.load_dense(str(folder))
    assert torch.equal(model.transformer.h[1].ln_2.weight, old["h.1.ln_2.weight"].float())
    assert torch.equal(model.lm_head.weight, old["wte.weight"].float())
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"part-1\.safetensors is missing"):
        dense.load_dense(str(folder))


def config_with(**values: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def weights_with(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return spoil


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (config_with(model_type="mamba"), "model type 'mamba'"),
        (config_with(model_type=None), "model type 'None'"),
        (config_with(n_layer=3), "lack h.2"),
        (config_with(n_layer=10**12), "lack layers"),
        (config_with(n_layer="two"), "not a size"),
        (config_with(n_head=3), "no multiple"),
        (config_with(n_inner=100), "config.json makes it"),
        (config_with(activation_function="relu6"), "activation"),
        (config_with(add_cross_attention=True), "add_cross_attention"),
        (config_with(layer_norm_epsilon="small"), "config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (pickle_only, "pickle"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 999), "cut short"),
        (weights_with(lambda w: w.pop("transformer.ln_f.bias")), "lack ln_f.bias"),
        (weights_with(lambda w: w.update(extra=torch.ones(2))), "hold extra"),
        (weights_with(lambda w: w["transformer.wpe.weight"].fill_(torch.nan)), "NaN"),
        (
            weights_with(lambda w: w.update({"transformer.ln_f.bias": torch.ones(64).int()})),
            "not a float",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "does not load"),
    ],
)
def test_a_spoilt_folder_is_one_line(
    tiny_dense_folder: Path, copy_of: Copy, spoil: Spoil, complaint: str
) -> None:
    folder = copy_of(tiny_dense_folder)
    spoil(folder)
    with pytest.raises(UserError, match=complaint) as caught:
        dense.load_dense(str(folder))
    assert "\n" not in str(caught.value)


def test_a_foreign_tokenizer_is_refused(tiny_dense_folder: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_dense_folder)
    weights_with(lambda w: w.update({"transformer.wte.weight": torch.zeros(100, 64)}))(folder)
    config_with(vocab_size=100)(folder)
    with pytest.raises(UserError, match="belong together"):
        dense.load_dense(str(folder))


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_noticed(
    tiny_dense_folder: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "cut"
    if not folder.exists():
        shutil.copytree(tiny_dense_folder, folder)
    whole = (tiny_dense_folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="cut short"):
        checkpoint.check_folder(folder)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("gpt2-smal", "did you mean gpt2-small"),
        ("nonsense", "unknown model 'nonsense'"),
        ("gpt2-xl", "no network .*`hf download openai-community/gpt2-xl "),
        ("nobody/nothing", "no network"),
        ("./nowhere", "no model folder"),
        ("", "no model folder"),
    ],
)
def test_names_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, complaint: str
) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=complaint) as caught:
        dense.load_dense(name)
    assert "\n" not in str(caught.value)


def test_a_cached_hub_model_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_dense_folder: Path
) -> None:
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / "0123"
    shutil.copytree(tiny_dense_folder, snapshot)
    refs = tmp_path / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert dense.locate("owner/tiny") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no network"):
        dense.locate("owner/tiny")


def test_the_hub_is_given_up_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the call and never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        start = time.monotonic()
        assert not hub.reachable(0.5)
        assert time.monotonic() - start < 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.reachable()
