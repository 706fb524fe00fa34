"""The tables of the full bill, for a person."""

from collections.abc import Iterator, Mapping
from typing import Any

from .output import readable, rows_table

COLUMNS = ("operations", "weights", "accumulators", "states", "transport")
FORMS = {"spiking": "binary", "graded": "graded"}


_LINES = (
    " The columns behind % say what the energy of the spiking network is for. operations: "
    "additions and products; weights: reading weights, keys and values; accumulators: the sums "
    "that arriving spikes add to; states: membranes and thresholds; transport: spikes from core to "
    "core. graded spikes: the whole energy if one spike carries a number. docs/energy.md explains "
    "the rows.\n"
)
_BREAK_EVEN = (
    " energy / dense: above 1 the spiking network needs more. wins below: the spike rate at which "
    "both need the same; the next column says how much of today's spikes that is.\n"
)
_LOIHI = " Loihi 1's published figures include no price for a product, so there is no total.\n"


def bill_tables(bill: Mapping[str, Any]) -> Iterator[Any]:
    """Rich tables of what `measure.bill.bill` returns."""
    yield _lines(bill)
    yield _LINES
    yield _totals(bill)
    yield _break_even(bill)
    yield _BREAK_EVEN
    yield _verdict(bill["break_even"][0])
    yield _traffic(bill)
    yield _loihi(bill)
    yield _LOIHI
    yield _prices(bill)
    yield _units(bill)


def _micro(joules: float | None) -> float | None:
    return None if joules is None else joules * 1e6


def _lines(bill: Mapping[str, Any]) -> Any:
    dense, graded = (
        {line["cause"]: line["total_j"] for line in of["lines"]}
        for of in (bill["dense"]["int8, on-chip"], bill["graded"])
    )
    ours = bill["spiking"]
    whole = {"cause": "total", **ours}
    dense[whole["cause"]] = bill["dense"]["int8, on-chip"]["total_j"]
    graded[whole["cause"]] = bill["graded"]["total_j"]
    rows = [
        (
            line["cause"],
            _micro(dense.get(line["cause"], 0.0)),
            _micro(line["total_j"]),
            round(100 * line["total_j"] / ours["total_j"], 1),
            *(_micro(line[f"{column}_j"]) for column in COLUMNS),
            _micro(graded.get(line["cause"], 0.0)),
        )
        for line in (*ours["lines"], whole)
    ]
    return rows_table(
        ("where the energy goes", "dense int8", "spiking", "%", *COLUMNS, "graded spikes"),
        rows,
        title="FULL BILL, ESTIMATED: microjoules per token, with everything that is moved; 8-bit "
        "weights on the chip, on both sides, and 24-bit states",
    )


def _totals(bill: Mapping[str, Any]) -> Any:
    dense = bill["dense"]
    formats = dict.fromkeys(name.partition(", ")[0] for name in dense)
    rows = [
        (
            f"dense {number_format}",
            *(_micro(dense[f"{number_format}, {memory}"]["total_j"]) for memory in _MEMORIES),
        )
        for number_format in formats
    ]
    rows += [
        (f"spiking, {name} spikes", _micro(bill[form]["total_j"]), None)
        for form, name in FORMS.items()
    ]
    return rows_table(
        ("number format", "weights on the chip", "weights in DRAM"),
        rows,
        title="the same of other number formats and memories, microjoules per token",
    )


_MEMORIES = ("on-chip", "DRAM")


def _break_even(bill: Mapping[str, Any]) -> Any:
    def row(found: Mapping[str, Any]) -> tuple[Any, ...]:
        share, binary = found["share"], found["form"] == "spiking"
        unit = "spikes a neuron and step" if binary else "of the neurons send one"
        return (
            found["against"],
            found["prices"],
            FORMS[found["form"]],
            found["ratio"],
            f"{readable(found['rate'])} {unit}",
            "never" if share is None else _rate(found["break_even_rate"]),
            None if share is None else 100 * share,
            found["ratio"] < 1,
        )

    return rows_table(
        (
            *("dense model", "prices", "spikes", "energy / dense", "today"),
            *("wins below", "% of today's spikes", "wins today"),
        ),
        [row(found) for found in bill["break_even"]],
        title="against an int8 dense model, at what spike rate does the spiking network win?",
    )


def _verdict(found: Mapping[str, Any]) -> str:
    """The first row of that table in words."""
    share = found["share"]
    even = (
        "Without any spike it would still need more."
        if share is None
        else f"It would need as much with {100 * share:.0f} % of its spikes, "
        f"{found['break_even_rate']:.2g} a neuron and step."
    )
    return (
        " Beside an int8 dense model with its weights on the chip this run needs "
        f"{found['ratio']:.1f} times the energy.\n {even}\n"
    )


def _rate(rate: float) -> str:
    return readable(rate) if rate <= 1 else "any rate"


def _traffic(bill: Mapping[str, Any]) -> Any:
    names = {"dense": "dense int8", **{form: f"spiking, {name}" for form, name in FORMS.items()}}
    return rows_table(
        (
            "megabits per token",
            "weights, keys and values",
            "sums of arriving spikes",
            "states",
            "all",
        ),
        [
            (name, *(bits / 1e6 for bits in bill["traffic"][form].values()))
            for form, name in names.items()
        ],
        title="what memory on the chip reads and writes; the dense model's sums stay in registers",
    )


def _loihi(bill: Mapping[str, Any]) -> Any:
    ours = bill["loihi_1"]["spiking"]
    rows = [
        (line["cause"], _micro(line["total_j"]), _lacking(line["missing"]))
        for line in ours["lines"]
    ]
    rows.append(("what has a price", _micro(ours["priced_j"]), "a lower bound"))
    rows.append(("total", _micro(ours["total_j"]), _lacking(ours["missing"])))
    return rows_table(
        ("by Loihi 1's figures", "microjoules", ""),
        rows,
        title="the same spikes on Loihi 1 (14 nm): not to be compared with the 45 nm above",
    )


def _lacking(missing: list[str]) -> str:
    return f"no price for a {' or a '.join(missing)}" if missing else ""


_LISTS = ("dense int8, on-chip", "dense int8, DRAM", "spiking", "Loihi 1", "SpikingJelly")


def _prices(bill: Mapping[str, Any]) -> Any:
    found = {(price["list"], price["unit"]): price for price in bill["prices"]}
    units = dict.fromkeys(price["unit"] for price in bill["prices"])

    def cell(name: str, unit: str) -> str:
        price = found.get((name, unit))
        return f"{price['pj']:.3g} {price['grade']}" if price else "-"

    return rows_table(
        ("price of one ..., pJ", *_LISTS),
        [(unit, *(cell(name, unit) for name in _LISTS)) for unit in units],
        title="the prices, and how each is known (sources: --json, docs/energy.md)",
    )


def _units(bill: Mapping[str, Any]) -> Any:
    """What the rows of that table are."""
    from neurtransformer.measure.prices import UNITS

    priced = dict.fromkeys(price["unit"] for price in bill["prices"])
    return rows_table(("", "what one of these is"), [(unit, UNITS[unit]) for unit in priced])
