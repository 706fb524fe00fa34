"""The paper's table: the sliding window as it is defined, and a script that may be stopped."""

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neurtransformer.errors import UserError
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.innate import dense_output

SCRIPTS = Path(__file__).parent.parent / "scripts"
TEXT = "The old captain gave the letter to the sailor, and the sailor gave it to the captain. "
LIMIT = 700
"""Tokens: gpt2-nano, with a context of 512, has two windows over them."""


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("paper_table")
    sys.path.remove(str(SCRIPTS))


# --- the sliding window ---


def network(seed: int) -> Callable[[Tensor], Tensor]:
    """Logits, each of all tokens up to its own: (1, n) -> (1, n, 7)."""
    embedding = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed))
    return lambda ids: embedding[ids].cumsum(1)


def slowly(
    dense: Any, spiking: Any, ids: Tensor, context: int, stride: int
) -> tuple[int, float, float, int, int, int]:
    """The same sums, token by token from the definition."""
    tokens, losses, right, same = 0, [0.0, 0.0], [0, 0], 0
    for i in range(1, len(ids)):
        begin = 0
        while begin + context <= i:
            begin += stride
        if begin == i:
            continue  # nothing before it in its window
        tokens += 1
        best = []
        for form, model in enumerate((dense, spiking)):
            probabilities = model(ids[None, begin:i])[0, -1].softmax(-1)
            losses[form] -= math.log(probabilities[ids[i]])
            best.append(int(probabilities.argmax()))
            right[form] += best[-1] == ids[i]
        same += best[0] == best[1]
    return tokens, losses[0], losses[1], right[0], right[1], same


def swiftly(
    script: ModuleType, dense: Any, spiking: Any, ids: Tensor, context: int, stride: int
) -> dict[str, float]:
    parts = [
        script.score(dense, spiking, ids, window)
        for window in script.windows(len(ids), context, stride)
    ]
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@given(st.data())
def test_the_sliding_window_is_what_its_definition_says(script: ModuleType, data: Any) -> None:
    length = data.draw(st.integers(2, 40))
    context = data.draw(st.integers(2, 12))
    stride = data.draw(st.integers(1, context))
    ids = torch.randint(7, (length,), generator=torch.Generator().manual_seed(length))
    forms = network(1), network(2)
    found = swiftly(script, *forms, ids, context, stride)
    tokens, dense, spiking, *rest = slowly(*forms, ids, context, stride)
    names = "right_dense", "right_spiking", "same"
    assert [found[name] for name in names] == rest
    assert found["tokens"] == tokens
    assert tokens == length - 1 or stride == context
    assert found["nll_dense"] == pytest.approx(dense, rel=1e-4, abs=1e-4)
    assert found["nll_spiking"] == pytest.approx(spiking, rel=1e-4, abs=1e-4)


def test_windows_of_gpt2_are_those_of_the_recipe(script: ModuleType) -> None:
    """The loop in Hugging Face's documentation, on as many tokens as WikiText-2's test part has."""
    theirs, before = [], 0
    for begin in range(0, 287_644, 512):
        end = min(begin + 1024, 287_644)
        theirs.append((begin, max(before, 1), end))
        before = end
        if end == 287_644:
            break
    assert [tuple(window) for window in script.windows(287_644, 1024, 512)] == theirs
    assert len(theirs) == 561


def test_one_window_is_the_loss_that_transformers_computes(script: ModuleType) -> None:
    from neurtransformer.dense import load_dense

    dense, tokenizer = load_dense("gpt2-nano")
    ids = torch.tensor(tokenizer.encode(TEXT * 2))

    def logits(tokens: Tensor) -> Tensor:
        return dense(tokens).logits

    found = script.figures(swiftly(script, logits, logits, ids, 512, 256))
    loss = dense(ids[None], labels=ids[None]).loss.item()
    assert found["ppl_dense"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found["ppl_ratio"], found["token_agreement"]) == (1, 1)
    assert found["accuracy_dense"] == found["accuracy_spiking"] > 0


# --- the script ---


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 60)
    return path


@pytest.fixture
def in_process(script: ModuleType, neurtx: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs the script's commands in this process; those that were run."""
    lines: list[list[str]] = []

    def call(*words: object) -> dict[str, Any]:
        lines.append([str(word) for word in words])
        done = neurtx(*lines[-1], "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    monkeypatch.setattr(script, "neurtx", call)
    monkeypatch.setattr(script, "hold", lambda folder: None)
    return lines


def table_of(script: ModuleType, text: Path, *options: str) -> dict[str, Any]:
    words = ["gpt2-nano", "--out", "paper", "--text", str(text), "--limit", str(LIMIT), *options]
    assert script.run(words) == 0
    return read_json(text.with_name("paper") / "table.json")


@pytest.mark.slow
def test_from_nothing_to_the_table_and_on(
    script: ModuleType,
    in_process: list[list[str]],
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from neurtransformer.spiking.load import load_run, load_teacher

    write_whole = script.write_json
    window_by_window: list[dict[str, Any]] = []

    def stopping(path: Path, values: dict[str, Any]) -> None:
        write_whole(path, values)
        if path.name.startswith("perplexity"):
            window_by_window.append(values)
            if len(window_by_window) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(script, "write_json", stopping)
    words = ["gpt2-nano", "--out", "paper", "--text", str(text), "--limit", str(LIMIT)]
    assert script.run(words) == 130
    assert [line[0] for line in in_process] == ["convert", "eval", "energy"]
    assert not (text.with_name("paper") / "table.md").exists()

    # goes on behind the window it was stopped at, and asks for nothing a second time
    in_process.clear()
    capfd.readouterr()
    (row,) = table_of(script, text)["rows"]
    assert in_process == []
    assert [values["windows"] for values in window_by_window] == [1, 2]
    shown = capfd.readouterr().out
    assert shown == (text.with_name("paper") / "table.md").read_text()
    lines = shown.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| gpt2-nano | ")
    assert {line.count("|") for line in lines} == {11}
    assert "64.71 to 85.28 %" in lines[3] and lines[3].count(" - ") == 7

    # the sums of both parts are those of a whole
    run, _ = load_run(Path(row["run"]))
    dense, tokenizer = load_teacher(run), load_run(Path(row["run"]))[1]
    ids = torch.tensor(tokenizer.encode(text.read_text(), add_special_tokens=False)[:LIMIT])
    first = run.config.first_token
    assert first is not None
    forms = lambda x: dense_output(dense, x, first)[0], lambda x: run(x).logits
    whole = swiftly(script, *forms, ids, 511, 256)
    assert {name: row[name] for name in script.figures(whole)} == script.figures(whole)
    assert (row["tokens"], row["context"], row["stride"]) == (LIMIT - 1, 511, 256)
    assert row["parameters"] == dense.num_parameters()

    # done is done: nothing is even loaded; other settings are another question
    def loaded(*_: object) -> None:
        raise AssertionError("nothing was to be loaded")

    with monkeypatch.context() as patch:
        patch.setattr(script, "load_dense", loaded)
        assert table_of(script, text)["rows"] == [row]
    assert in_process == []
    monkeypatch.setattr(script, "write_json", write_whole)
    (other,) = table_of(script, text, "--stride", "512")["rows"]
    assert in_process == [] and other["tokens"] == LIMIT - 2


@pytest.fixture
def settings(script: ModuleType, text: Path) -> Any:
    return script.Settings(text, "sha", LIMIT, 256, 100, "train.txt", "cpu")


@pytest.mark.parametrize("stopped_at", ["before a checkpoint", "a checkpoint"])
def test_a_training_goes_on_from_its_checkpoint_or_from_the_start(
    script: ModuleType, settings: Any, tmp_path: Path, monkeypatch: Any, stopped_at: str
) -> None:
    run = tmp_path / "converted"
    run.mkdir()
    (run / "weights").write_text("converted")
    lines: list[list[str]] = []

    def training(*words: object) -> dict[str, Any]:
        lines.append([str(word) for word in words])
        folder = Path(lines[-1][1])
        if len(lines) == 1:
            (folder / "weights").write_text("half trained")
            if stopped_at == "a checkpoint":
                (folder / "checkpoint").mkdir()
            raise KeyboardInterrupt
        if stopped_at == "before a checkpoint":
            assert (folder / "weights").read_text() == "converted"
        else:
            (folder / "checkpoint").rmdir()
        (folder / "weights").write_text("trained")
        return {}

    monkeypatch.setattr(script, "neurtx", training)
    with pytest.raises(KeyboardInterrupt):
        script.trained(run, settings)
    assert not list(tmp_path.glob("finetuned-*"))
    done = script.trained(run, settings)
    assert (done / "weights").read_text() == "trained"
    assert (run / "weights").read_text() == "converted"
    assert [line[-1] == "--resume" for line in lines] == [False, stopped_at == "a checkpoint"]
    assert lines[0][2:] == [*("--steps", "100", "--device", "cpu", "--text", "train.txt")]
    assert script.trained(run, settings) == done and len(lines) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "converted",
        done.name,
    ]


@pytest.mark.slow
def test_a_table_of_a_trained_network(
    script: ModuleType, in_process: list[list[str]], tiny_dense_folder: Path, text: Path
) -> None:
    words = [str(tiny_dense_folder), "--out", "paper", "--text", str(text), "--limit", "100"]
    assert script.run([*words, "--steps", "2", "--train-text", str(text)]) == 0
    assert [line[0] for line in in_process] == ["convert", "finetune", "eval", "energy"]
    (row,) = read_json(text.with_name("paper") / "table.json")["rows"]
    assert (row["trained_steps"], row["context"], row["stride"]) == (2, 63, 32)
    assert read_json(Path(row["run"]) / "report.json")["finetune"]["steps"] == 2
    assert set(row["seconds"]) == {"convert", "finetune", "perplexity", "eval", "energy"}
    assert min(row["seconds"].values()) > 0
    # without training the conversion is there already; another text is another question
    for words[4] in str(text), str(text.with_name("other.txt")):
        Path(words[4]).write_text(text.read_text().replace("old", Path(words[4]).stem))
        in_process.clear()
        assert script.run(words) == 0
        assert [line[0] for line in in_process] == ["eval", "energy"]
        (other,) = read_json(text.with_name("paper") / "table.json")["rows"]
        assert other["trained_steps"] == 0 and other["ppl_dense"] != row["ppl_dense"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["gpt2-smal"], "did you mean gpt2-small"),
        (["gpt2-nano", "--text", "nowhere.txt"], "no text file 'nowhere.txt'"),
        (["gpt2-nano", "--text", "text.txt", "--out", "text.txt"], "is a file"),
        (["gpt2-nano", "--text", "text.txt", "--stride", "513"], "gpt2-nano reads 512 at most"),
        (["gpt2-nano", "--text", "text.txt", "--limit", "1"], "--limit"),
        (["gpt2-nano", "--nonsense"], "--nonsense"),
        (["gpt2-nano"], "give --text FILE"),
        (["gpt2-nano-spiking", "--text", "text.txt"], "gpt2-nano-spiking"),
    ],
)
def test_a_mistake_is_one_line(
    script: ModuleType,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(text.parent)
    monkeypatch.setattr("neurtransformer.hub.reachable", lambda: False)
    monkeypatch.setattr(script, "neurtx", lambda *words: pytest.fail("too late"))
    assert script.run(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("paper_table: error: ") and complaint in err


def test_commands_run_in_a_process_of_their_own(
    script: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [row["name"] for row in script.neurtx("models")["models"]]
    assert "gpt2-nano" in names
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        script.neurtx("energy", tmp_path / "nowhere")
    assert end.value.code == 2
    said, line = capfd.readouterr().err.splitlines()
    assert said.startswith("neurtx energy ") and line.startswith("neurtx: error: ")


def test_the_second_of_two_calls_is_refused(script: ModuleType, tmp_path: Path) -> None:
    script.hold(tmp_path)
    with pytest.raises(UserError, match="another call is at work"):
        script.hold(tmp_path)


def test_wikitext_is_joined_as_in_the_recipe(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def load_dataset(*words: str, split: str) -> dict[str, list[str]]:
        asked.append((*words, split))
        return {"text": ["", " = A title = \n", "", " A line . \n"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("neurtransformer.hub.reachable", lambda: True)
    for _ in range(2):
        file = script.wikitext(tmp_path / "text.txt")
        assert file.read_text() == "\n\n = A title = \n\n\n\n\n A line . \n"
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_a_file_cut_short_is_not_believed(
    script: ModuleType, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "neurtx", lambda *words: {"tokens": 5})
    run = tmp_path / "converted"
    kept = script.asked("eval", run, settings, 5)
    (file,) = tmp_path.glob("eval-*.json")
    assert read_json(file) == kept
    file.write_text(file.read_text()[:9])
    with pytest.raises(UserError, match="cut short"):
        script.asked("eval", run, settings, 5)
    write_json(file, {"tokens": 7})
    assert script.asked("eval", run, settings, 5) == {"tokens": 7}
