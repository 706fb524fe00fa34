"""What the keys of an answer mean stands beside them, or below where there is no room."""

import io
from typing import Any, get_args

import pytest
from rich.console import Console

from neurtransformer.measure.meanings import MEANINGS, meaning
from neurtransformer.measure.prices import UNITS, Unit
from neurtx.output import meant_table

ROWS = [("ppl_ratio", 1.25), ("attention_energy_reduction_percent, ESTIMATE", 3.0), ("odd", "x")]


def shown(width: int, rows: Any = ROWS, command: str = "eval") -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(meant_table(rows, command, title="a title"))
    return [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_meanings_stand_beside_the_values() -> None:
    lines = shown(160)
    assert any(line.endswith("meaning") for line in lines)
    (line,) = (line for line in lines if line.startswith("ppl_ratio "))
    assert line.split("  ")[-1].strip() == MEANINGS["ppl_ratio"]
    assert any(MEANINGS["attention_energy_reduction_percent"] in line for line in lines)


def test_in_a_narrow_terminal_they_stand_below() -> None:
    lines = shown(80)
    first, second = (i for i, line in enumerate(lines) if line.startswith("ppl_ratio "))
    assert lines[first].split() == ["ppl_ratio", "1.25"]
    assert lines[second].endswith(MEANINGS["ppl_ratio"])
    assert sum(line.startswith("odd ") for line in lines) == 1


def test_keys_that_nobody_explains_need_no_column() -> None:
    assert not any("meaning" in line for line in shown(160, [("b.c", 1.5)], ""))


@pytest.mark.parametrize("command", ["export", "finetune", "simulate"])
def test_a_command_may_mean_something_else_by_a_key(command: str) -> None:
    own = [key for key in MEANINGS if key.startswith(f"{command}.")]
    assert own
    for key in own:
        assert meaning(key.partition(".")[2], command) == MEANINGS[key]


def test_every_unit_of_a_price_is_explained() -> None:
    assert set(UNITS) == set(get_args(Unit))
