"""The commands as people and batch jobs call them; bad input is in test_bad_input.py."""

import json
from pathlib import Path
from typing import Any


def test_convert_finetune_eval(neurtx: Any, tiny_dense_folder: Path, tmp_path: Path) -> None:
    made = neurtx("convert", str(tiny_dense_folder), "--out", "run", "--timesteps", "4", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["run"] == str(tmp_path / "run")
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
    text = neurtx("generate", "--prompt", "The quick", "--tokens", "4")
    assert text.returncode == 0 and text.stdout.startswith("The quick"), text.stderr
    assert text.stdout == neurtx("generate", "--prompt", "The quick", "--tokens", "4").stdout


def test_bad_recipe(neurtx: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("timestep: 4\n")
    assert "timestep" in neurtx("convert", "gpt2-nano", "--config", "recipe.yaml").mistake()


def test_nothing_is_overwritten(neurtx: Any, tiny_dense_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    args = ("convert", str(tiny_dense_folder), "--out", "run")
    assert "--force" in neurtx(*args).mistake()
    neurtx(*args, "--force").mistake()
    assert (tmp_path / "run" / "precious").read_text() == "x"


def test_no_run_and_no_checkpoint(neurtx: Any, tiny_run: Path) -> None:
    assert "convert" in neurtx("eval").mistake()
    assert "--resume" in neurtx("finetune", str(tiny_run), "--resume").mistake()


def test_prompt_that_does_not_fit(neurtx: Any, tiny_run: Path) -> None:
    assert "empty" in neurtx("generate", str(tiny_run), "--prompt", "").mistake()
    long = neurtx("generate", str(tiny_run), "--prompt", "a", "--tokens", "100")
    assert "positions" in long.mistake()
