"""What one operation costs, in three published price lists: each price with its source and grade.

Grades: a *published* price stands in the source as it is. A *derived* one follows from published
ones, and `why` says how. An *assumed* one rests on something that nobody has published for this
case, and `why` says on what. Nothing here was measured by us.

- 45 nm: M. Horowitz's table of operations, the one that most papers on spiking networks use.
- Loihi 1: the figures of the chip before Loihi 2, for which none are published; its makers
  simulated them before the chip was made, and call 23.6 pJ a minimum. The paper was not at hand:
  its table 2 was checked in copies that others quote; one has 4.2 pJ for a hop north or south.
- SpikingJelly: the preset for 8-bit integers of its `SimpleEnergyCostConfig`.

Lists are never mixed, but for the way of a spike, which the table of 45 nm lacks.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Grade = Literal["published", "derived", "assumed"]
GRADES: tuple[Grade, ...] = ("published", "derived", "assumed")

Unit = Literal[
    "product",
    "wide product",
    "addition",
    "weight",
    "cached",
    "event",
    "state",
    "matrix entry",
    "update",
    "write",
    "message",
]
UNITS: Mapping[Unit, str] = {
    "product": "of a weight, key or value with an activation, and its addition",
    "wide product": "any other multiplication, in norms, activations and softmax",
    "addition": "any other addition, comparison or shift",
    "weight": "a word of weights that memory reads or writes",
    "cached": "a word of keys and values that memory reads or writes",
    "event": "a spike that arrives through a synapse, beyond reading the weight and adding it",
    "state": "a word of a membrane or threshold that is read or written",
    "matrix entry": "a word of fast weights that is read or written",
    "update": "a neuron in a time step, beyond its parts",
    "write": "a synapse that is written, beyond its parts",
    "message": "a spike or value on its way to one core",
}
"""What is counted and priced, and what each is."""

HOROWITZ = "Horowitz, ISSCC 2014, fig. 1.1.9 (45 nm, 0.9 V)"
DAVIES = "Davies et al., Loihi, IEEE Micro 38(1), 2018, table 2 (14 nm, 0.75 V, simulated)"
SPIKINGJELLY = "SpikingJelly 2.0, op_counter.SimpleEnergyCostConfig.int8()"

WEIGHT_BITS, STATE_BITS = 8, 24
"""Widths of a spiking network's integers."""
BITS: Mapping[Unit, int] = {
    "weight": WEIGHT_BITS,
    "cached": WEIGHT_BITS,
    "event": 2 * STATE_BITS,
    "state": STATE_BITS,
    "matrix entry": STATE_BITS,
}
"""What one of them moves to or from memory; an event reads a sum and writes it."""
CORE_BYTES = 128 * 1024
"""Memory for the synapses of a core of Loihi 2, see configs/loihi2.yaml."""

SRAM_PJ = {8: 10.0, 32: 20.0, 1024: 100.0}
"""One access of 64 bits to an SRAM of so many KiB (Horowitz)."""
DRAM_PJ = 1300.0
"""The same to DRAM, the lower end of 1.3 to 2.6 nJ."""


@dataclass(frozen=True)
class Price:
    """pj: of one unit, in picojoules."""

    pj: float
    grade: Grade
    source: str
    why: str = ""


@dataclass(frozen=True)
class PriceList:
    """prices: of units. within: units whose energy is part of another unit's price, or left out by
    the source's own rule."""

    name: str
    prices: Mapping[Unit, Price]
    within: frozenset[Unit]

    def missing(self, counts: Mapping[Unit, float]) -> list[Unit]:
        """Units that are counted and have no price here."""
        return [
            unit
            for unit, count in counts.items()
            if count and unit not in self.prices and unit not in self.within
        ]

    def joules(self, counts: Mapping[Unit, float]) -> dict[Unit, float]:
        """Energy of the units that have a price."""
        return {
            unit: counts.get(unit, 0.0) * price.pj * 1e-12 for unit, price in self.prices.items()
        }


def sram_pj(kib: float) -> float:
    """64 bits from an SRAM of so many KiB, 8 to 1024: a power law between two published sizes."""
    small, large = (8, 32) if kib <= 32 else (32, 1024)
    share = math.log(kib / small) / math.log(large / small)
    return SRAM_PJ[small] * (SRAM_PJ[large] / SRAM_PJ[small]) ** share


# --- 45 nm: the spiking network ---

PER_BIT = "per bit: words of a row lie side by side"
LOCAL = Price(
    sram_pj(CORE_BYTES / 1024) / 64,
    "derived",
    HOROWITZ,
    "64 bits of 128 KiB, a core's synapses, between those of 32 KiB and 1 MiB; " + PER_BIT,
)
SMALL = Price(
    SRAM_PJ[8] / 64,
    "derived",
    HOROWITZ,
    "64 bits of 8 KiB, more than a core has states; " + PER_BIT,
)
MIDDLE = Price(
    SRAM_PJ[32] / 64,
    "derived",
    HOROWITZ,
    "64 bits of 32 KiB, for the matrix of a head; " + PER_BIT,
)
DRAM = Price(DRAM_PJ / 64, "derived", HOROWITZ, "64 bits at the lower end, 1.3 nJ; " + PER_BIT)


def times(price: Price, bits: int, why: str = "") -> Price:
    """So many bits at the price of one."""
    return Price(price.pj * bits, price.grade, price.source, f"{why}{bits} bits; {price.why}")


HOPS = (8 * 8 - 1) / (3 * 8), (4 * 4 - 1) / (3 * 4)
"""Mean steps east or west and north or south between two tiles of 8 x 4, drawn at random."""
TILE_PJ, EAST_PJ, NORTH_PJ = 1.7, 3.0, 4.0
"""A spike within a tile of four cores, and one hop to the next tile (Davies et al.)."""
MESSAGE = Price(
    TILE_PJ + HOPS[0] * EAST_PJ + HOPS[1] * NORTH_PJ,
    "assumed",
    DAVIES,
    "1.7 pJ within a tile and 3.0 or 4.0 pJ a hop, between tiles drawn at random of 8 x 4",
)
SPIKING = PriceList(
    "45 nm",
    {
        "product": Price(0.2 + 0.1, "derived", HOROWITZ, "8-bit product, 32-bit sum"),
        "wide product": Price(3.1 + 0.1, "derived", HOROWITZ, "32-bit product and sum"),
        "addition": Price(0.1, "published", HOROWITZ, "32 bits, for 24"),
        "weight": times(LOCAL, WEIGHT_BITS),
        "cached": times(LOCAL, WEIGHT_BITS),
        "event": Price(
            BITS["event"] * SMALL.pj,
            "assumed",
            HOROWITZ,
            "the sum that it adds to is read and written, 24 bits each, in 8 KiB",
        ),
        "state": times(SMALL, STATE_BITS),
        "matrix entry": times(MIDDLE, STATE_BITS),
        "message": Price(
            MESSAGE.pj, "assumed", DAVIES, MESSAGE.why + "; of 14 nm, for want of one of 45 nm"
        ),
    },
    frozenset({"update", "write"}),
)

REGISTERS = replace(
    SPIKING,
    name="45 nm, sums in registers",
    prices={unit: price for unit, price in SPIKING.prices.items() if unit != "event"},
    within=SPIKING.within | {"event"},
)
"""What a spike adds to costs as little to keep as the dense model's sums, which is nothing."""

# --- 45 nm: the dense model ---

ON_CHIP, FROM_DRAM = "on-chip", "DRAM"
_ARITHMETIC: dict[str, tuple[int, Price, Price, Price]] = {
    "fp32": (
        32,
        Price(3.7 + 0.9, "derived", HOROWITZ, "product and sum"),
        Price(3.7 + 0.9, "derived", HOROWITZ, "product and sum"),
        Price(0.9, "published", HOROWITZ),
    ),
    "fp16": (
        16,
        Price(1.1 + 0.4, "derived", HOROWITZ, "product and sum, both of 16 bits"),
        Price(1.1 + 0.4, "derived", HOROWITZ, "product and sum, both of 16 bits"),
        Price(0.4, "published", HOROWITZ),
    ),
    "int8": (
        8,
        Price(0.2 + 0.1, "derived", HOROWITZ, "8-bit product, 32-bit sum"),
        Price(1.1 + 0.4, "assumed", HOROWITZ, "norms and softmax in fp16"),
        Price(0.4, "assumed", HOROWITZ, "norms and residual stream in fp16"),
    ),
}


def dense_prices(number_format: str, memory: str) -> PriceList:
    """fp32, fp16 or int8; weights on-chip or from DRAM. Keys and values are on the chip, sums and
    activations cost nothing to keep."""
    bits, product, wide, addition = _ARITHMETIC[number_format]
    return PriceList(
        f"{number_format}, {memory}",
        {
            "product": product,
            "wide product": wide,
            "addition": addition,
            "weight": times(LOCAL if memory == ON_CHIP else DRAM, bits),
            "cached": times(LOCAL, bits),
        },
        frozenset(),
    )


DENSE = tuple(
    dense_prices(number_format, memory)
    for number_format in _ARITHMETIC
    for memory in (FROM_DRAM, ON_CHIP)
)

# --- Loihi 1, and SpikingJelly ---

LOIHI = PriceList(
    "Loihi 1",
    {
        "event": Price(23.6, "published", DAVIES, "a synaptic operation, its least"),
        "update": Price(81.0, "derived", DAVIES, "of an active neuron; 52 for one at rest"),
        "write": Price(120.0, "derived", DAVIES, "an update of a synapse by pairwise STDP"),
        "message": MESSAGE,
    },
    frozenset({"addition", "weight", "cached", "state", "matrix entry"}),
)
_BYTE = Price(24.96, "published", SPIKINGJELLY, "3.12 pJ a bit")
_PRESET: dict[Unit, Price] = {
    "product": Price(0.23, "published", SPIKINGJELLY),
    "wide product": Price(0.23, "published", SPIKINGJELLY),
    "addition": Price(0.03, "published", SPIKINGJELLY),
    "weight": _BYTE,
    "cached": _BYTE,
}
_STATE = Price(3 * _BYTE.pj, "published", SPIKINGJELLY, "three bytes")
PRESET = PriceList(
    "SpikingJelly",
    {**_PRESET, "state": _STATE, "matrix entry": _STATE},
    frozenset({"event", "message", "update", "write"}),
)
PRESET_DENSE = PriceList("SpikingJelly", _PRESET, frozenset())


def rows(lists: Mapping[str, PriceList]) -> Iterator[dict[str, str | float]]:
    """Every price of some lists, by who pays it: `list`, `unit`, `pj`, `grade`, `source`, `why`."""
    for name, prices in lists.items():
        for unit, price in prices.prices.items():
            yield {
                "list": name,
                "unit": unit,
                "pj": price.pj,
                "grade": price.grade,
                "source": price.source,
                "why": price.why,
            }
