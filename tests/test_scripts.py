"""The scripts: a model that grows keeps its function; the ladder's rungs that train nothing."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def grow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("pretrain_grow")


def small(**sizes: int) -> GPT2Config:
    values = {"vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, **sizes}
    return GPT2Config(**values)


@pytest.mark.parametrize("sizes", [{"n_embd": 32, "n_head": 8}, {"n_layer": 8}])
def test_a_grown_model_computes_what_the_small_one_does(
    grow: ModuleType, sizes: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(small()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.randint(50, (2, 16))
    large = grow.grown(model, small(**sizes)).eval()
    assert large.num_parameters() > 2 * model.num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(large(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sizes", [{"n_embd": 16}, {"n_layer": 6}, {"n_positions": 32}])
def test_a_model_grows_by_powers_of_two_only(grow: ModuleType, sizes: dict[str, int]) -> None:
    with pytest.raises(Exception, match="grow"):
        grow.grown(GPT2LMHeadModel(small()), small(**sizes))


def test_the_ladder_measures_the_rungs_it_is_asked_for(
    tiny_dense_folder: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        SCRIPTS / "quality.py",
        tmp_path / "ladder",
        "--model",
        tiny_dense_folder,
    ]
    options = ["--rung", "naive", "--rung", "rate, T = 2", "--limit", "64", "--seeds", "2"]
    result = subprocess.run(
        [*map(str, command), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    assert "naive conversion" in result.stdout
    assert "feed-forward only, rate, T = 2" in result.stdout
    assert "no attention" not in result.stdout
