"""`neurtx run`: what a config means, what is shared, skipped, tried again and told.

The commands are those of `pretending`; a real batch is in test_batch_killed.py.
"""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretending
import pytest
import yaml
from conftest import Done

from neurtransformer import stop
from neurtransformer.batch import estimate, plan, results, work
from neurtransformer.batch.config import STEPS, Config, read_config
from neurtransformer.errors import UserError
from neurtransformer.lock import claimed

ALL: dict[str, Any] = {
    "models": ["gpt2-nano"],
    "seeds": [0, 1],
    "texts": ["cpython", "novel.txt"],
}
# of each step: 2 seeds from training on, times 2 texts where they are read
JOBS = {"convert": 1, "finetune": 2, "eval": 4, "energy": 4, "export": 4, "simulate": 2, "place": 2}


@pytest.fixture
def batch(
    neurtx: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """`neurtx run` of a config that is given as a mapping, with commands that pretend."""
    program = [sys.executable, "-S", "-E", pretending.__file__]
    monkeypatch.setattr(work, "PROGRAM", program)
    monkeypatch.setattr(work, "_PAUSE", 0.01)
    monkeypatch.setenv(pretending.CALLS, str(tmp_path / "calls"))
    (tmp_path / "novel.txt").write_text("It was a dark and stormy night.")

    def call(config: dict[str, Any], *words: str) -> Done:
        (tmp_path / "calls").write_text("")
        (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))
        return neurtx("run", "all.yaml", "--root", "root", *words)

    return call


def calls(tmp_path: Path) -> list[str]:
    return [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]


def entries_of(tmp_path: Path, config: dict[str, Any]) -> list[plan.Entry]:
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))
    return plan.planned(read_config(tmp_path / "all.yaml"), tmp_path / "all.yaml")


def table(tmp_path: Path, root: str = "root") -> list[dict[str, Any]]:
    lines = (tmp_path / root / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- the whole way ---


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_each_job_is_done_once(batch: Callable[..., Done], tmp_path: Path, jobs: str) -> None:
    done = batch(ALL, "--json", "--jobs", jobs)
    assert done.returncode == 0, done.stderr
    assert {step: calls(tmp_path).count(step) for step in STEPS} == JOBS
    told = json.loads(done.stdout)
    assert told["done"] == len(told["entries"]) == 4 and told["failed"] == 0
    rows = table(tmp_path)
    assert rows == told["entries"]
    assert rows[3]["id"] == "gpt2-nano.default.1.novel"
    assert {"run", "seconds", "netlist"}.isdisjoint(rows[3]["eval"])
    # a training knows its seed and its recipe, a measurement its text
    assert rows[0]["finetune"] == rows[1]["finetune"] != rows[2]["finetune"]
    assert rows[0]["convert"] == rows[2]["convert"]
    assert rows[0]["eval"] != rows[1]["eval"]
    cells = list(csv.DictReader((tmp_path / "root" / "results.csv").open()))
    assert [row["id"] for row in cells] == [row["id"] for row in rows]
    assert cells[1]["eval.figure"] == rows[1]["eval"]["figure"]
    assert cells[1]["place.parts.share"] == "0.5" and "eval.parts.list" not in cells[1]
    # the caller's last run is not one of these
    assert not (tmp_path / ".neurtx").exists() and not (tmp_path / "batches").exists()


def test_what_is_done_is_skipped(batch: Callable[..., Done], tmp_path: Path) -> None:
    assert batch(ALL).returncode == 0
    before = [(tmp_path / "root" / name).read_bytes() for name in results.TABLES]
    again = batch(ALL)
    assert again.returncode == 0 and calls(tmp_path) == []
    assert "all is done already" in again.stderr
    assert before == [(tmp_path / "root" / name).read_bytes() for name in results.TABLES]
    # one more text: it is only measured on
    (tmp_path / "poem.txt").write_text("Roses are red.")
    assert batch({**ALL, "texts": [*ALL["texts"], "poem.txt"]}).returncode == 0
    assert sorted(calls(tmp_path)) == sorted(["eval", "energy", "export"] * 2)
    # the same text from another file, and another text from the same
    shutil.copy(tmp_path / "novel.txt", tmp_path / "copy.txt")
    (tmp_path / "novel.txt").write_text("Call me Ishmael.")
    texts = ["cpython", {"name": "novel", "text": "copy.txt"}, {"name": "new", "text": "novel.txt"}]
    assert batch({**ALL, "texts": texts}).returncode == 0
    assert len(calls(tmp_path)) == 6


def test_a_folder_that_is_gone_is_made_again_when_it_is_needed(
    batch: Callable[..., Done], tmp_path: Path
) -> None:
    """Results may be brought from other machines without runs and netlists."""
    assert batch(ALL).returncode == 0
    for folder in (tmp_path / "root" / "steps").glob("*/*/"):
        shutil.rmtree(folder)
    assert batch(ALL).returncode == 0 and calls(tmp_path) == []
    place = next((tmp_path / "root" / "steps").glob("place-gpt2-nano.default.1-*"))
    shutil.rmtree(place)
    assert batch(ALL).returncode == 0
    assert calls(tmp_path) == ["convert", "finetune", "export", "place"]


def test_other_versions_are_other_jobs(
    batch: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"models": ["gpt2-nano"], "steps": ["convert", "eval"]}
    assert batch(config).returncode == 0 and len(calls(tmp_path)) == 2
    monkeypatch.setattr(plan, "versions", lambda: {"neurtx": "9.9"})
    assert batch(config).returncode == 0 and len(calls(tmp_path)) == 2
    # an option of one step leaves those before it alone
    assert batch({**config, "eval": {"limit": 99}}).returncode == 0
    assert calls(tmp_path) == ["eval"]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_failure_takes_nobody_along(
    batch: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    monkeypatch.setenv(pretending.FAILS, "finetune --seed=1")
    done = batch(ALL, "--jobs", jobs)
    assert done.returncode == 1
    assert "2 of 4 entries done" in done.stdout
    assert done.stdout.count("finetune: it was told to fail") == 2
    assert done.stderr.count("FAILED") == 1 and "log.txt" in done.stderr
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    assert rows[2]["failed"] == {"finetune": "it was told to fail"}
    assert "convert" in rows[2] and "eval" not in rows[2]
    assert calls(tmp_path).count("eval") == 2
    monkeypatch.delenv(pretending.FAILS)
    assert batch(ALL, "--jobs", jobs).returncode == 0
    assert calls(tmp_path).count("finetune") == 1 and calls(tmp_path).count("eval") == 2
    assert {row["status"] for row in table(tmp_path)} == {"done"}
    assert not list((tmp_path / "root").rglob("failed.json"))


def test_only_some_entries(batch: Callable[..., Done], tmp_path: Path) -> None:
    done = batch(ALL, "--only", "gpt2-nano.default.0.novel", "--json")
    assert done.returncode == 0 and calls(tmp_path) == list(STEPS)
    assert [row["id"] for row in json.loads(done.stdout)["entries"]] == [
        "gpt2-nano.default.0.novel"
    ]
    # the tables are those of the whole plan, whoever works on it
    assert [row["status"] for row in table(tmp_path)].count("unfinished") == 3
    ids = [
        row["id"]
        for part in range(1, 4)
        for row in json.loads(batch(ALL, "--only", f"{part}/3", "--json").stdout)["entries"]
    ]
    assert ids == [row["id"] for row in table(tmp_path)]
    assert {row["status"] for row in table(tmp_path)} == {"done"}
    assert json.loads(batch(ALL, "--only", "5/5", "--json").stdout)["done"] == 1
    assert json.loads(batch(ALL, "--only", "1/5", "--json").stdout)["entries"] == []
    assert len(json.loads(batch(ALL, "--only", "*.novel", "--json").stdout)["entries"]) == 2


def test_the_plan_is_told_and_nothing_done(batch: Callable[..., Done], tmp_path: Path) -> None:
    done = batch(ALL, "--dry-run", "--json")
    assert done.returncode == 0 and not (tmp_path / "root").exists()
    told = json.loads(done.stdout)
    assert told["entries"][0]["id"] == "gpt2-nano.default.0.cpython"
    assert told["entries"][0]["steps"] == list(STEPS)
    assert told["entries"][1]["steps"] == ["eval", "energy", "export"]
    assert told["estimated_seconds"] == pytest.approx(
        sum(row["estimated_seconds"] for row in told["entries"])
    )
    assert 0.5 < told["entries"][0]["estimated_memory_gb"] < 2
    shown = batch(ALL, "--dry-run").stdout
    assert "ESTIMATED" in shown and "gpt2-nano.default.1.novel" in shown
    assert batch(ALL).returncode == 0
    assert all(
        not r["steps"] for r in json.loads(batch(ALL, "--dry-run", "--json").stdout)["entries"]
    )


# --- how a job may end ---


def test_two_batches_never_do_one_job(batch: Callable[..., Done], tmp_path: Path) -> None:
    config = {"models": ["gpt2-nano"], "steps": ["convert"]}
    entries = entries_of(tmp_path, config)
    job = entries[0].jobs["convert"]
    folder = results.folder_of(tmp_path / "root", job)
    folder.mkdir(parents=True)
    lock = claimed(folder / "lock")
    assert lock is not None and claimed(folder / "lock") is None
    said = []

    def say(line: str) -> None:
        """Another process has done the job when it is waited for."""
        said.append(line)
        results.made_by(tmp_path / "root", job).mkdir()
        results.keep_result(tmp_path / "root", job, {"figure": 1}, 1.0)
        fcntl.flock(lock, fcntl.LOCK_UN)  # a janitor was forked meanwhile, and has it open too

    rows = work.Batch(tmp_path / "root", entries, entries, say=say).work()
    assert said == ["another process works on what is left to do: waiting for it"]
    assert rows[0]["status"] == "done" and rows[0]["convert"] == {"figure": 1}
    os.close(lock)


@pytest.mark.parametrize("what", ["damaged", "trained already"])
def test_a_training_that_was_killed_at_its_end(
    batch: Callable[..., Done], tmp_path: Path, what: str
) -> None:
    """When it was removing its checkpoint, or just before: the weights are the trained ones."""
    config = {"models": ["gpt2-nano"], "steps": ["convert", "finetune"]}
    assert batch(config).returncode == 0
    before = (tmp_path / "root" / "results.csv").read_bytes()
    folder = next((tmp_path / "root" / "steps").glob("finetune-*"))
    weights = (folder / "run" / "model.safetensors").read_bytes()
    (folder / "result.json").unlink()
    (folder / "run" / "checkpoint").mkdir()
    (folder / "run" / ".neurtx-old-0-checkpoint").mkdir()
    (folder / "run" / ".fresh").write_text("half")
    if what != "damaged":
        at = (next(folder.parent.glob("convert-*")) / "run" / "model.safetensors").read_text()
        (folder / "run" / "checkpoint" / "state").write_text(f"0 {at}")
    done = batch(config)
    assert done.returncode == 0, done.stderr
    assert "finetune gpt2-nano.default.0: goes on" in done.stderr
    assert ("begins again" in done.stderr) == (what == "damaged")
    assert before == (tmp_path / "root" / "results.csv").read_bytes()
    assert weights == (folder / "run" / "model.safetensors").read_bytes()
    assert not list((folder / "run").glob(".*"))


@pytest.mark.parametrize(
    ("code", "answer", "log", "reason"),
    [
        (-9, None, "", "ended by SIGKILL, which is what happens when memory runs out"),
        (-11, None, "", "ended by SIGSEGV"),
        (1, {"mismatches": 3, "compared": 9}, "", "3 mismatches in 9 integers"),
        (1, {"mismatches": 0, "same_text": False}, "", "the text that follows is another one"),
        (2, None, "x\nneurtx: error: no room\nneurtx: bye\n", "no room"),
        (1, None, "Traceback\nValueError: x\n\n", "ValueError: x"),
        (3, None, "", "exit code 3"),
        (0, None, "", "exit code 0"),
    ],
)
def test_why_a_job_failed(tmp_path: Path, code: int, answer: Any, log: str, reason: str) -> None:
    (tmp_path / "log").write_text(log)
    assert work._reason(code, answer, tmp_path / "log") == reason


# --- configs ---


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modles": ["gpt2-nano"]}, "modles"),
        ({"models": []}, "models"),
        ({"models": ["gpt2-nanoo"]}, "no model folder"),
        ({"models": ["gpt2-nano", {"model": "gpt2-nano"}]}, "two have the name gpt2-nano"),
        ({"models": [{"model": "gpt2-nano", "name": "a b"}]}, "name"),
        ({"recipes": [{"coding": "face"}]}, "coding"),
        ({"recipes": [{"timesteps": 99}]}, "timesteps"),
        ({"recipes": ["gone.yaml"]}, "there is no file"),
        ({"seeds": [0, 0]}, "twice"),
        ({"texts": ["gone.txt"]}, "there is no text file"),
        ({"texts": ["-"]}, "texts"),
        ({"steps": ["convert", "dance"]}, "steps"),
        ({"steps": ["convert", "simulate"]}, "simulate needs export"),
        ({"steps": ["eval"]}, "convert has to be"),
        ({"steps": ["convert", "eval"], "seeds": [0, 1]}, "only finetune"),
        ({"eval": {"limits": 3}}, "eval.limits"),
        ({"finetune": {"steps": 0}}, "finetune.steps"),
        ({"place": {"chip": "gone.yaml"}}, "there is no file"),
        ({"export": {"device": "tpu"}}, "export.device must be cpu, cuda or cuda:N, not 'tpu'"),
        ({"finetune": {"device": "cuda:07"}}, "finetune.device must be"),
        ({"eval": {"dtype": "int8"}}, "eval.dtype"),
        ({"export": {"dtype": "float16"}}, "export.dtype"),
        ({"simulate": {"device": "cuda"}}, "simulate.device"),
    ],
)
def test_a_wrong_config(
    batch: Callable[..., Done], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    done = batch({"models": ["gpt2-nano"], **change})
    assert told in done.mistake()
    assert not (tmp_path / "root").exists()


def test_no_config(batch: Callable[..., Done], neurtx: Callable[..., Done], tmp_path: Path) -> None:
    assert "gone.yaml does not exist" in neurtx("run", "gone.yaml").mistake()
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "no readable YAML" in neurtx("run", "bad.yaml").mistake()
    (tmp_path / "list.yaml").write_text("[1]")
    assert "no mapping" in neurtx("run", "list.yaml").mistake()
    assert "fits no entry" in batch(ALL, "--only", "gpt3").mistake()
    assert "from 1 to 3" in batch(ALL, "--only", "0/3").mistake()
    (tmp_path / "root").write_text("")
    assert "is a file" in batch(ALL).mistake()


def test_recipes_have_names_of_their_own(tmp_path: Path) -> None:
    recipes = ["default", {"coding": "phase", "timesteps": 5}, {"name": "x", "attention": "linear"}]
    entries = entries_of(tmp_path, {"models": ["gpt2", "distilgpt2"], "recipes": recipes})
    names = [
        f"{m}.{r}.0.cpython"
        for m in ("gpt2-small", "distilgpt2")
        for r in ("default", "phase-5", "x")
    ]
    assert [entry.id for entry in entries] == names
    assert entries[1].jobs["convert"].words == ("--coding=phase", "--timesteps=5")
    assert len(plan.jobs_of(entries)) == 6 * len(STEPS)


def test_paths_are_those_of_the_config(tmp_path: Path, tiny_dense_folder: Path) -> None:
    """From wherever the command is called; and what counts of a file is what is in it."""
    made = []
    for place in ("one", "two"):
        folder = tmp_path / place
        shutil.copytree(tiny_dense_folder, folder / "my model")
        (folder / "t.txt").write_text("text")
        (folder / "r.yaml").write_text("timesteps: 4")
        config = {
            "models": ["./my model"],
            "recipes": ["r.yaml"],
            "texts": ["t.txt"],
            "finetune": {"text": "t.txt", "spikes_budget": 0.5},
            "simulate": {"prompt": "--x y"},
        }
        made.append(entries_of(folder, config)[0])
    assert made[0].id == "my-model.r.0.t"
    assert all(made[0].jobs[step].hash == made[1].jobs[step].hash for step in STEPS)
    assert f"--text={tmp_path}/one/t.txt" in made[0].jobs["eval"].words
    assert made[0].jobs["convert"].words == (f"--config={tmp_path}/one/r.yaml",)
    words = (f"--text={tmp_path}/two/t.txt", "--spikes-budget=0.5", "--seed=0")
    assert made[1].jobs["finetune"].words == words
    assert made[0].jobs["simulate"].words == ("--prompt=--x y",)
    weights = tmp_path / "two" / "my model" / "generation_config.json"
    weights.write_text(weights.read_text() + " ")
    other = entries_of(tmp_path / "two", config)[0]
    assert all(made[0].jobs[step].hash != other.jobs[step].hash for step in STEPS)


def test_every_option_is_one_of_its_command() -> None:
    from neurtx import main as cli

    for step in STEPS:
        command = cli.neurtx.get_command(None, step)
        assert command is not None
        known = {word for parameter in command.params for word in parameter.opts}
        section = Config.model_fields[step].annotation
        assert section is not None
        ours = {f"--{name.replace('_', '-')}" for name in section.model_fields}
        assert ours <= known, step
        # where and in what a network computes may be said of all steps in which one does
        assert {"--device", "--dtype"} & known == {"--device", "--dtype"} & ours, step


def test_a_device_is_told_and_makes_no_other_job(tmp_path: Path) -> None:
    def jobs_on(place: str, **finetune: str) -> Any:
        steps = ("convert", "eval", "energy", "export")
        options = {step: {"device": place} for step in steps}
        config = {"models": ["gpt2-nano"], **options, "finetune": {"steps": 5, **finetune}}
        return entries_of(tmp_path, config)[0].jobs

    plain = entries_of(tmp_path, {"models": ["gpt2-nano"], "finetune": {"steps": 5}})[0].jobs
    here, there = jobs_on("cpu"), jobs_on("cuda:1")
    for step in STEPS:
        assert plain[step].hash == here[step].hash == there[step].hash
        told = "--device=cuda:1" in there[step].words
        assert told == (step in ("convert", "eval", "energy", "export"))
    # a training ends with other weights, and so does all that follows
    trained = jobs_on("cpu", device="cuda")
    assert "--device=cuda" in trained["finetune"].words
    assert [step for step in STEPS if trained[step].hash == here[step].hash] == ["convert"]
    # a type changes what is measured
    half = {"models": ["gpt2-nano"], "finetune": {"steps": 5}, "eval": {"dtype": "bfloat16"}}
    rounded = entries_of(tmp_path, half)[0].jobs
    assert "--dtype=bfloat16" in rounded["eval"].words
    assert [step for step in STEPS if rounded[step].hash != here[step].hash] == ["eval"]


def test_an_estimate_grows_with_model_and_work(tmp_path: Path, tiny_dense_folder: Path) -> None:
    models = [str(tiny_dense_folder), "gpt2-nano", "gpt2-xl", "some/model"]
    entries = entries_of(tmp_path, {"models": models, "finetune": {"steps": 100}})
    for step in STEPS:
        *known, unknown = (estimate.estimate(entry.jobs[step], 2) for entry in entries)
        assert unknown == (None, None)
        seconds, memory = zip(*known, strict=True)
        assert list(memory) == sorted(set(memory)) and list(seconds) == sorted(seconds)
    more = entries_of(tmp_path, {"models": ["gpt2-nano"], "finetune": {"steps": 1000}})
    few, many = (estimate.estimate(e.jobs["finetune"], 2) for e in (entries[1], more[0]))
    assert few.seconds and many.seconds and few.seconds < many.seconds


# --- signals ---

WAITS = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(600)"
STOPPED = """
import sys
from neurtransformer.batch import work
work.PROGRAM = [sys.executable, "-c", sys.argv.pop(1), sys.argv.pop(1)]
from neurtx.main import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "c.yaml").write_text("models: [gpt2-nano]")
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, WAITS, "begun", "run", "c.yaml", "--root", "root"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    (folder,) = _eventually(lambda: list((tmp_path / "root" / "steps").glob("convert-*")))
    _eventually(lambda: (folder / "begun").exists())
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    # whoever has the lock is gone
    lock = _eventually(lambda: claimed(folder / "lock"))
    os.close(lock)
    assert not (folder / "result.json").exists() and not (folder / "failed.json").exists()
    if number in stop.SIGNALS:
        assert process.returncode == 128 + number
        assert said.endswith("the same command again goes on\n")


def _eventually(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.02)
    assert value
    return value


def test_a_config_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_config(tmp_path)
