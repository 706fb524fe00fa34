"""A run, a netlist or a dense model in the place of another: the answer says what it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("eval nosuch", "or name one that ships (`neurtx models`)"),
        ("eval gpt2-nano", "gpt2-nano is a dense model: convert it first with `neurtx convert g"),
        ("eval dense", "dense is a dense model: convert it first with `neurtx convert dense`"),
        ("eval netlist", "netlist is a netlist: `neurtx simulate` runs it"),
        ("export netlist --target nir", "netlist is a netlist"),
        ("place run", "run is a run: export it first with `neurtx export run --target loihi2`"),
        ("simulate run --prompt a", "run is a run: export it first"),
        ("place gpt2-nano-phase", "gpt2-nano-phase is a run: export it first"),
        ("place dense", "dense is a dense model: convert it first"),
        ("convert run", "run is a run already: `neurtx eval` measures it"),
        ("convert gpt2-nano-phase", "gpt2-nano-phase is a run already"),
        ("eval omniglot-plastic", "reads drawings, not text: use `neurtx icl omniglot`"),
        ("report omniglot-plastic", "has no report, for it reads drawings"),
        ("eval run --text a/b", "'a/b' is neither a file here nor a data set that can be reached"),
    ],
)
@pytest.mark.usefixtures("one_of_each")
def test_it_is_told_what_it_is(neurtx: Callable[..., Any], words: str, told: str) -> None:
    assert told in neurtx(*words.split()).mistake()


def test_there_is_nothing_yet(neurtx: Callable[..., Any]) -> None:
    told = neurtx("eval").mistake()
    assert "there is no run here yet: make one with `neurtx convert MODEL`" in told
    assert "or name one that ships: gpt2-nano-linear, gpt2-nano-phase," in told
    told = neurtx("simulate", "--prompt", "a").mistake()
    assert "there is no netlist here yet" in told and "ships" not in told


def test_a_damaged_folder_is_still_no_run(neurtx: Callable[..., Any], tmp_path: Path) -> None:
    """What tells what a folder is may itself be unreadable."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text("{")
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": ["gpt2"]}))
    assert "is not a run (no report.json in it)" in neurtx("eval", "odd").mistake()
