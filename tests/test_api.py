"""The public functions, on tiny models: what they return, what they refuse, what they import."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import neurtransformer
from neurtransformer import UserError, runs

TEXT = "The neuron fires when its membrane reaches the threshold, and then it rests. " * 40
FUNCTIONS = [name for name in neurtransformer.__all__ if name != "UserError"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a text in it, which is the current one."""
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_it_is_light() -> None:
    code = (
        "import sys, neurtransformer\n"
        "heavy = {'torch', 'transformers', 'numpy', 'click', 'pydantic', 'yaml', 'neurtx'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", FUNCTIONS)
def test_they_are_typed_and_explained(name: str) -> None:
    """Every parameter, what comes back, and what is raised."""
    function = getattr(neurtransformer, name)
    signature = inspect.signature(function)
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty
    told = inspect.getdoc(function) or ""
    explained = re.findall(r"^(\w+): \S", told, re.MULTILINE)
    assert explained == list(signature.parameters)
    assert "\n\nReturns a " in told and "\n\nRaises UserError " in told


def named(function: Callable[..., object], values: dict[str, Any]) -> dict[str, Any]:
    """What a function returned, if its docstring names every key."""
    told = inspect.getdoc(function) or ""
    assert [key for key in values if f"`{key}`" not in told.partition("Returns a dict")[2]] == []
    return values


def test_type_hints_are_shipped() -> None:
    """For mypy, a package has hints if it has this file."""
    assert (Path(neurtransformer.__file__).parent / "py.typed").is_file()


def test_from_a_dense_model_to_a_netlist_that_is_run(here: Path, tiny_dense_folder: Path) -> None:
    short = here / "short.yaml"
    short.write_text("calibration: {tokens: 64, block: 32}\n")
    made = neurtransformer.convert(
        tiny_dense_folder, "run", config=short, timesteps=4, coding="phase", text=here / "text.txt"
    )
    assert named(neurtransformer.convert, made)["run"] == here / "run"
    assert made["timesteps"] == 4 and made["coding"] == made["attention_coding"] == "phase"
    assert made["ppl_ratio"] > 0

    trained = neurtransformer.finetune("run", text="text.txt", steps=2, spikes_budget=0.9)
    named(neurtransformer.finetune, trained)
    assert trained["run"] == here / "run" and trained["steps"] == 2

    found = neurtransformer.evaluate(here / "run", text="text.txt", limit=64)
    assert named(neurtransformer.evaluate, found)["ppl_ratio"] == pytest.approx(
        found["ppl_spiking"] / found["ppl_dense"]
    )
    assert found["tokens"] <= 64

    exported = neurtransformer.export("run", "net", text="text.txt")
    assert named(neurtransformer.export, exported)["netlist"] == here / "net"
    assert exported["weight_bits"] == 8

    graphs = neurtransformer.export("run", "graphs", target="nir")
    assert named(neurtransformer.export, graphs)["netlist"] == here / "graphs"

    checked = neurtransformer.simulate("net", "The neuron", backend="integer", tokens=2)
    named(neurtransformer.simulate, checked)
    assert checked["mismatches"] == 0 and checked["same_text"] and checked["compared"] > 0

    report = runs.read_json(here / "run" / "report.json")
    assert {"convert", "finetune", "eval", "integer"} <= report.keys()
    # which folder was the last one made is the commands' business
    assert not (here / ".neurtx").exists()


def test_a_script_is_recorded_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurtransformer.provenance import stamp

    monkeypatch.delitem(sys.modules, "neurtx", raising=False)
    monkeypatch.setattr("sys.argv", ["study.py", "3"])
    assert stamp()["command"] == "python study.py 3"


def test_load_gives_a_model_and_its_tokenizer(tiny_run: Path) -> None:
    model, tokenizer = neurtransformer.load(tiny_run)
    ids = tokenizer("The quick brown fox", return_tensors="pt").input_ids
    out = model(ids)
    assert out.logits.shape == (*ids.shape, model.config.vocab_size)
    assert out.last_hidden_state.shape == (*ids.shape, 64)
    assert not model.training


def test_nothing_is_said(
    here: Path, tiny_run: Path, copy_of: Callable[[Path], Path], capfd: pytest.CaptureFixture
) -> None:
    neurtransformer.evaluate(copy_of(tiny_run), text="text.txt", limit=32)
    assert capfd.readouterr() == ("", "")


def test_the_command_prints_what_the_function_returns(
    neurtx: Any, tiny_run: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(tiny_run)
    Path("text.txt").write_text(TEXT)
    done = neurtx("eval", str(run), "--text", "text.txt", "--limit", "32", "--json")
    told = json.loads(done.stdout)
    found = neurtransformer.evaluate(run, text="text.txt", limit=32)
    assert told == runs.plain(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.load("nowhere"), "does not exist"),
        (lambda x: x.convert("gpt2-nona"), "did you mean gpt2-nano"),
        (lambda x: x.convert("gpt2-nano", coding="both"), "coding"),
        (lambda x: x.finetune("gpt2-nano-spiking"), "ships with neurtx"),
        (lambda x: x.evaluate(limit=1), "limit must be 2 or more, not 1"),
        (lambda x: x.evaluate(mode="both"), "mode must be counts or steps"),
        (lambda x: x.evaluate(), "no run here yet"),
        (lambda x: x.export(target="fpga"), "target must be loihi2 or nir"),
        (lambda x: x.export("gpt2-nano-spiking", target="nir", text="x"), "--text is for"),
        (lambda x: x.simulate(prompt="a", data="b"), "give --prompt TEXT, or --data FOLDER"),
        (lambda x: x.simulate(prompt="a", tokens=0), "tokens must be 1 or more"),
    ],
)
def test_a_mistake_is_one_line(here: Path, call: Callable[[Any], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(neurtransformer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("train", "all"), ("spikes_budget", 2)])
def test_a_recipe_is_not_changed_to_nonsense(
    here: Path, tiny_run: Path, copy_of: Callable[[Path], Path], name: str, value: Any
) -> None:
    with pytest.raises(UserError, match=name):
        neurtransformer.finetune(copy_of(tiny_run), **{name: value})
