"""The full bill: sums by hand, prices against other people's copies of them, what must not be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_energy import RACE, SMALL, SPIKES

from neurtransformer.measure.bill import (
    CAUSE_OF,
    bill,
    break_even,
    lines,
    messages,
    priced,
    silenced,
    traffic,
    units,
)
from neurtransformer.measure.counts import Ops, Shape
from neurtransformer.measure.operations import operations
from neurtransformer.measure.prices import (
    DENSE,
    GRADES,
    LOIHI,
    PRESET,
    REGISTERS,
    SPIKING,
    PriceList,
    dense_prices,
    sram_pj,
)
from neurtransformer.recipe import Code

RATES = {"spiking": 0.25, "graded": 0.5}
LISTS = (*DENSE, SPIKING, REGISTERS, LOIHI, PRESET)


def billed(shape: Shape) -> dict[str, Any]:
    return bill(shape, [SPIKES], [SPIKES], RATES)


# --- prices ---


def test_prices_are_those_of_spikingjelly() -> None:
    """Its authors copied the same tables."""
    from spikingjelly.activation_based.op_counter import (
        LemaireEnergyCostConfig,
        SimpleEnergyCostConfig,
    )

    for name, theirs in (
        ("fp32", SimpleEnergyCostConfig.fp32()),
        ("fp16", SimpleEnergyCostConfig.fp16()),
    ):
        ours = dense_prices(name, "on-chip").prices
        assert ours["product"].pj == pytest.approx(theirs.e_mac_pj)
        assert ours["addition"].pj == pytest.approx(theirs.e_ac_pj)
    theirs = SimpleEnergyCostConfig.int8()
    # they add in 8 bits, 0.03 pJ, we in 32
    assert dense_prices("int8", "on-chip").prices["product"].pj == pytest.approx(
        theirs.e_mac_pj - 0.03 + 0.1
    )
    assert PRESET.prices["product"].pj == theirs.e_mac_pj
    assert PRESET.prices["addition"].pj == theirs.e_ac_pj
    assert PRESET.prices["weight"].pj == theirs.e_memory_pj_per_byte
    for size, pj_per_byte in LemaireEnergyCostConfig().memory_breakpoints[1:]:
        # an access of 64 bits by Horowitz; they take it for one of 4 bytes
        assert sram_pj(size / 1024) == pytest.approx(4 * pj_per_byte)
    assert SPIKING.prices["addition"].pj == LemaireEnergyCostConfig().e_add_pj
    assert SPIKING.prices["wide product"].pj == pytest.approx(
        LemaireEnergyCostConfig().e_mul_pj + 0.1
    )


def test_memory_between_two_sizes_costs_something_between() -> None:
    prices = [sram_pj(kib) for kib in (8, 16, 32, 64, 128, 512, 1024)]
    assert prices == sorted(prices)
    assert prices[1] == pytest.approx(200**0.5)  # twice the size, the root of two: the middle
    # a weight from DRAM, and from a core's memory
    assert dense_prices("int8", "DRAM").prices["weight"].pj == 1300 / 8
    assert SPIKING.prices["weight"].pj == pytest.approx(sram_pj(128) / 8)
    assert dense_prices("fp32", "on-chip").prices["weight"].pj == pytest.approx(sram_pj(128) / 2)
    assert SPIKING.prices["state"].pj == pytest.approx(10 * 24 / 64)
    assert SPIKING.prices["event"].pj == pytest.approx(2 * 10 * 24 / 64)


@pytest.mark.parametrize("prices", LISTS, ids=lambda prices: prices.name)
def test_every_price_has_a_source_and_a_grade(prices: PriceList) -> None:
    for unit, price in prices.prices.items():
        assert price.pj > 0 and price.source and price.grade in GRADES
        assert price.grade == "published" or price.why, unit
    assert not prices.within & set(prices.prices)


# --- the bill ---


def test_a_line_by_hand() -> None:
    parts = operations(RACE, [SPIKES], [SPIKES])
    found = lines(parts, "spiking", messages(RACE, [SPIKES]))
    # encode 10 spikes to 24, merged 9 to 8, mlp 11 to 32 and 20 to 8
    events = 10 * 24 + 9 * 8 + 11 * 32 + 20 * 8
    line = found["projections"]
    assert {unit: n for unit, n in line.items() if n} == {
        "addition": events, "weight": events, "event": events
    }  # fmt: skip
    assert found["scores"]["cached"] == found["scores"]["event"] == 6 * 3
    assert found["values"]["cached"] == found["values"]["event"] == 5 * 5
    assert found["writing keys and values"]["write"] == 16
    assert found["embedding and LM head"]["product"] == 800
    row = {line["cause"]: line for line in priced(found, SPIKING)["lines"]}["projections"]
    assert row["operations_j"] == pytest.approx(events * 0.1e-12)
    assert row["weights_j"] == pytest.approx(events * sram_pj(128) / 8 * 1e-12)
    assert row["accumulators_j"] == pytest.approx(events * 7.5e-12)
    # 62 spikes, one core for each matrix, five streams of 8, and 8 in front of each end
    assert found["spike transport"]["message"] == 10 + 6 + 5 + 7 + 9 + 5 + 11 + 20 + 5 * 8 + 3 * 8


def test_a_spike_goes_to_every_core_that_has_targets() -> None:
    wide = replace(RACE, width=1024, hidden=1024, vocab=1)
    # 2^20 bytes of c_fc are 8 cores of 2^17
    more = messages(wide, [replace(SPIKES, mlp_encode=12)]) - messages(wide, [SPIKES])
    assert more == 8


@pytest.mark.parametrize("shape", [SMALL, RACE], ids=["linear", "ttfs"])
def test_nothing_is_lost_or_counted_twice(shape: Shape) -> None:
    parts = operations(shape, [SPIKES], [SPIKES])
    assert {name for forms in parts.values() for part in forms.values() for name in part} <= set(
        CAUSE_OF
    )
    for form in ("dense", "spiking", "graded"):
        everything = [ops for forms in parts.values() for ops in forms[form].values()]
        found = lines(parts, form)
        for unit, fields in {
            ("product", "wide product"): ("mac",),
            ("addition",): ("ac",),
            ("weight", "cached"): ("weights",),
            ("state", "matrix entry"): ("states",),
            ("event",): ("events",),
            ("update",): ("updates",),
            ("write",): ("writes",),
        }.items():
            assert sum(line.get(u, 0) for line in found.values() for u in unit) == pytest.approx(  # type: ignore[call-overload]
                sum(getattr(ops, field) for ops in everything for field in fields)
            )
    for of in (billed(shape)["spiking"], *billed(shape)["dense"].values()):
        assert of["total_j"] == pytest.approx(sum(line["total_j"] for line in of["lines"]))
        columns = ("operations", "weights", "accumulators", "states", "transport")
        assert of["total_j"] == pytest.approx(sum(of[f"{column}_j"] for column in columns))


def test_without_a_price_there_is_no_sum() -> None:
    found = billed(RACE)["loihi_1"]["spiking"]
    assert found["total_j"] is None and found["missing"] == ["wide product", "product"]
    rows = {line["cause"]: line for line in found["lines"]}
    assert rows["norms and activations"]["total_j"] is None
    assert rows["embedding and LM head"]["missing"] == ["product"]
    events = 10 * 24 + 9 * 8 + 11 * 32 + 20 * 8
    assert rows["projections"]["total_j"] == pytest.approx(events * 23.6e-12)
    assert found["priced_j"] >= rows["projections"]["total_j"]
    # what is not counted needs no price
    assert LOIHI.missing({"event": 5.0, "product": 0.0}) == []
    assert LOIHI.missing(units("new", Ops(mac=1))) == ["wide product"]


def test_the_same_matrix_costs_what_its_width_and_memory_cost() -> None:
    dense = billed(RACE)["dense"]
    assert set(dense) == {
        f"{f}, {m}" for f in ("fp32", "fp16", "int8") for m in ("DRAM", "on-chip")
    }
    weights = {name: of["weights_j"] for name, of in dense.items()}
    assert weights["fp32, on-chip"] == pytest.approx(4 * weights["int8, on-chip"])
    assert weights["fp16, DRAM"] == pytest.approx(2 * weights["int8, DRAM"], rel=0.05)
    for of in dense.values():
        assert of["accumulators_j"] == of["states_j"] == of["transport_j"] == 0


def test_traffic_is_counted_at_the_widths_of_both_sides() -> None:
    parts = operations(RACE, [SPIKES], [SPIKES])
    dense, ours = (traffic(lines(parts, form)) for form in ("dense", "spiking"))
    words = sum(ops.weights for forms in parts.values() for ops in forms["dense"].values())
    assert dense == {
        "weights_bits": 8 * words, "accumulators_bits": 0, "states_bits": 0, "total_bits": 8 * words
    }  # fmt: skip
    spiking = [ops for forms in parts.values() for ops in forms["spiking"].values()]
    assert ours["accumulators_bits"] == 48 * sum(ops.events for ops in spiking)
    assert ours["states_bits"] == 24 * sum(ops.states for ops in spiking)
    assert ours["total_bits"] == sum(bits for name, bits in ours.items() if name != "total_bits")


# --- where they break even ---


def test_break_even_by_hand() -> None:
    assert break_even(10.0, silent=2.0, today=18.0) == 0.5
    assert break_even(10.0, silent=2.0, today=6.0) == 2.0
    assert break_even(10.0, silent=11.0, today=18.0) is None
    assert break_even(10.0, silent=9.0, today=9.0) is None


@given(st.sampled_from([SMALL, RACE]), st.sampled_from(["rate", "phase"]), st.data())
def test_at_the_share_that_is_named_both_need_as_much(
    shape: Shape, coding: Any, data: st.DataObject
) -> None:
    shape = replace(shape, vocab=data.draw(st.integers(1, 400)), code=Code(4, coding))
    found = billed(shape)
    for even in found["break_even"]:
        if even["prices"] != "45 nm" or even["share"] is None:
            continue
        names = [name for name, x in vars(SPIKES).items() if isinstance(x, int | float)]
        scaled = replace(SPIKES, **{n: getattr(SPIKES, n) * even["share"] for n in names})
        again = bill(shape, [scaled], [scaled], RATES)
        assert again[even["form"]]["total_j"] == pytest.approx(
            found["dense"][even["against"]]["total_j"]
        )
        assert even["break_even_rate"] == pytest.approx(even["share"] * RATES[even["form"]])
        assert (even["ratio"] < 1) == (even["share"] > 1)


def test_a_silent_network_still_costs() -> None:
    none = silenced(SPIKES)
    assert none.encode == none.hidden == 0 and none.events == SPIKES.events
    quiet = bill(RACE, [none], [none], RATES)["spiking"]
    assert quiet["total_j"] > 0
    rows = {line["cause"]: line["total_j"] for line in quiet["lines"]}
    assert "projections" not in rows
    assert min(rows["race steps"], rows["neuron updates"], rows["embedding and LM head"]) > 0


# --- the command ---


def test_the_command_draws_and_tells(
    either_run: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    from neurtransformer.errors import UserError
    from neurtx.main import neurtx

    text = tmp_path / "text.txt"
    text.write_text("A line of text that is long enough. " * 20)
    words = ["energy", str(copy_of(either_run)), "--text", str(text), "--limit", "64", "--picture"]

    def call(*more: str) -> Any:
        return CliRunner().invoke(neurtx, [*words, *more])

    for name, begins in (("where.svg", b"<?xml"), ("where.png", b"\x89PNG")):
        done = call(str(tmp_path / name))
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).read_bytes().startswith(begins)
    for shown in (
        "FULL BILL",
        "at what spike rate",
        "Without any spike it would",
        "no price for a",
        "23.6 published",
    ):
        assert shown in done.stdout
    for wrong in ("where.svg", "where.pdf", "no/such/place.svg"):
        assert isinstance(call(str(tmp_path / wrong)).exception, UserError)
    (tmp_path / "again.svg").write_text("older")
    done = call(str(tmp_path / "again.svg"), "--force", "--json")
    values = json.loads(done.stdout)
    assert values["picture"] == str(tmp_path / "again.svg")
    assert {price["grade"] for price in values["bill"]["prices"]} == set(GRADES)
    # the picture draws every cause in a colour of its own
    from neurtransformer.measure.figures import CAUSES

    assert {line["cause"] for line in values["bill"]["spiking"]["lines"]} <= set(CAUSES)
