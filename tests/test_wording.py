"""What is said of wrong settings: one plain line for each kind of mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurtransformer.batch.config import read_config
from neurtransformer.errors import UserError
from neurtransformer.loihi.chip import load_chip
from neurtransformer.recipe import Recipe, load_recipe

RECIPES = [
    ("words: 9", 'there is no setting "words" (configs/default.yaml lists all)'),
    (
        "calibration: {words: 9}",
        'there is no setting "calibration.words" (configs/default.yaml lists all)',
    ),
    ("timesteps: 99", "timesteps must be 64 or less, not 99"),
    ("timesteps: 0", "timesteps must be 1 or more, not 0"),
    ("timesteps: many", "timesteps must be a whole number, not 'many'"),
    ("timesteps: 2.5", "timesteps must be a whole number, not 2.5"),
    ("timesteps: [8]", "timesteps must be a whole number"),
    ("finetune: {match_rate: 0}", "finetune.match_rate must be above 0, not 0"),
    ("finetune: {match_rate: fast}", "finetune.match_rate must be a number, not 'fast'"),
    ("finetune: {match_share: 1.5}", "finetune.match_share must be 1 or less, not 1.5"),
    (
        "finetune: {gradient_checkpointing: many}",
        "finetune.gradient_checkpointing must be true or false, not 'many'",
    ),
    ("finetune: {train: all}", "finetune.train must be ssa or blocks, not 'all'"),
    ("coding: true", "coding must be rate or phase, not true"),
    ("attention: [ttfs]", "attention must be text"),
    ("attention: nonsense", "attention must be ttfs or linear, not 'nonsense'"),
    ("calibration: 5", "calibration must be a group of settings (tokens, block), not 5"),
    (
        "digits: signed\nattention: linear",
        "digits: signed is for phase coding, and this network is rate coded: set coding or "
        "attention_coding to phase, or leave digits out",
    ),
]

BATCHES = [
    ("models: gpt2-nano", "models must be a list, such as [gpt2-nano], not 'gpt2-nano'"),
    ("models: []", "models must name at least one"),
    ("recipes: [default]", "models is missing"),
    ("models: [a]\nmodel: b", 'there is no setting "model" (docs/batch.md lists all)'),
    ("models: [a]\nseeds: [1, 1]", "seeds: one stands there twice"),
    (
        "models: [a]\neval: [3]",
        "eval must be a group of settings (limit, block, mode, device, dtype)",
    ),
    ("models: [3]", "models.0 must be a group of settings (model, name), not 3"),
    (
        "models: [{model: a, name: a b}]",
        "models.0.name must hold only letters, digits, - and _, and begin with a letter or a "
        "digit, not 'a b'",
    ),
    (f"models: [{{model: a, name: {'b' * 61}}}]", "models.0.name must be at most 60 characters"),
    ("models: ['-']", "models.0.model must not begin with -, not '-'"),
    ("models: ['']", "models.0.model must not be empty"),
    (
        "models: [a]\nsteps: [train]",
        "steps.0 must be one of convert, finetune, eval, energy, export, simulate or place, "
        "not 'train'",
    ),
]

CHIPS = [
    ("core: {neurons: 0}", "core.neurons must be 1 or more, not 0"),
    ("core: {sugar: 1}", 'there is no setting "core.sugar" (configs/loihi2.yaml lists all)'),
    ("core: 1", "core must be a group of settings (neurons, synaptic_bytes, neuron_bytes,"),
]

READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": load_recipe,
    "batch": read_config,
    "chip": load_chip,
}
WRONG = [
    *(("recipe", *case) for case in RECIPES),
    *(("batch", *case) for case in BATCHES),
    *(("chip", *case) for case in CHIPS),
]


@pytest.mark.parametrize(("kind", "text", "told"), WRONG)
def test_a_wrong_setting_is_told_plainly(tmp_path: Path, kind: str, text: str, told: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        READERS[kind](path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {told}")
    assert "\n" not in line and "Input should" not in line


def test_what_was_given_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"coding: '{'x' * 5000}'")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_an_option_needs_no_file() -> None:
    with pytest.raises(UserError, match=r"^timesteps must be 64 or less, not 99$"):
        load_recipe(timesteps=99)


def test_a_report_without_a_recipe() -> None:
    with pytest.raises(UserError, match=r"run/report.json: this must be a group of settings \(t"):
        Recipe.from_report({}, Path("run"))


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_none(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"nosuch\.yaml does not exist$"):
        READERS[kind](tmp_path / "nosuch.yaml")
    with pytest.raises(UserError, match=f"^{tmp_path} is a folder"):
        READERS[kind](tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"f\.yaml cannot be read: Not a directory"):
        READERS[kind](tmp_path / "file" / "f.yaml")
