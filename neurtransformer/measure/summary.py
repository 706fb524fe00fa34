"""The key numbers of a run, each with a word on what it means: for `make demo` and the page."""

from collections.abc import Mapping
from typing import Any

Row = tuple[str, str, str]
"""What it is, the number, what the number means."""


def section(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of report.json; empty if there is none."""
    values = report.get(name)
    return values if isinstance(values, Mapping) else {}


def shown(value: Any, style: str = "{:.4g}") -> str | None:
    """A number in that style; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return style.format(value)


def trainings(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sections of all trainings, the last one last."""
    earlier = report.get("earlier_trainings")
    found = [*(earlier if isinstance(earlier, list) else []), report.get("finetune")]
    return [values for values in found if isinstance(values, Mapping) and values]


def summary_rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows for what report.json holds; what has not been measured is left out."""
    rows = [
        *_quality(section(report, "eval")),
        *(row for values in trainings(report) for row in _training(values)),
        *_energy(section(report, "energy")),
        *_hardware(section(report, "integer"), section(report, "simulate")),
    ]
    return [(what, number, meaning) for what, number, meaning in rows if number is not None]


Maybe = tuple[str, str | None, str]


def _quality(values: Mapping[str, Any]) -> list[Maybe]:
    tokens = shown(values.get("tokens"), "{:,}")
    return [
        (
            "perplexity, dense",
            shown(values.get("ppl_dense"), "{:.2f}"),
            f"the model it was made from, on {tokens} tokens; lower is better",
        ),
        (
            "perplexity, spiking",
            shown(values.get("ppl_spiking"), "{:.2f}"),
            "the spiking network on the same tokens",
        ),
        (
            "perplexity ratio",
            shown(values.get("ppl_ratio"), "{:.3f}"),
            "spiking over dense: 1 is no loss",
        ),
        (
            "cosine similarity",
            shown(values.get("cosine_similarity"), "{:.3f}"),
            "of the final hidden states, dense and spiking: 1 is the same direction",
        ),
        (
            "token agreement",
            shown(values.get("token_agreement"), "{:.1%}"),
            "tokens for which both predict the same next token",
        ),
        (
            "spikes per token",
            shown(values.get("spikes_per_token"), "{:,.0f}"),
            "of all neurons together",
        ),
        (
            "spikes per neuron and token",
            shown(values.get("mean_spike_count"), "{:.2f}"),
            f"mean count; T = {values.get('timesteps')} in the feed-forward blocks",
        ),
    ]


def _training(values: Mapping[str, Any]) -> list[Maybe]:
    seconds = shown(values.get("seconds"), "{:.0f}") or "?"
    return [
        (
            "tokens of fine-tuning",
            shown(values.get("tokens"), "{:,}"),
            f"in {values.get('steps')} steps, {seconds} seconds; trained: {values.get('train')}",
        )
    ]


def _energy(values: Mapping[str, Any]) -> list[Maybe]:
    attention, model = section(values, "attention"), section(values, "model")
    low, high = values.get("paper_reduction_percent") or (None, None)
    memory = _less_or_more(model.get("memory_reduction_percent"))
    return [
        (
            "attention energy saved",
            shown(attention.get("reduction_percent"), "{:.1f}%"),
            f"ESTIMATE, arithmetic only; the paper: {low} to {high}%",
        ),
        (
            "whole-model energy saved",
            shown(model.get("reduction_percent"), "{:.1f}%"),
            f"ESTIMATE, arithmetic only; memory traffic beside it: {memory}",
        ),
        (
            "energy over an int8 dense model's",
            shown(_over_int8(section(values, "bill")), "{:.2f}"),
            "ESTIMATE, everything done and moved, weights on the chip: below 1 is a saving",
        ),
    ]


def _over_int8(bill: Mapping[str, Any]) -> float | None:
    ours = section(bill, "spiking").get("total_j")
    dense = section(section(bill, "dense"), "int8, on-chip").get("total_j")
    return ours / dense if ours and dense else None


def _less_or_more(percent: Any) -> str | None:
    """`12.0% less`, or `12.0% more` for a negative saving."""
    if not isinstance(percent, int | float):
        return None
    return f"{abs(percent):.1f}% {'less' if percent >= 0 else 'more'}"


def _hardware(integer: Mapping[str, Any], simulate: Mapping[str, Any]) -> list[Maybe]:
    backend, tokens = simulate.get("backend"), simulate.get("tokens")
    return [
        (
            "integer perplexity ratio",
            shown(integer.get("ppl_ratio_to_spiking"), "{:.3f}"),
            "8-bit weights and 24-bit states over the spiking network: 1 is no loss",
        ),
        (
            "mismatches on Loihi 2's stack",
            shown(simulate.get("mismatches"), "{:,}"),
            f"{backend} against our integer model, {tokens} tokens: 0 is equal, spike for spike",
        ),
        (
            "largest difference",
            shown(simulate.get("max_abs_difference")),
            "between the two, over all states: 0 is equal, integer for integer",
        ),
    ]
