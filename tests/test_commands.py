"""The commands as people and batch jobs call them; bad input is in test_bad_input.py."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Done
from safetensors.torch import load_file

from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.recipe import Code, load_recipe
from neurtransformer.runs import read_json, write_json
from neurtx.progress import bar

LINEAR = ("--attention", "linear")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ((), ("ttfs", 4, "phase")),
        pytest.param(LINEAR, ("linear", 4, "rate"), marks=pytest.mark.slow),
    ],
)
def test_convert_finetune_eval(
    neurtx: Any,
    tiny_dense_folder: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    kind: tuple[str, int, str],
) -> None:
    words = ("convert", str(tiny_dense_folder), "--out", "run", "--timesteps", "4", *options)
    made = neurtx(*words, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["run"] == str(tmp_path / "run")
    names = ("attention", "attention_timesteps", "attention_coding")
    assert tuple(told[name] for name in names) == kind
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    tuned = neurtx("finetune", "--text", "text.txt", "--steps", "4", "--json")
    assert tuned.returncode == 0, tuned.stderr
    assert not (tmp_path / "run" / "checkpoint").exists()
    results = []
    for mode in ("counts", "steps"):
        out = neurtx("eval", "--text", "text.txt", "--limit", "256", "--mode", mode, "--json")
        assert out.returncode == 0, out.stderr
        values = json.loads(out.stdout)
        assert values.pop("mode") == mode
        results.append(values)
    assert results[0] == results[1]
    keys = {"ppl_dense", "ppl_spiking", "ppl_ratio", "cosine_similarity", "token_agreement"}
    assert keys | {"timesteps", "mean_spike_count", "tokens", "run"} <= results[0].keys()
    shown = neurtx("eval", "--text", "text.txt", "--limit", "256").stdout
    assert shown.count("ESTIMATE") == 2  # attention and model
    curve = results[0]["loss_by_position"]
    assert curve[0]["position"] < 64 < curve[-1]["position"] < 128  # the context is 64
    assert read_json(tmp_path / "run" / "report.json")["eval"]["loss_by_position"] == curve
    energy = json.loads(neurtx("energy", "--text", "text.txt", "--limit", "256", "--json").stdout)
    for part in ("attention", "model"):
        saved = results[0][f"{part}_energy_reduction_percent"]
        assert saved == pytest.approx(energy[part]["reduction_percent"])
    text = neurtx("generate", "--prompt", "The quick", "--tokens", "4")
    assert text.returncode == 0 and text.stdout.startswith("The quick"), text.stderr
    assert text.stdout == neurtx("generate", "--prompt", "The quick", "--tokens", "4").stdout


def test_the_teacher_continues_the_prompt_too(
    neurtx: Any, either_run: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(either_run)
    words = ("generate", str(run), "--prompt", "The quick", "--tokens", "6", "--seed", "3")
    texts = []
    for backend in ("torch", "integer"):
        done = neurtx(*words, "--backend", backend)
        told = read_json(run / "report.json")["generate"]
        assert done.returncode == 0 and done.stderr == "" and done.stdout == told["text"] + "\n"
        texts.append(told["dense_text"])
    dense, tokenizer = load_dense(read_json(run / "config.json")["dense"])
    ids = tokenizer("The quick", return_tensors="pt")["input_ids"]
    torch.manual_seed(3)
    drawn = dense.generate(ids, do_sample=True, max_new_tokens=6, temperature=0.8, top_k=40)
    assert texts == 2 * [tokenizer.decode(drawn[0], skip_special_tokens=True)]
    config = read_json(run / "config.json") | {"dense": "/no/such/model"}
    (run / "config.json").write_text(json.dumps(config))
    alone = neurtx(*words)
    assert alone.returncode == 0 and alone.stdout.startswith("The quick")
    assert "/no/such/model" in alone.stderr and alone.stderr.count("\n") == 1
    # the text of the teacher that once was there is not kept beside another
    assert read_json(run / "report.json")["generate"]["dense_text"] is None


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["ttfs", "linear"])
def test_phase_coding_all_the_way(
    neurtx: Any, tiny_dense_folder: Path, tmp_path: Path, attention: str
) -> None:
    (tmp_path / "phase.yaml").write_text(f"coding: phase\ntimesteps: 5\nattention: {attention}\n")
    made = neurtx("convert", str(tiny_dense_folder), "--out", "run", "--config", "phase.yaml")
    assert made.returncode == 0, made.stderr
    results = [
        json.loads(neurtx("eval", "--limit", "64", "--mode", mode, "--json").stdout)
        for mode in ("counts", "steps")
    ]
    for values in results:
        del values["mode"]
    assert results[0] == results[1]
    for transport in ("binary", "graded"):
        words = ("--target", "loihi2", "--spikes", transport, "--out", transport)
        assert neurtx("export", *words).returncode == 0
        done = neurtx("simulate", "--prompt", "a word", "--backend", "integer", "--json")
        assert json.loads(done.stdout)["mismatches"] == 0
    (tmp_path / "phase.yaml").write_text(f"coding: phase\ntimesteps: 9\nattention: {attention}\n")
    words = ("convert", str(tiny_dense_folder), "--out", "run-2", "--config", "phase.yaml")
    assert "1 to 8" in neurtx(*words).mistake()


@pytest.mark.parametrize(
    ("run", "dense", "ratio", "cosine"),
    [
        ("gpt2-nano-spiking", 90.11, 0.995, 0.9900),
        ("gpt2-nano-phase", 90.11, 0.994, 0.9960),
        ("gpt2-nano-sparse", 90.11, 1.019, 0.9951),
        ("gpt2-nano-linear", 88.42, 1.078, 0.9697),
    ],
)
def test_runs_that_ship_are_as_good_as_their_cards_say(
    neurtx: Any, run: str, dense: float, ratio: float, cosine: float
) -> None:
    done = neurtx("eval", run, "--limit", "1024", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["ppl_ratio"] == pytest.approx(ratio, abs=0.01)
    assert values["ppl_dense"] == pytest.approx(dense, rel=0.01)
    assert values["cosine_similarity"] == pytest.approx(cosine, abs=0.003)


def test_runs_that_ship_stay_as_they_are(neurtx: Any, tmp_path: Path) -> None:
    assert "stays as it is" in neurtx("finetune", "gpt2-nano-spiking").mistake()
    page = neurtx("report", "gpt2-nano-spiking")
    assert page.returncode == 0 and (tmp_path / "report.html").exists()


def test_bad_recipe(neurtx: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("timestep: 4\n")
    assert "timestep" in neurtx("convert", "gpt2-nano", "--config", "recipe.yaml").mistake()


def test_an_unknown_attention_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("attention: nonsense\n")
    code = (
        "import sys; from neurtx.convert import command\n"
        "try: command.main(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error: print(error)\n"
        "print({'torch', 'transformers'} & sys.modules.keys())"
    )
    for options in (["--attention", "nonsense"], ["--config", "recipe.yaml"]):
        command = [sys.executable, "-c", code, "gpt2-nano", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert "attention must be ttfs or linear, not 'nonsense'\nset()" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("timesteps: 0", "timesteps"),
        ("coding: morse", "coding"),
        ("attention: nonsense", "attention must be ttfs or linear, not 'nonsense'"),
        ("attention: [ttfs]", "attention"),
        ("calibration: {tokens: 1}", "calibration.tokens"),
        ("calibration: {block: 1}", "calibration.block"),
        ("calibration: {words: 9}", "calibration.words"),
        ("finetune: {steps: 0}", "finetune.steps"),
        ("finetune: {batch: 0}", "finetune.batch"),
        ("finetune: {block: 1}", "finetune.block"),
        ("finetune: {match_share: 1.1}", "finetune.match_share"),
        ("finetune: {match_rate: 0}", "finetune.match_rate"),
        ("finetune: {distil_rate: 1.1}", "finetune.distil_rate"),
        ("finetune: {train: all}", "finetune.train"),
        ("finetune: {self_written: -1}", "finetune.self_written"),
        ("[timesteps]", "holds no mapping"),
        ("timesteps: [", "no readable YAML"),
        ("\ud800", "no readable YAML"),
    ],
)
def test_recipes_have_bounds(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=key) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_keeps_what_it_does_not_say(tmp_path: Path) -> None:
    path, default = tmp_path / "recipe.yaml", load_recipe()
    path.write_text("timesteps: 5\nfinetune: {steps: 7}\n")
    assert load_recipe(path) == default.model_copy(
        update={"timesteps": 5, "finetune": default.finetune.changed(steps=7, batch=None)}
    )
    assert load_recipe(path, timesteps=3).timesteps == 3


def test_each_attention_has_its_recipe(tmp_path: Path) -> None:
    """Of a file, of an option, and of neither; what a file says wins over what a kind has."""
    default, linear = load_recipe(), load_recipe(attention="linear")
    assert (default.attention, default.attention_code) == ("ttfs", Code(5, "phase"))
    assert (linear.attention, linear.attention_code) == ("linear", Code(8, "rate"))
    assert default.code == linear.code == Code(8, "rate")
    assert (default.finetune.match_share, linear.finetune.match_share) == (0.0, 0.5)
    path = tmp_path / "recipe.yaml"
    path.write_text("attention: linear\nfinetune: {match_share: 0.25}\n")
    changed = linear.finetune.changed(match_share=0.25)
    assert load_recipe(path) == linear.model_copy(update={"finetune": changed})
    assert load_recipe(path, attention="ttfs").finetune == default.finetune.changed(
        match_share=0.25
    )


def test_nothing_is_overwritten(neurtx: Any, tiny_dense_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    args = ("convert", str(tiny_dense_folder), "--out", "run")
    assert "--force" in neurtx(*args).mistake()
    neurtx(*args, "--force").mistake()
    assert (tmp_path / "run" / "precious").read_text() == "x"


@pytest.mark.usefixtures("one_of_each")
def test_blocks_are_no_longer_than_the_context(
    neurtx: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is said that they are not as long as was asked for."""
    command = ("eval", "run", "--text", "text", "--limit", "128", "--json", "--block")
    done = neurtx(*command, "99999")
    assert json.loads(done.stdout)["block"] == 64
    assert "blocks have 64 tokens, not 99999: that is the model's context" in caplog.text
    caplog.clear()
    done = neurtx(*command, "32")
    assert json.loads(done.stdout)["block"] == 32 and "blocks have" not in caplog.text


def test_no_run_and_no_checkpoint(neurtx: Any, tiny_run: Path) -> None:
    assert "convert" in neurtx("eval").mistake()
    assert "--resume" in neurtx("finetune", str(tiny_run), "--resume").mistake()


@pytest.mark.parametrize("obstacle", ["read-only", "full"])
def test_what_cannot_be_written_is_said_before_training(
    neurtx: Any, tiny_run: Path, copy_of: Callable[[Path], Path], monkeypatch: Any, obstacle: str
) -> None:
    if obstacle == "full":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    else:  # the administrator, as whom tests may run, can write everywhere
        monkeypatch.setattr("os.access", lambda path, mode: False)
    line = neurtx("finetune", str(copy_of(tiny_run)), "--steps", "9").mistake()
    assert ("no space left" if obstacle == "full" else "cannot be written to") in line


def test_prompt_that_does_not_fit(neurtx: Any, tiny_run: Path) -> None:
    assert "empty" in neurtx("generate", str(tiny_run), "--prompt", "").mistake()
    long = neurtx("generate", str(tiny_run), "--prompt", "a", "--tokens", "100")
    assert "positions" in long.mistake()


def test_progress_in_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("fine-tuning", 40, "steps") as advance:
        advance(12, "loss 9")  # resumed
        for number in range(28):
            advance(1, f"loss {number}")
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 8
    assert lines[0] == "fine-tuning: 12 of 40 steps, loss 9"
    assert lines[1] == "fine-tuning: 16 of 40 steps, loss 3, 0:00:00 left"
    assert lines[-1] == "fine-tuning: 40 of 40 steps, loss 27"
    with bar("fine-tuning", 40, "steps", quiet=True) as advance:
        advance(40, "")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_finetune_in_two_processes(
    tiny_run: Path, copy_of: Any, neurtx: Callable[..., Done], tmp_path: Path
) -> None:
    run, text = copy_of(tiny_run), tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 2000)
    before = {path.name for path in run.iterdir()}
    report = read_json(run / "report.json")
    # what matching is relative to is the variance of each batch
    report["recipe"]["finetune"]["match_share"] = 0.0
    write_json(run / "report.json", report)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["finetune", str(run), "--text", str(text), "--steps", "10", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "neurtx", *words],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)  # one object: two would not load
    recipe = read_json(run / "report.json")["recipe"]["finetune"]
    assert values["processes"] == 2
    assert values["tokens"] == 2 * 10 * recipe["batch"] * min(recipe["block"], 64)
    assert done.stderr.count("10 of 10 steps") == 1, done.stderr
    assert {path.name for path in run.iterdir()} == before | {"README.md"}
    assert len(read_json(run / "report.json")["finetune"]["curve"]) == 10
    was, now = (load_file(folder / "model.safetensors") for folder in (tiny_run, run))
    assert any(not torch.equal(was[name], now[name]) for name in was)
    # the same as one process with twice the batch
    alone = Path(shutil.copytree(tiny_run, tmp_path / "alone"))
    report["recipe"]["finetune"]["batch"] *= 2
    write_json(alone / "report.json", report)
    single = neurtx("finetune", str(alone), "--text", str(text), "--steps", "10")
    assert single.returncode == 0, single.stderr
    curves = [read_json(folder / "report.json")["finetune"]["curve"] for folder in (run, alone)]
    losses = [[loss for _, _, loss in curve] for curve in curves]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
