"""The key numbers of a run, each with a word on what it means: for `make demo` and the page."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from neurtransformer.measure.meanings import meaning

T = TypeVar("T")

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


def legible(make: Callable[[], T]) -> T | None:
    """What `make` makes of a section of report.json; None if that is not as our commands write it,
    which may be because somebody edited it, or another version wrote it."""
    try:
        return make()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def change(percent: Any) -> str | None:
    """`12.0% less`, or `12.0% more` for a negative saving, which is a loss."""
    number = shown(percent, "{:.1f}")
    if number is None:
        return None
    return f"{number.removeprefix('-')}% {'more' if number.startswith('-') else 'less'}"


def thinned_line(thinned: Mapping[str, float]) -> str:
    """The section `thinned` of an estimate of energy in a sentence or two."""
    return (
        f"{thinned['left_out_percent']:.0f} % of the attention's channels were left out. Beside a "
        "dense model that does without them too, whose attention blocks would need "
        f"{thinned['attention_dense_j'] * 1e6:.4g} microjoules, spikes save "
        f"{thinned['attention_reduction_percent']:.4g} % of the attention blocks' arithmetic and "
        f"{thinned['model_reduction_percent']:.4g} % of the whole model's."
    )


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
        *(legible(lambda: _energy(section(report, "energy"))) or []),
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
            meaning("ppl_spiking"),
        ),
        (
            "perplexity ratio",
            shown(values.get("ppl_ratio"), "{:.3f}"),
            meaning("ppl_ratio"),
        ),
        (
            "cosine similarity",
            shown(values.get("cosine_similarity"), "{:.3f}"),
            meaning("cosine_similarity"),
        ),
        (
            "token agreement",
            shown(values.get("token_agreement"), "{:.1%}"),
            meaning("token_agreement"),
        ),
        (
            "spikes per token",
            shown(values.get("spikes_per_token"), "{:,.0f}"),
            meaning("spikes_per_token"),
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
    over = _over_int8(section(values, "bill"))
    return [
        (
            "attention energy, arithmetic",
            change(attention.get("reduction_percent")),
            f"ESTIMATE, beside 32-bit floats; the paper: {low} to {high}% less",
        ),
        (
            "whole-model energy, arithmetic",
            change(model.get("reduction_percent")),
            "ESTIMATE, beside 32-bit floats; "
            f"memory traffic: {change(model.get('memory_reduction_percent'))}",
        ),
        (
            "energy over an int8 dense model's",
            shown(over, "{:.2f}"),
            "ESTIMATE, everything done and moved, weights on the chip: "
            f"{'above 1 is a loss' if over and over > 1 else 'below 1 is a saving'}",
        ),
    ]


def _over_int8(bill: Mapping[str, Any]) -> float | None:
    ours = section(bill, "spiking").get("total_j")
    dense = section(section(bill, "dense"), "int8, on-chip").get("total_j")
    return ours / dense if ours and dense else None


def _hardware(integer: Mapping[str, Any], simulate: Mapping[str, Any]) -> list[Maybe]:
    return [
        (
            "integer perplexity ratio",
            shown(integer.get("ppl_ratio_to_spiking"), "{:.3f}"),
            meaning("ppl_ratio_to_spiking"),
        ),
        (
            "mismatches between Lava and the integer model",
            shown(simulate.get("mismatches"), "{:,}"),
            f"on {simulate.get('tokens')} tokens, {meaning('mismatches')}",
        ),
        (
            "largest difference",
            shown(simulate.get("max_abs_difference")),
            meaning("max_abs_difference"),
        ),
    ]
