"""The four forms of a network in one table: how well each predicts, and how it was compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neurtransformer.measure.card import public
from neurtransformer.measure.summary import section, shown


@dataclass(frozen=True)
class Form:
    """One row. beside: how it compares with the form before it. worse: whether it differs where it
    should be equal. measured: on what; None if `command` has not been run yet."""

    name: str
    perplexity: str | None
    ratio: str | None
    beside: str | None
    measured: str | None
    command: str
    worse: bool = False


def forms(report: Mapping[str, Any]) -> list[Form]:
    """Dense, spiking, integer, Lava."""
    quality = section(report, "eval")
    return [
        _dense(quality),
        _spiking(quality),
        _integer(section(report, "integer")),
        _lava(section(report, "simulate")),
    ]


def text_name(values: Mapping[str, Any]) -> str:
    """The text that a section was measured on, in words."""
    given = values.get("text")
    if given == "-":
        return "standard input"
    return "Python's help texts" if given is None else str(public(given))


def _dense(quality: Mapping[str, Any]) -> Form:
    perplexity, tokens = (
        shown(quality.get(key), style)
        for key, style in (("ppl_dense", "{:.2f}"), ("tokens", "{:,}"))
    )
    measured = f"{tokens} tokens of {text_name(quality)}" if perplexity else None
    return Form("dense", perplexity, "1" if perplexity else None, None, measured, "neurtx eval")


def _spiking(quality: Mapping[str, Any]) -> Form:
    beside = {
        "of the next tokens as dense": shown(quality.get("token_agreement"), "{:.1%}"),
        "cosine similarity": shown(quality.get("cosine_similarity"), "{:.3f}"),
    }
    perplexity = shown(quality.get("ppl_spiking"), "{:.2f}")
    ratio = shown(quality.get("ppl_ratio"), "{:.3f}")
    how = (
        "the same tokens, simulated step by step"
        if quality.get("mode") == "steps"
        else "the same tokens, as spike counts (neurtx eval --mode steps simulates every time step)"
    )
    return Form(
        "spiking (spike counts and time steps are equal)",
        perplexity,
        ratio,
        ", ".join(f"{number} {name}" for name, number in beside.items() if number) or None,
        f"{how}. Both are equal, neuron for neuron" if perplexity or ratio else None,
        "neurtx eval",
    )


def _integer(values: Mapping[str, Any]) -> Form:
    to_spiking = shown(values.get("ppl_ratio_to_spiking"), "{:.3f}")
    tokens, dense = shown(values.get("tokens"), "{:,}"), shown(values.get("ppl_dense"), "{:.2f}")
    measured = f"{tokens} tokens, in shorter blocks"
    if dense is not None:
        measured += f", on which the dense model has {dense}"
    return Form(
        "integer",
        shown(values.get("ppl_integer"), "{:.2f}"),
        shown(values.get("ppl_ratio"), "{:.3f}"),
        f"{to_spiking} times the spiking network's perplexity" if to_spiking else None,
        measured if to_spiking else None,
        "neurtx export --target loihi2",
    )


def _lava(values: Mapping[str, Any]) -> Form:
    mismatches = shown(values.get("mismatches"), "{:,}")
    compared = shown(values.get("compared"), "{:,}")
    largest = shown(values.get("max_abs_difference"))
    steps, tokens = (shown(values.get(key), "{:,}") for key in ("steps", "tokens"))
    worse = mismatches not in (None, "0") or values.get("same_text") is False
    beside = None
    if mismatches is not None:
        beside = f"{mismatches} mismatches"
        beside += f" in {compared} integers" if compared else ""
        beside += f", largest difference {largest}" if largest else ""
        beside += ", another text" if values.get("same_text") is False else ""
    equal = "as integer" if mismatches is not None and not worse else None
    return Form(
        "Lava",
        equal,
        None,
        beside,
        f"{tokens} tokens in {steps} time steps, every spike and state" if mismatches else None,
        "neurtx simulate --prompt TEXT",
        worse,
    )
