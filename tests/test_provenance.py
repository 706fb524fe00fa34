"""Which teacher, which text, which versions, and which weights a number belongs to."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from neurtransformer import runs
from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.loihi import netlist
from neurtransformer.provenance import (
    command_line,
    current,
    model_sha256,
    outdated,
    remarks,
    run_sha256,
    stamp,
    text_sha256,
)
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.load import find_teacher, load_run

SHA256 = re.compile("[0-9a-f]{64}")


def sha256_of(folder: Path) -> str:
    return model_sha256(load_dense(str(folder))[0])


def weights_of(run: Path) -> str | None:
    return run_sha256(run, read_json(run / "config.json"))


@pytest.fixture
def teacher(tiny_dense_folder: Path, tmp_path: Path) -> Path:
    """A dense model that a test may spoil."""
    return Path(shutil.copytree(tiny_dense_folder, tmp_path / "teacher"))


@pytest.fixture
def run(tiny_run: Path, copy_of: Callable[[Path], Path], teacher: Path) -> Path:
    """A run whose teacher is the one a test may spoil."""
    folder = copy_of(tiny_run)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "dense": str(teacher)})
    return folder


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return str(path)


def spoil(folder: Path, key: str = "transformer.h.1.mlp.c_fc.bias") -> None:
    """Change one weight by one."""
    tensors = load_file(folder / "model.safetensors")
    tensors[key].view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- hashes ---


def test_the_same_weights_in_another_form_have_the_same_hash(teacher: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(teacher).half()
    model.save_pretrained(tmp_path / "half")
    rounded = model.float()
    rounded.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    same = sha256_of(tmp_path / "half") if has_tokenizer(tmp_path / "half", teacher) else ""
    has_tokenizer(tmp_path / "shards", teacher)
    assert SHA256.fullmatch(same)
    assert sha256_of(tmp_path / "shards") == same != sha256_of(teacher)
    config = read_json(teacher / "config.json")
    write_json(teacher / "config.json", {**config, "activation_function": "gelu_pytorch_tanh"})
    assert sha256_of(teacher) == model_sha256(GPT2LMHeadModel.from_pretrained(teacher))
    # a head of its own with the values of the embedding is no other model
    alike = GPT2LMHeadModel.from_pretrained(teacher)
    before = model_sha256(alike)
    alike.lm_head.weight = torch.nn.Parameter(alike.transformer.wte.weight.detach().clone())
    assert model_sha256(alike) == before
    with torch.no_grad():
        alike.lm_head.weight[0, 0] += 1
    assert model_sha256(alike) != before


def has_tokenizer(folder: Path, source: Path) -> bool:
    for file in source.glob("token*"):
        shutil.copy(file, folder)
    return True


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: spoil(folder),
        lambda folder: spoil(folder, "transformer.wte.weight"),
        lambda folder: reset(folder, n_head=4),
        lambda folder: reset(folder, layer_norm_epsilon=1e-3),
        lambda folder: reset(folder, activation_function="gelu"),
        lambda folder: reset(folder, scale_attn_by_inverse_layer_idx=True),
    ],
)
def test_whatever_changes_the_function_changes_the_hash(
    teacher: Path, change: Callable[[Path], None]
) -> None:
    before = sha256_of(teacher)
    change(teacher)
    assert sha256_of(teacher) != before


def reset(folder: Path, **values: object) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **values})


def test_a_run_in_its_folder_has_the_hash_of_the_model_that_is_loaded(
    tiny_run: Path, copy_of: Callable[[Path], Path]
) -> None:
    for folder in (tiny_run, runs.BUNDLED / "gpt2-nano-spiking"):
        assert model_sha256(load_run(folder)[0]) == weights_of(folder)
    run = copy_of(tiny_run)
    reset(run, timesteps=5)
    assert weights_of(run) != weights_of(tiny_run)
    (run / "model.safetensors").write_bytes(b"no")
    assert weights_of(run) is None


def test_the_run_that_ships_knows_its_teacher() -> None:
    config = read_json(runs.BUNDLED / "gpt2-nano-spiking" / "config.json")
    assert config["dense_sha256"] == sha256_of(runs.BUNDLED / "gpt2-nano")


def test_a_stamp_says_when_by_which_command_and_with_what(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["/some/where/neurtx", "eval", "a run", "--text", "\udcff"])
    told = stamp(seed=3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["date"])
    assert told["command"] == r"neurtx eval 'a run' --text '\udcff'"
    assert told["versions"].keys() == {"neurtx", "torch", "transformers"}
    assert all(told["versions"].values())
    assert told["seed"] == 3
    assert command_line(["neurtx"]) == "neurtx"
    json.dumps(told).encode()


def test_a_text_is_known_by_its_tokens() -> None:
    blocks = torch.arange(12).view(2, 6)
    assert text_sha256(blocks) == text_sha256(blocks.clone()) != text_sha256(blocks + 1)


# --- the teacher ---


def test_a_changed_teacher_is_refused_and_may_be_given_all_the_same(
    neurtx: Any, run: Path, teacher: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("eval", str(run), "--text", text, "--limit", "64", "--json")
    assert neurtx(*words).returncode == 0
    known = read_json(run / "report.json")["eval"]["provenance"]["teacher_sha256"]
    spoil(teacher)
    induction = ("icl", "induction", str(run), "--text", text, "--limit", "64")
    for refused in (words, ("finetune", str(run), "--text", text, "--steps", "1"), induction):
        line = neurtx(*refused).mistake()
        assert str(teacher) in line and "teacher" in line and "--teacher" in line
        assert "has changed" in line
    given = neurtx(*words, "--teacher", str(teacher))
    assert given.returncode == 0
    assert f"the teacher {teacher} is another model" in caplog.text
    told = read_json(run / "report.json")["eval"]["provenance"]
    assert told["teacher"] == str(teacher) and told["teacher_sha256"] != known
    # the run was still made from the other
    assert read_json(run / "config.json")["dense_sha256"] == known
    assert str(teacher) in neurtx("report", str(run)).stdout
    neurtx(*words).mistake()


def test_a_moved_teacher_is_named_and_remembered_where_it_is_now(
    neurtx: Any, run: Path, teacher: Path, tmp_path: Path, text: str
) -> None:
    moved = teacher.rename(tmp_path / "elsewhere")
    words = ("eval", str(run), "--text", text, "--limit", "64", "--json")
    line = neurtx(*words).mistake()
    assert f"the teacher {teacher}" in line and "--teacher" in line
    neurtx(*words, "--teacher", "nowhere/at/all").mistake()
    assert neurtx(*words, "--teacher", "elsewhere").returncode == 0
    assert read_json(run / "config.json")["dense"] == str(moved)
    again = neurtx(*words)
    assert again.returncode == 0, again.stderr


def test_a_teacher_that_was_saved_again_is_the_same(
    neurtx: Any, run: Path, teacher: Path, text: str
) -> None:
    model = GPT2LMHeadModel.from_pretrained(teacher)
    (teacher / "model.safetensors").unlink()
    model.save_pretrained(teacher, max_shard_size="100KB")
    done = neurtx("eval", str(run), "--text", text, "--limit", "64", "--json")
    assert done.returncode == 0, done.stderr


def test_a_teacher_that_does_not_fit_is_refused_even_when_given(
    neurtx: Any, run: Path, text: str
) -> None:
    words = ("eval", str(run), "--text", text, "--limit", "64", "--teacher", "gpt2-nano")
    assert "layers is 4, the run's 2" in neurtx(*words).mistake()


def test_runs_without_a_record_load_as_long_as_the_embeddings_are_the_same(
    run: Path, teacher: Path
) -> None:
    config = read_json(run / "config.json")
    del config["dense_sha256"]
    write_json(run / "config.json", config)
    model, _ = load_run(run)
    assert find_teacher(model).source == str(teacher)
    spoil(teacher, "transformer.wte.weight")
    with pytest.raises(UserError, match="has changed"):
        find_teacher(model)


def test_without_its_teacher_a_run_is_still_exported_and_continues_prompts(
    neurtx: Any, run: Path, teacher: Path
) -> None:
    spoil(teacher)
    for words in (
        ("export", str(run), "--target", "loihi2"),
        ("generate", str(run), "--prompt", "The quick", "--tokens", "4"),
    ):
        done = neurtx(*words)
        assert done.returncode == 0
        assert done.stderr.count("\n") == 1 and str(teacher) in done.stderr
        assert "has changed" in done.stderr
    report = read_json(run / "report.json")
    assert report["generate"]["dense_text"] is None and "ppl_dense" not in report["integer"]
    refused: tuple[tuple[str, ...], ...] = (
        ("export", str(run), "--target", "nir"),
        ("export", "omniglot-plastic", "--target", "loihi2"),
        ("icl", "regression"),
    )
    for given in refused:
        assert "--teacher" in neurtx(*given, "--teacher", str(teacher)).mistake()


# --- what belongs to which weights ---


@pytest.mark.slow
def test_a_training_makes_what_was_measured_before_older(
    neurtx: Any, run: Path, teacher: Path, text: str
) -> None:
    measure: tuple[tuple[str, ...], ...] = (
        ("eval", str(run), "--text", text, "--limit", "64"),
        ("energy", str(run), "--text", text, "--limit", "64"),
        ("export", str(run), "--target", "loihi2", "--out", "net", "--force"),
        ("generate", str(run), "--prompt", "The quick", "--tokens", "4"),
    )
    for words in measure:
        assert neurtx(*words).returncode == 0
    before = weights_of(run)
    assert netlist.read_text(Path("net").resolve()).manifest.run_sha256 == before
    assert read_json(run / "report.json")["eval"]
    assert "perplexity" in neurtx("report", str(run)).stdout
    for seed in ("1", "2"):
        training = ["finetune", str(run), "--text", text, "--steps", "2", "--seed", seed]
        assert neurtx(*training, "--json").returncode == 0
    report = read_json(run / "report.json")
    (first,), last = report["earlier_trainings"], report["finetune"]
    assert [first["seed"], last["seed"]] == [1, 2] and len(first["curve"]) == 2
    for made in (first["provenance"], last["provenance"]):
        assert made["teacher"] == str(teacher) and made["versions"]["torch"]
        assert made["text_sha256"] == first["provenance"]["text_sha256"]
        assert made["command"].startswith(f"neurtx finetune {run}")
    assert first["provenance"]["trained_from_sha256"] == before
    assert first["provenance"]["weights_sha256"] == last["provenance"]["trained_from_sha256"]
    assert last["provenance"]["weights_sha256"] == weights_of(run) != before
    page = neurtx("report", str(run))
    assert "perplexity" not in page.stdout and "ESTIMATE" not in page.stdout
    assert "last changed: eval, energy, integer, generate" in page.stdout
    html = (run / "report.html").read_text()
    assert html.count("not measured yet:") == 4 and "Not estimated yet" in html
    assert "last changed: eval, energy, integer, generate" in html
    assert "seed 1; then 2 steps" in html and "Nothing was written yet" in html
    # measured again, it is back; what was exported before the trainings stays what it was
    for words in measure[:1]:
        assert neurtx(*words).returncode == 0
    done = neurtx(
        "simulate", "net", "--prompt", "The quick", "--tokens", "1", "--backend", "integer"
    )
    assert done.returncode == 0
    page = neurtx("report", str(run))
    assert "perplexity ratio" in page.stdout
    assert "last changed: energy, integer, generate" in page.stdout


def section(weights: str | None, **values: Any) -> dict[str, Any]:
    return {**values, "provenance": {"weights_sha256": weights}}


def test_what_is_older_than_the_weights() -> None:
    report = {
        "recipe": {"timesteps": 4},
        "eval": section("a"),
        "energy": section("b"),
        "simulate": section(None),
        "integer": {"tokens": 5},
        "generate": [1],
        "induction": None,
    }
    assert outdated(report, "b") == ["eval"]
    assert current(report, "b").keys() == report.keys() - {"eval"}
    # what has no record is older than a training that has
    trained = {**report, "finetune": section("b")}
    assert outdated(trained, "b") == ["eval", "integer", "simulate", "generate"]
    assert outdated(trained, None) == []
    assert outdated({**report, "finetune": {"steps": 5}}, "b") == ["eval"]
    assert remarks({}, {}, "b") == [] == remarks({"eval": section("b")}, {}, "b")
    (changed,) = remarks({"convert": section("a")}, {}, "b")
    assert "not those" in changed
    other = {"weights_sha256": "b", "teacher": "T", "teacher_sha256": "y"}
    (compared,) = remarks({"eval": {"provenance": other}}, {"dense_sha256": "x"}, "b")
    assert "another dense model" in compared and "T" in compared


def test_what_is_older_does_not_replace_what_is_of_now(
    tiny_run: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(tiny_run)
    now = weights_of(run)

    def simulated(weights: str | None) -> dict[str, Any]:
        values = {"mismatches": 0, "of": weights}
        runs.update_report(run, "simulate", values, {"weights_sha256": weights})
        return dict(read_json(run / "report.json")["simulate"])

    # of an export before a training; there is nothing better yet
    assert simulated("f" * 64)["of"] == "f" * 64
    assert simulated(now)["of"] == now
    for older in ("f" * 64, None):
        assert simulated(older)["of"] == now
    # values that were not measured together are not mixed
    runs.update_report(run, "simulate", {"steps": 5}, {"weights_sha256": now})
    assert read_json(run / "report.json")["simulate"].keys() == {"steps", "provenance"}


def test_a_training_that_was_recorded_and_killed_is_not_recorded_twice(
    tiny_run: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(tiny_run)
    for weights in ("a", "b", "b", "c"):
        runs.add_training(run, {"of": weights}, {"weights_sha256": weights})
    report = read_json(run / "report.json")
    assert [x["of"] for x in report["earlier_trainings"]] == ["a", "b"]
    assert report["finetune"]["of"] == "c"


def test_netlists_from_before_there_was_a_hash_are_read(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "net"))
    values = read_json(folder / "manifest.json")
    assert values.pop("run_sha256") is None
    write_json(folder / "manifest.json", values)
    assert netlist.read(folder).manifest.run_sha256 is None
    write_json(folder / "manifest.json", {**values, "run_sha256": "f" * 64})
    with pytest.raises(UserError, match="not as it was written"):
        netlist.read(folder)


def test_weights_that_were_half_precision_are_trained_and_read_in_full(
    neurtx: Any, run: Path, text: str
) -> None:
    model, _ = load_run(run)
    model.half().save_pretrained(run)
    words = ("finetune", str(run), "--text", text, "--steps", "1", "--json")
    assert neurtx(*words).returncode == 0
    assert read_json(run / "config.json")["dtype"] == "float32"
    trained = read_json(run / "report.json")["finetune"]["provenance"]["weights_sha256"]
    assert trained == weights_of(run)
