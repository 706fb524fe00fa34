"""The scripts: a model that grows keeps its function; a run to ship; the ladder's rungs."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from neurtransformer.provenance import model_sha256
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.shim import FILE, auto_map, write_shim

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def grow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS / "pretrain"))
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


def test_what_ships_is_small_and_loads_without_us(
    tiny_run: Path, copy_of: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run from before there was a file for `trust_remote_code=True` gets one too."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ship = importlib.import_module("ship")
    run, shipped = copy_of(tiny_run), tmp_path / "shipped"
    config = read_json(run / "config.json")
    assert "auto_map" not in config and not (run / FILE).exists()
    report = read_json(run / "report.json")
    trained = {"text": "/home/me/mix.txt", "curve": [[n, "blocks", 1.0] for n in range(40)]}
    write_json(run / "report.json", {**report, "finetune": trained})
    ship.main([str(run), str(shipped)], standalone_mode=False)
    model, _ = load_run(shipped)
    assert read_json(shipped / "config.json")["auto_map"] == auto_map(model)
    write_shim(tmp_path, model)
    assert (shipped / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    kept = read_json(shipped / "report.json")["finetune"]
    assert kept["text"] == "mix.txt" and len(kept["curve"]) == 2
    assert kept["provenance"]["weights_sha256"] == model_sha256(model)


@pytest.mark.slow
def test_the_ladder_measures_the_rungs_it_is_asked_for(
    tiny_dense_folder: Path, tmp_path: Path
) -> None:
    """Of either kind of attention; those that train do so by the recipe of their kind."""
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 300)
    command = [
        sys.executable,
        SCRIPTS / "quality.py",
        tmp_path / "ladder",
        "--model",
        tiny_dense_folder,
    ]
    wanted = [
        "feed-forward only, rate, T = 2",
        "fast weights, nothing trained",
        "fast weights: `neurtx finetune`",
        "race, default recipe, nothing trained",
        "race, phase T = 5, nothing trained",
        "race: `neurtx finetune`",
    ]
    options = ["--limit", "64", "--seeds", "2", "--steps", "2", "--train-text", str(text)]
    for name in wanted:
        options += ["--rung", name]
    result = subprocess.run(
        [*map(str, command), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    rows = [line.split(" | ") for line in result.stdout.strip().splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == wanted
    for row in rows:
        # of dense attention no energy is estimated; of trained networks there is a range
        assert (row[-1] == "- |") == row[0].startswith("| feed-forward only")
        assert ("(" in row[1]) == ("finetune" in row[0])
    ladder = json.loads((tmp_path / "ladder" / "ladder.json").read_text())
    assert {kind: recipe["match_share"] for kind, recipe in ladder["recipes"].items()} == {
        "linear": 0.5,
        "ttfs": 0.0,
    }
    assert {row["seed"] for row in ladder["rows"] if "finetune" in row["rung"]} == {0, 1}


@pytest.mark.slow
def test_the_benchmark_compares_all_networks_in_all_cases(
    tiny_dense_folder: Path, tmp_path: Path
) -> None:
    networks = ("ttfs", "linear", "steps", "integer")
    cases = ("evaluate", "prefill", "generate", "train", "feedforward")
    command = [sys.executable, SCRIPTS / "bench.py", tmp_path, "--model", tiny_dense_folder]
    options = ["--batch", "1", "--context", "16", "--new", "2", "--repeats", "1"]
    options += [word for name in networks for word in ("--network", name)]
    options += [word for name in cases for word in ("--case", name)]
    subprocess.run([*map(str, command), *options], capture_output=True, check=True)
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["work"], set()).add(row["network"])
        assert (row["ratio"] == 1) == (row["network"] == row["reference"])
    assert list(found.values()) == [
        *[{"dense", *networks}] * 3,
        {"dense"}
        | {f"{n}{more}" for n in networks[:2] for more in ("", ", gradient_checkpointing")},
        {"SpikingJelly", "steps", "counts"},
    ]
    assert (tmp_path / "bench.png").stat().st_size > 1000
