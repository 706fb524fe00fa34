"""--device and --dtype: names are checked everywhere, and weights have the type asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import commands

from neurtransformer import UserError, api, device, runs
from neurtransformer.device import DTYPES, device_of, dtype_of, placed
from neurtransformer.icl import evaluate, plastic
from neurtransformer.icl.omniglot import SIDE, draw_episodes
from neurtransformer.integer import quality
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.spiking.load import load_run
from neurtx import options

COMMANDS = {
    "convert": "convert gpt2-nano",
    "finetune": "finetune RUN",
    "eval": "eval RUN",
    "energy": "energy RUN",
    "generate": "generate RUN --prompt a",
    "export": "export RUN --target loihi2",
    "icl induction": "icl induction RUN",
    "icl omniglot": "icl omniglot",
}


WRONG = ["tpu", "cuda:", "cuda:-1", "cuda:99", "cuda:200", "cuda:07", "cuda:\u0663", "CPU", ""]


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_device_is_one_line(neurtx: Any, tiny_run: Path, words: str, name: str) -> None:
    typed = words.replace("RUN", str(tiny_run)).split()
    assert "device" in neurtx(*typed, "--device", name).mistake()


def test_commands_have_them_where_a_network_runs() -> None:
    for name, command in commands().items():
        taken = {option for parameter in command.params for option in parameter.opts}
        assert ("--device" in taken) == (name in COMMANDS), name
        # what fits, trains, quantises or looks at weights does so in float32
        assert ("--dtype" in taken) == (name in {"eval", "energy", "generate"}), name


@pytest.mark.parametrize(
    "words", ["export RUN --target nir", "export omniglot-plastic --target loihi2"]
)
def test_an_export_that_measures_nothing_takes_no_device(
    neurtx: Any, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(device, "device_of", torch.device)  # as where there is one
    typed = words.replace("RUN", str(tiny_run)).split()
    assert "--device is for" in neurtx(*typed, "--device", "cuda").mistake()


def test_names_of_types_are_those_of_the_library() -> None:
    assert options._DTYPES == DTYPES
    assert [str(dtype_of(name)) for name in DTYPES] == [f"torch.{name}" for name in DTYPES]
    with pytest.raises(UserError, match="float32, bfloat16 or float16, not 'int8'"):
        dtype_of("int8")
    assert device_of("cpu") == torch.device("cpu")


def test_a_model_is_moved(tiny_run: Path) -> None:
    model, _ = load_run(tiny_run)
    assert placed(model, "cpu", "bfloat16") is model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_eval_in_half_precision(neurtx: Any, tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 50)
    found = {}
    for dtype in DTYPES:
        done = neurtx(
            "eval", str(run), "--text", "text", "--limit", "128", "--dtype", dtype, "--json"
        )
        found[dtype] = json.loads(done.stdout)
        assert found[dtype]["dtype"] == dtype
        # measured of the weights of the run, whatever they are rounded to meanwhile
        told = runs.read_json(run / "report.json")["eval"]["provenance"]
        found[dtype]["sha256"] = told["weights_sha256"]
    footprints = [values["neurobench"]["footprint"] for values in found.values()]
    assert footprints[1] == footprints[2] < footprints[0]
    assert len({values["sha256"] for values in found.values()}) == 1
    exact, rounded = (found[name]["ppl_dense"] for name in ("float32", "bfloat16"))
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.02)


# --- there is no GPU where these run: "meta", which holds no numbers, is another device too ---


def test_export_places_both_networks(
    tiny_run: Path,
    tmp_path: Path,
    copy_of: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    placed_at = []

    def noted(model: Any, name: str) -> Any:
        placed_at.append((type(model).__name__, name))
        return model

    monkeypatch.setattr(device, "placed", noted)
    monkeypatch.setattr(device, "device_of", torch.device)
    api.export(copy_of(tiny_run), tmp_path / "made", text=tmp_path / "text", device="cuda:1")
    kinds = ("GPT2LMHeadModel", "SpikingGPT2LMHeadModel")
    assert sorted(placed_at) == [(kind, "cuda:1") for kind in kinds]


def test_finetune_takes_the_gpu_that_is_named(
    tiny_run: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate alone would take the first."""

    class Taken(Exception):
        pass

    def take(chosen: torch.device) -> None:
        raise Taken(chosen)

    monkeypatch.setattr(device, "device_of", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", take)
    with pytest.raises(Taken, match="cuda:1"):
        api.finetune(copy_of(tiny_run), steps=1, device="cuda:1")


def test_what_the_integers_cost_is_measured_on_any_device(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks of torch are given tokens where they are; the integers get theirs here."""
    model, _ = load_run(tiny_run)
    integer = IntegerGPT2.from_spiking(model)
    seen = []

    class Elsewhere:
        device, config = torch.device("meta"), model.config

        def __call__(self, ids: torch.Tensor) -> Any:
            seen.append(ids.device)
            self.logits = torch.zeros(*ids.shape, model.config.vocab_size)
            return self

    monkeypatch.setattr(quality, "is_large", lambda _: False)
    monkeypatch.setattr(quality, "dense_output", lambda dense, ids, _: [dense(ids).logits])
    there: Any = Elsewhere()
    found = quality.evaluate_integer(integer, there, there, torch.ones(1, 8, dtype=torch.long))
    assert seen == [there.device, there.device]
    assert found["ppl_spiking"] == found["ppl_dense"] == pytest.approx(model.config.vocab_size)


def test_omniglots_encoders_compute_where_they_are() -> None:
    encoders, _ = plastic.load()
    ink = np.zeros((12, SIDE, SIDE), np.float32)
    drawn = draw_episodes(4, 3, 4, 2, 6, 0)
    for encoder in encoders.values():
        here = plastic.keys(encoder, ink)
        there = plastic.keys(encoder.to("meta"), ink)
        for read in (
            plastic.float_reads(encoder, there, drawn),
            evaluate.linear_readout(there, drawn),
        ):
            assert read.is_meta and there.is_meta and read.shape == (6, 4)
        assert here.shape == there.shape
