"""--device and --dtype: names are checked everywhere, and weights have the type asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from neurtransformer import UserError, runs
from neurtransformer.device import DTYPES, device_of, dtype_of, placed
from neurtransformer.spiking.load import load_run
from neurtx import main as cli
from neurtx import options

COMMANDS = {
    "convert": "convert gpt2-nano",
    "finetune": "finetune RUN",
    "eval": "eval RUN",
    "energy": "energy RUN",
    "generate": "generate RUN --prompt a",
    "icl": "icl induction RUN",
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cuda:99", "CPU", ""])
def test_a_wrong_device_is_one_line(neurtx: Any, tiny_run: Path, words: str, name: str) -> None:
    typed = words.replace("RUN", str(tiny_run)).split()
    assert "device" in neurtx(*typed, "--device", name).mistake()


def test_commands_have_them_where_a_network_runs() -> None:
    for name in cli.COMMANDS:
        command: Any = cli.neurtx.get_command(click.Context(cli.neurtx), name)
        if name == "icl":
            command = command.commands["induction"]
        taken = {option for parameter in command.params for option in parameter.opts}
        assert ("--device" in taken) == (name in COMMANDS), name
        # what fits, trains or looks at weights does so in float32
        assert ("--dtype" in taken) == (name in {"eval", "energy", "generate"}), name


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
