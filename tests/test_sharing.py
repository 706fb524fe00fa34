"""Runs for others: the model card, plain transformers, the hub, and a copy to train."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import words
from safetensors.torch import load_file

import neurtransformer
from neurtransformer import UserError, hub, runs
from neurtransformer.measure.card import CARD, MARK, write_card
from neurtransformer.spiking.shim import FILE, auto_map, write_shim

Copy = Callable[[Path], Path]


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A file to read."""
    path = tmp_path / "some-text"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return str(path)


@pytest.fixture
def made(neurtx: Any, tiny_dense_folder: Path, tmp_path: Path, text: str) -> Path:
    """A run that the command has just made."""
    (tmp_path / "short.yaml").write_text("calibration: {tokens: 256, block: 64}\n")
    words = ("--out", "run", "--timesteps", "4", "--text", text, "--config", "short.yaml", "-q")
    done = neurtx("convert", str(tiny_dense_folder), *words)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


# --- the model card ---


def test_a_card_says_what_is_known(neurtx: Any, made: Path, text: str) -> None:
    card = (made / CARD).read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and MARK in card
    assert "attention_timesteps: 4" in card and "from `tiny`" in card
    assert "that the conversion has not seen" in card and "nothing was trained" in card
    # it is for others: no path of this machine
    assert "/" + text.split("/")[1] + "/" not in card
    done = neurtx("eval", str(made), "--text", text, "--limit", "128", "--json")
    ratio = json.loads(done.stdout)["ppl_ratio"]
    card = (made / CARD).read_text()
    assert f"| perplexity ratio | {ratio:.3f} |" in card and "on some-text" in card
    assert neurtx("finetune", str(made), "--text", text, "--steps", "2", "-q").returncode == 0
    card = (made / CARD).read_text()
    assert "fine-tuned for 2 steps" in card and "nothing was trained" not in card
    assert f"{ratio:.3f}" not in card  # of the weights of before


def test_a_card_that_somebody_wrote_stays(made: Path) -> None:
    mine = (made / CARD).read_text().replace(MARK, "My own words.")
    (made / CARD).write_text(mine)
    write_card(made)
    assert (made / CARD).read_text() == mine


def test_python_in_a_card_runs(made: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    code = (made / CARD).read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(made)
    exec(code, {})
    assert capfd.readouterr().out.startswith("The old man")


# --- plain transformers ---


def test_auto_classes_take_the_folder(made: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = words(1, 20)
    model = AutoModelForCausalLM.from_pretrained(made)
    ours, tokenizer = neurtransformer.load(made)
    assert torch.equal(model(ids).logits, ours(ids).logits)
    assert AutoTokenizer.from_pretrained(made).get_vocab() == tokenizer.get_vocab()


STRANGER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.startswith("neurtransformer") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("The old man", return_tensors="pt")
print(type(model).__module__, bool(model(**ids).logits.isfinite().all()))
print(len(model.generate(**ids, max_new_tokens=2)))
"""
SHIPPED = [name for name in runs.bundled("run") if not runs.is_plastic(runs.BUNDLED / name)]


@pytest.fixture
def stranger(tmp_path: Path) -> Callable[[Path], "subprocess.CompletedProcess[str]"]:
    """A function that runs STRANGER on a folder, without a network and with an empty cache."""
    alone = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def load(folder: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", STRANGER, str(folder)]
        return subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True)

    return load


@pytest.mark.slow
def test_a_program_that_does_not_know_us_loads_it(made: Path, stranger: Any) -> None:
    done = stranger(made)
    assert done.stdout == "neurtransformer.spiking.model True\n1\n", done.stderr


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x == "gpt2-nano-phase" else pytest.mark.slow) for x in SHIPPED],
)
def test_a_program_that_does_not_know_us_loads_what_ships(name: str, stranger: Any) -> None:
    done = stranger(runs.BUNDLED / name)
    assert done.stdout == "neurtransformer.spiking.model True\n1\n", done.stderr


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_has_the_file_that_a_conversion_writes(name: str, tmp_path: Path) -> None:
    folder = runs.BUNDLED / name
    model, _ = neurtransformer.load(name)
    write_shim(tmp_path, model)
    assert (folder / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    assert runs.read_json(folder / "config.json")["auto_map"] == auto_map(model)


# --- the hub ---


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], Path]:
    """A function that puts a folder where the hub's libraries keep what they fetched, under the
    name of a repository; returns the folder there."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub, "reachable", lambda: False)

    def put(folder: Path, repository: str) -> Path:
        home = cache / f"models--{repository.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0123abc")
        return Path(shutil.copytree(folder, home / "snapshots" / "0123abc"))

    return put


def test_eval_takes_a_run_on_the_hub(
    neurtx: Any, tiny_run: Path, on_hub: Callable[[Path, str], Path], text: str
) -> None:
    there = on_hub(tiny_run, "owner/mine")
    before = {path.name: path.read_bytes() for path in there.iterdir()}
    done = neurtx("eval", "owner/mine", "--text", text, "--limit", "128", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(there)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    assert "--out FOLDER" in neurtx("finetune", "owner/mine", "--text", text).mistake()


def test_a_model_that_was_pushed_without_its_report_can_be_measured(
    neurtx: Any, tiny_run: Path, on_hub: Callable[[Path, str], Path], text: str
) -> None:
    (on_hub(tiny_run, "owner/mine") / "report.json").unlink()
    done = neurtx("eval", "owner/mine", "--text", text, "--limit", "128", "--json")
    assert done.returncode == 0, done.stderr


def test_what_is_no_run_on_the_hub(
    neurtx: Any,
    tiny_dense_folder: Path,
    on_hub: Callable[[Path, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_hub(tiny_dense_folder, "owner/dense")
    assert "neurtx convert owner/dense" in neurtx("eval", "owner/dense").mistake()
    line = neurtx("eval", "owner/nowhere").mistake()
    assert "does not exist" in line and "no network" in line
    # where there is a folder of the owner's name it is a path, and nobody is asked
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("asked the hub"))
    assert "does not exist" in neurtx("eval", "runs/nowhere").mistake()


# --- a copy to train ---


def test_finetune_out_leaves_the_run_alone(
    neurtx: Any, tiny_run: Path, copy_of: Copy, tmp_path: Path, text: str
) -> None:
    run = copy_of(tiny_run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    options = ("--text", text, "--steps", "2", "--json")
    done = neurtx("finetune", str(run), "--out", "trained", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tmp_path / "trained")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    was, now = (load_file(x / "model.safetensors") for x in (run, tmp_path / "trained"))
    assert any(not torch.equal(was[name], now[name]) for name in was)
    report = runs.read_json(tmp_path / "trained" / "report.json")
    assert report["finetune"]["steps"] == 2 and "convert" in report
    assert runs.latest("run") == tmp_path / "trained"
    assert "--force" in neurtx("finetune", str(run), "--out", "trained", *options).mistake()
    again = neurtx("finetune", str(run), "--out", "trained", *options, "--force")
    assert again.returncode == 0, again.stderr
    assert "--force is for --out" in neurtx("finetune", str(run), "--force").mistake()
    resumed = neurtx("finetune", str(run), "--out", "other", "--resume")
    assert "leave --out" in resumed.mistake()


def test_a_copy_has_a_card_of_its_own(made: Path, tmp_path: Path, text: str) -> None:
    """One written by hand is about the weights of the run that it was written for."""
    mine = (made / CARD).read_text().replace(MARK, "My own words.")
    (made / CARD).write_text(mine)
    begun: list[str] = []
    neurtransformer.finetune(
        made,
        tmp_path / "trained",
        text=text,
        steps=2,
        on_start=lambda run: begun.append((run / CARD).read_text()),
    )
    card = (tmp_path / "trained" / CARD).read_text()
    assert MARK in card and "My own words." not in card and "fine-tuned for 2 steps" in card
    # from the start on, should the training be stopped
    assert MARK in begun[0] and "nothing was trained" in begun[0]
    assert (made / CARD).read_text() == mine
    neurtransformer.finetune(made, text=text, steps=2)
    assert (made / CARD).read_text() == mine


def test_a_copy_loads_by_the_same_file(made: Path, tmp_path: Path, text: str) -> None:
    copy = neurtransformer.finetune(made, tmp_path / "trained", text=text, steps=2)["run"]
    assert (copy / FILE).read_bytes() == (made / FILE).read_bytes()
    ours, its = (runs.read_json(run / "config.json")["auto_map"] for run in (made, copy))
    assert ours == its and set(its) == {"AutoConfig", "AutoModelForCausalLM"}


def test_a_mistake_leaves_no_copy(neurtx: Any, tiny_run: Path, tmp_path: Path, text: str) -> None:
    for options in (("--device", "cuda:99"), ("--text", "no.txt"), ("--teacher", "gpt2-nano")):
        given = options if "--text" in options else (*options, "--text", text)
        neurtx("finetune", str(tiny_run), "--out", "trained", "--steps", "2", *given).mistake()
        assert not (tmp_path / "trained").exists()


def test_a_run_that_ships_can_be_trained_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ships with neurtx.*--out FOLDER"):
        neurtransformer.finetune("gpt2-nano-linear")
