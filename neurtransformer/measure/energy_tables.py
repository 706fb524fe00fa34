"""The estimate of energy as the report tells it: what it rests on, and what is saved or lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neurtransformer.measure.summary import change, shown, thinned_line

PARTS = {
    "attention": "attention blocks",
    "feed_forward": "feed-forward blocks",
    "model": "whole model",
}
KINDS = {"arithmetic": "", "memory traffic": "memory_"}
COUNTS = ("dense_macs", "dense_words", "spiking_macs", "spiking_acs", "spiking_words")


@dataclass(frozen=True)
class Told:
    """A number or a sentence, and whether it is a loss against the dense model."""

    text: str
    loss: bool = False


Rows = list[tuple[str, list[Told]]]
"""A label, and the cells behind it."""


@dataclass(frozen=True)
class EnergyTables:
    """What a reader has to know first, what it rests on, and tables; `parts` by their titles."""

    verdicts: list[Told]
    assumptions: list[str]
    parts: dict[str, Rows]
    alternatives: Rows
    operations: Rows


def energy_tables(energy: Mapping[str, Any]) -> EnergyTables:
    """All of it for the section `energy` of report.json. Raises what `summary.legible` catches if
    that is not as `neurtx energy` writes it."""
    verdicts = [_verdict(energy, title, prefix) for title, prefix in KINDS.items()]
    if energy.get("thinned"):
        verdicts.append(Told(thinned_line(energy["thinned"])))
    if "bill" in energy:
        verdicts.append(_bill_verdict(energy["bill"]))
    return EnergyTables(
        verdicts=verdicts,
        assumptions=_assumptions(energy),
        parts={
            title: [(label, _part(energy[part], prefix)) for part, label in PARTS.items()]
            for title, prefix in KINDS.items()
        },
        alternatives=[
            (
                str(row["number_format"]),
                [
                    Told(f"{row['mac_pj']:g}"),
                    Told(f"{row['ac_pj']:g}"),
                    _change(row["attention_reduction_percent"]),
                    _change(row["model_reduction_percent"]),
                ],
            )
            for row in energy["alternatives"]
        ],
        operations=[
            (
                f"{part.replace('_', '-')}: {operation}",
                [Told(f"{counts[key]:,.0f}") for key in COUNTS],
            )
            for part, rows in energy["operations"].items()
            for operation, counts in rows.items()
        ],
    )


def _part(values: Mapping[str, Any], prefix: str) -> list[Told]:
    joules = [values[f"{prefix}{form}_j"] for form in ("dense", "spiking", "graded")]
    dense, *ours = joules
    changes = [_change(100 * (1 - joule / dense)) for joule in ours]
    return [
        Told(f"{1e6 * dense:.4g}"),
        *(
            cell
            for joule, changed in zip(ours, changes, strict=True)
            for cell in (Told(f"{1e6 * joule:.4g}"), changed)
        ),
    ]


def _change(percent: float) -> Told:
    return Told(change(percent) or "unknown", loss=round(percent, 1) < 0)


def _verdict(energy: Mapping[str, Any], title: str, prefix: str) -> Told:
    changed = _change(energy["model"][f"{prefix}reduction_percent"])
    meaning = "a loss" if changed.loss else "a saving"
    return Told(
        f"{title.capitalize()} alone: the spiking network is estimated to need {changed.text} "
        f"energy than the dense model in 32-bit floats, {meaning}.",
        changed.loss,
    )


def _bill_verdict(bill: Mapping[str, Any]) -> Told:
    ratio = bill["spiking"]["total_j"] / bill["dense"]["int8, on-chip"]["total_j"]
    loss = ratio > 1
    return Told(
        "Everything that is done and moved, beside a dense model in 8-bit integers with its "
        f"weights on the chip: {ratio:.2f} times the energy, {'a loss' if loss else 'a saving'}.",
        loss,
    )


def _assumptions(energy: Mapping[str, Any]) -> list[str]:
    used = energy["constants"]
    paper = " to ".join(str(percent) for percent in energy["paper_reduction_percent"])
    return [
        "Nothing was measured on a chip: the operations of one token are multiplied by published "
        f"energies ({used['source']}).",
        f"A multiplication with its addition (MAC) of {used['number_format']}s costs "
        f"{used['mac_pj']} pJ, an addition (AC) {used['ac_pj']} pJ, 64 bits from SRAM "
        f"{shown(used['sram_pj_per_64_bits'])} pJ.",
        f"Spikes were counted on {energy['tokens']:,} tokens, at T = {energy['timesteps']}. The "
        f"dense model attends to a context of {energy['context']}, averaged over positions.",
        f"Memory traffic is weights, key-value cache, attention state and membranes, all at "
        f"{used['word_bits']} bits. A binary spike reads its weights each time it fires, so a "
        "neuron that fires more than once per token reads them more often than the dense model "
        "does. A graded spike carries a count: it reads them once, and multiplies.",
        f"For the attention block the paper (arXiv 2510.00133) reports {paper}% less. It counts "
        "arithmetic alone.",
    ]
