"""Runs in EleutherAI's lm-evaluation-harness, on a task that is a local file."""

import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip(
    "lm_eval", reason="lm-eval is not installed: pip install -c constraints.txt lm-eval"
)

TASK = """
task: local_sentences
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""
SENTENCE = "The captain gave the letter to the old sailor, and the sailor gave it back."


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of three equal sentences."""
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "sentences.jsonl").write_text(3 * (json.dumps({"text": SENTENCE}) + "\n"))
    text = TASK.replace("FILE", str(folder / "sentences.jsonl"))
    (folder / "local_sentences.yaml").write_text(text)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return folder


def bytes_perplexity(run: str) -> float:
    """What the task measures, computed from the model alone."""
    import neurtransformer

    model, tokenizer = neurtransformer.load(run)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(SENTENCE).input_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return math.exp(float(F.cross_entropy(logits, ids[0, 1:], reduction="sum")) / len(SENTENCE))


def test_the_plug_is_an_entry_point_and_measures(task: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    (plug,) = (
        point
        for point in importlib.metadata.entry_points(group="lm_eval.models")
        if point.name == "neurtx"
    )
    model = plug.load()("gpt2-nano-phase", device="cpu", batch_size=1)
    assert model.max_length == 511  # the innate first token has one of 512 positions
    found = lm_eval.simple_evaluate(
        model, tasks=["local_sentences"], task_manager=TaskManager(include_path=str(task))
    )
    measured = found["results"]["local_sentences"]["byte_perplexity,none"]
    assert measured == pytest.approx(bytes_perplexity("gpt2-nano-phase"), rel=1e-4)


def test_the_name_is_registered() -> None:
    from lm_eval.api.registry import get_model

    from neurtransformer.lm_eval_model import NAME, NeurtxLM

    assert get_model(NAME) is NeurtxLM


def test_a_mistake_is_told(task: Path) -> None:
    from neurtransformer import UserError
    from neurtransformer.lm_eval_model import NeurtxLM

    with pytest.raises(UserError, match="does not exist"):
        NeurtxLM("nowhere")


@pytest.mark.slow
def test_its_own_command_line_takes_a_run(
    neurtx: Any, tiny_dense_folder: Path, task: Path, tmp_path: Path
) -> None:
    """As docs/python-api.md says, in a process that imports nothing of ours by itself."""
    made = neurtx("convert", str(tiny_dense_folder), "--out", "run", "--timesteps", "4")
    assert made.returncode == 0, made.stderr
    words = ["run", "--model", "hf", "--tasks", "local_sentences", "--include_path", str(task)]
    words += ["--model_args", "pretrained=run,trust_remote_code=True,max_length=63"]
    words += ["--device", "cpu", "--batch_size", "1", "--output_path", "told"]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (told,) = (tmp_path / "told").rglob("results_*.json")
    measured = json.loads(told.read_text())["results"]["local_sentences"]["byte_perplexity,none"]
    assert measured == pytest.approx(bytes_perplexity(str(tmp_path / "run")), rel=1e-4)
