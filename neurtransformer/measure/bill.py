"""The full bill of one token: everything that is done and moved, by cause, at published prices.

The estimate of `energy` counts arithmetic, as papers do. Here every word of weights, keys, values
and states is moved as well, at its real width, each sum that a spike adds to is read and written,
and spikes and values travel from core to core. What is counted comes from `operations`, what it
costs from `prices`. Where a price is missing there is no sum; the bill says which one it is.

The dense model is billed in three number formats, its weights on the chip or in DRAM; keys and
values are on the chip, and sums and activations cost it nothing to keep. All is for one token at
batch 1.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from neurtransformer.measure.counts import LayerSpikes, Ops, Shape
from neurtransformer.measure.operations import Forms, operations
from neurtransformer.measure.prices import (
    BITS,
    CORE_BYTES,
    DENSE,
    FROM_DRAM,
    LOIHI,
    ON_CHIP,
    PRESET,
    PRESET_DENSE,
    REGISTERS,
    SPIKING,
    PriceList,
    Unit,
    dense_prices,
    rows,
)

Counts = Mapping[Unit, float]
Lines = Mapping[str, Counts]
"""What is counted of every cause."""

TRANSPORT = "spike transport"
CAUSES = {
    "projections": ("c_attn", "c_fc", "c_proj"),
    "writing keys and values": ("cache", "write"),
    "scores": ("q k", "scores", "present", "read"),
    "race steps": ("race",),
    "forgetting": ("forget",),
    "values": ("a v", "values"),
    "neuron updates": ("neurons",),
    "norms and activations": (
        *("normalise", "softmax", "rotary", "gelu", "swiglu", "layer norms", "residuals"),
    ),
    "embedding and LM head": ("embeddings", "lm_head"),
}
"""Causes, in the order of the bill, and their operations; one that is not named is its own cause.
In a dense model scores are products of queries and keys, values what the softmax weighs."""
CAUSE_OF = {name: cause for cause, names in CAUSES.items() for name in names}

PRODUCTS = frozenset({"c_attn", "c_fc", "c_proj", "q k", "a v", "scores", "lm_head"})
"""Operations whose multiplications are of a weight, key or value with an activation."""
CACHED = frozenset({"cache", "q k", "a v", "write", "scores", "values"})
"""Operations whose words of weights are keys and values."""
MATRIX = frozenset({"write", "present", "forget", "read"})
"""Operations whose states are the matrix of fast weights."""

COLUMNS: Mapping[str, tuple[Unit, ...]] = {
    "operations": ("product", "wide product", "addition", "update", "write"),
    "weights": ("weight", "cached"),
    "accumulators": ("event",),
    "states": ("state", "matrix entry"),
    "transport": ("message",),
}
"""What the energy of a line is for."""


# --- what is counted ---


def units(name: str, ops: Ops) -> dict[Unit, float]:
    """What of an operation has a price of its own."""
    return {
        "product" if name in PRODUCTS else "wide product": ops.mac,
        "addition": ops.ac,
        "cached" if name in CACHED else "weight": ops.weights,
        "event": ops.events,
        "matrix entry" if name in MATRIX else "state": ops.states,
        "update": ops.updates,
        "write": ops.writes,
    }


def lines(parts: Mapping[str, Forms], form: str, sent: float = 0.0) -> Lines:
    """The lines of a bill: `dense`, `spiking` or `graded` of what `operations` returns. sent:
    messages from core to core."""
    found: dict[str, dict[Unit, float]] = {cause: {} for cause in CAUSES}
    for forms in parts.values():
        for name, ops in forms[form].items():
            line = found.setdefault(CAUSE_OF.get(name, name), {})
            for unit, count in units(name, ops).items():
                line[unit] = line.get(unit, 0.0) + count
    if sent:
        found[TRANSPORT] = {"message": sent}
    return {cause: line for cause, line in found.items() if any(line.values())}


def messages(s: Shape, layers: Iterable[LayerSpikes]) -> float:
    """Spikes and values that go from one core to another, once for each core that they go to.

    A core has CORE_BYTES of synapses of 8 bits, and a matrix that needs several is cut by outputs,
    so that a spike goes to all of them. Values are sent too: the stream from each norm and from
    each projection, and the means of the heads.
    """

    def cores(inputs: int, outputs: int) -> int:
        return math.ceil(inputs * outputs / CORE_BYTES)

    sent = s.width * (2.0 + cores(s.width, s.vocab))  # from the embedding to the LM head
    for n in layers:
        sent += n.encode * cores(s.width, sum(n.qkv(s))) + n.merged * cores(s.width, s.width)
        sent += n.query + n.key + n.value + n.events.get("race", 0.0)
        sent += n.mlp_encode * cores(s.width, (1 + s.gated) * s.hidden)
        sent += n.hidden * cores(s.hidden, s.width) + 5 * s.width
    return sent


# --- what it costs ---


def priced(of: Lines, prices: PriceList) -> dict[str, Any]:
    """Joules a token, line by line: by column, and `total_j`, None where a price is `missing`.

    `priced_j` is the sum of all that has a price.
    """
    found: list[dict[str, Any]] = []
    missing: dict[Unit, None] = {}
    for cause, counts in of.items():
        each = prices.joules(counts)
        lacking = prices.missing(counts)
        missing |= dict.fromkeys(lacking)
        columns = {
            f"{column}_j": sum(each.get(unit, 0.0) for unit in among)
            for column, among in COLUMNS.items()
        }
        total = None if lacking else sum(each.values())
        found.append({"cause": cause, **columns, "total_j": total, "missing": lacking})
    columns = {f"{column}_j": sum(line[f"{column}_j"] for line in found) for column in COLUMNS}
    everything = sum(columns.values())
    return {
        "prices": prices.name,
        "lines": found,
        **columns,
        "priced_j": everything,
        "total_j": None if missing else everything,
        "missing": list(missing),
    }


def traffic(of: Lines) -> dict[str, float]:
    """Bits a token that a memory on the chip reads or writes, both models in 8-bit weights: of
    weights, keys and values, of the sums that spikes add to, and of states."""

    def bits(*among: Unit) -> float:
        return sum(BITS[unit] * counts.get(unit, 0.0) for counts in of.values() for unit in among)

    found = {f"{name}_bits": bits(*COLUMNS[name]) for name in ("weights", "accumulators", "states")}
    return {**found, "total_bits": sum(found.values())}


def break_even(dense: float, silent: float, today: float) -> float | None:
    """The share of today's spikes at which a spiking network needs as much as a dense one; None if
    it would need more even if its neurons sent none, or if they send none today.

    All three are joules: dense, without any spike, with today's. In between energy is linear.
    """
    return (dense - silent) / (today - silent) if dense > silent < today else None


def silenced(n: LayerSpikes) -> LayerSpikes:
    """No spike of a coding neuron; token neurons race as they did."""
    return LayerSpikes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, n.events)


FORMS = ("spiking", "graded")


def bill(
    s: Shape,
    spikes: Sequence[LayerSpikes],
    active: Sequence[LayerSpikes],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """Bills of the dense model and of both forms of the spiking one, and where they break even.

    spikes, active: as for `operations`. rates: of `spiking`, spikes a neuron and step, of `graded`,
    the share of neurons that send any for a token.
    """
    parts = operations(s, spikes, active)
    quiet = operations(s, [silenced(n) for n in spikes], [silenced(n) for n in active])
    dense = lines(parts, "dense")
    sent = {"spiking": messages(s, spikes), "graded": messages(s, active)}
    none = messages(s, [silenced(n) for n in spikes])
    today = {form: lines(parts, form, sent[form]) for form in FORMS}
    silent = {form: lines(quiet, form, none) for form in FORMS}
    int8 = {memory: dense_prices("int8", memory) for memory in (ON_CHIP, FROM_DRAM)}
    compared = [
        (int8[ON_CHIP], SPIKING),
        (int8[ON_CHIP], REGISTERS),
        (int8[FROM_DRAM], SPIKING),
        (PRESET_DENSE, PRESET),
    ]
    even = []
    for against, ours in compared:
        for form in FORMS:
            bills = [
                priced(of, prices)["priced_j"]
                for of, prices in ((dense, against), (silent[form], ours), (today[form], ours))
            ]
            share = break_even(*bills)
            even.append(
                {
                    "against": against.name,
                    "prices": ours.name,
                    "form": form,
                    "ratio": bills[2] / bills[0],
                    "rate": rates[form],
                    "share": share,
                    "break_even_rate": None if share is None else share * rates[form],
                }
            )
    return {
        "dense": {prices.name: priced(dense, prices) for prices in DENSE},
        **{form: priced(today[form], SPIKING) for form in FORMS},
        "loihi_1": {form: priced(today[form], LOIHI) for form in FORMS},
        "spikingjelly": {
            "dense": priced(dense, PRESET_DENSE),
            **{form: priced(today[form], PRESET) for form in FORMS},
        },
        "break_even": even,
        "traffic": {
            "dense": traffic(dense),
            **{form: traffic(today[form]) for form in FORMS},
        },
        "prices": list(
            rows(
                {
                    **{f"dense {prices.name}": prices for prices in DENSE},
                    "spiking": SPIKING,
                    "Loihi 1": LOIHI,
                    "SpikingJelly": PRESET,
                }
            )
        ),
    }
