"""The commands as people and batch jobs call them: the whole way, and every kind of bad input."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neurtx.main import main


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def neurtx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a command in an empty folder, in this process: starting one takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neurtx.output.quiet", lambda: None)

    def call(*args: str) -> Done:
        monkeypatch.setattr("sys.argv", ["neurtx", *args])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return call


def one_line(result: Done) -> str:
    """The single line of a caller's mistake."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("neurtx: error: "), result.stderr
    return lines[0]


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


@pytest.mark.parametrize("timesteps", ["0", "-3", "1000"])
def test_impossible_timesteps(neurtx: Any, tmp_path: Path, timesteps: str) -> None:
    assert "timesteps" in one_line(neurtx("convert", "gpt2-nano", "--timesteps", timesteps))
    assert not any(tmp_path.iterdir())


def test_bad_recipe(neurtx: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("timestep: 4\n")
    assert "timestep" in one_line(neurtx("convert", "gpt2-nano", "--config", "recipe.yaml"))


def test_bad_text(neurtx: Any, tiny_dense_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    for name in ("empty.txt", "binary.txt", "nowhere.txt"):
        out = neurtx("convert", str(tiny_dense_folder), "--text", name, "--out", "run")
        assert name in one_line(out)
        assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(neurtx: Any, tiny_dense_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    args = ("convert", str(tiny_dense_folder), "--out", "run")
    assert "--force" in one_line(neurtx(*args))
    one_line(neurtx(*args, "--force"))
    assert (tmp_path / "run" / "precious").read_text() == "x"


def test_no_run_and_no_checkpoint(neurtx: Any, tiny_run: Path) -> None:
    assert "convert" in one_line(neurtx("eval"))
    assert "--resume" in one_line(neurtx("finetune", str(tiny_run), "--resume"))


def test_prompt_that_does_not_fit(neurtx: Any, tiny_run: Path) -> None:
    assert "empty" in one_line(neurtx("generate", str(tiny_run), "--prompt", ""))
    long = neurtx("generate", str(tiny_run), "--prompt", "a", "--tokens", "100")
    assert "positions" in one_line(long)
