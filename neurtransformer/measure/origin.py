"""What the numbers of a report belong to: the run, its weights and texts, dates, and commands."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from neurtransformer.measure.card import public
from neurtransformer.measure.forms import text_name
from neurtransformer.measure.summary import section, shown, trainings
from neurtransformer.provenance import provenance_of

SHORT = 12
"""Digits of a hash that are shown."""

_GPT2_NAMES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


class Measured(NamedTuple):
    """When and on what a section was measured; hashes are shortened, and empty if unknown."""

    section: str
    date: str
    weights: str
    dense: str
    text: str


def size_of(config: Mapping[str, Any], name: str) -> int | None:
    """A size in a config.json, whatever its family calls it."""
    return config.get(name, config.get(_GPT2_NAMES[name]))


def facts(
    report: Mapping[str, Any], config: Mapping[str, Any], weights: str | None
) -> list[tuple[str, str]]:
    """What this run is, and what its numbers belong to, in words. weights: their hash."""
    converted, quality = section(report, "convert"), section(report, "eval")
    layers, width, heads, context = (size_of(config, name) for name in _GPT2_NAMES)
    dense = _short(config.get("dense_sha256"))
    text = _short(provenance_of(quality).get("text_sha256"))
    tokens = shown(quality.get("tokens"), "{:,}")
    found = {
        "made from": _with_hash(public(converted.get("model") or config.get("dense")), dense),
        "weights": f"SHA-256 {_short(weights)}" if weights else None,
        "compared on": _with_hash(f"{tokens} tokens of {text_name(quality)}", text)
        if tokens
        else "nothing yet: neurtx eval",
        "measured": _period(report) or "at a time that was not recorded",
        "size": f"{layers} layers, {width} wide, {heads} heads",
        "parameters": shown(converted.get("parameters"), "{:,}"),
        "context": f"{context} tokens",
        "attention": _attention(config),
        "feed-forward": f"{config.get('coding', 'rate')} coded, T = {config.get('timesteps')}",
        "digits": "signed, of what is phase coded" if config.get("digits") == "signed" else None,
        "calibrated on": f"{shown(converted.get('calibration_tokens'), '{:,}') or '?'} tokens",
        "fine-tuned": "; then ".join(_trained(values) for values in trainings(report))
        or "not yet: neurtx finetune",
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def records(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was done to get each section, oldest first, and its record, key by key."""
    found = [(name, list(flat(record))) for name, record in _recorded(report)]
    return [(name, rows) for name, rows in found if rows]


def commands(report: Mapping[str, Any]) -> list[str]:
    """The command lines that made the run and its numbers, in the order in which they have to be
    given again."""
    lines = [record.get("command") for _, record in _recorded(report)]
    return list(dict.fromkeys(line for line in lines if isinstance(line, str)))


def measured(report: Mapping[str, Any]) -> list[Measured]:
    """Of each section with a record, what it belongs to."""
    return [
        Measured(
            name,
            _date(record.get("date")),
            _short(record.get("weights_sha256")),
            _short(record.get("teacher_sha256")),
            _short(record.get("text_sha256")),
        )
        for name, record in _recorded(report)
        if record
    ]


def made_with(report: Mapping[str, Any]) -> str:
    """The versions that were recorded, `name number`."""
    found = [
        f"{name} {number}"
        for _, record in _recorded(report)
        for name, number in section(record, "versions").items()
        if number
    ]
    return ", ".join(dict.fromkeys(found))


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The values of an object of objects, under names with dots."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(value)))
    return rows


def _recorded(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Section by section: what has to be there first, then all that was measured of it."""
    yield "convert", provenance_of(report.get("convert"))
    for values in trainings(report):
        yield "finetune", provenance_of(values)
    later = [name for name in report if name not in ("convert", "finetune", "recipe")]
    for name in sorted(later, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        yield name, provenance_of(report[name])


ORDER = ("eval", "energy", "integer", "simulate", "place", "generate")


def _attention(config: Mapping[str, Any]) -> str:
    """The kind of attention and its code. Runs made before there were two kinds name neither."""
    coding = config.get("attention_coding") or config.get("coding", "rate")
    timesteps = config.get("attention_timesteps") or config.get("timesteps")
    return f"{config.get('attention', 'linear')}, {coding} coded, T = {timesteps}"


def _trained(values: Mapping[str, Any]) -> str:
    tokens = shown(values.get("tokens"), "{:,}")
    return f"{values.get('steps')} steps, {tokens} tokens, seed {values.get('seed')}"


def _period(report: Mapping[str, Any]) -> str | None:
    """From when to when it was measured."""
    dates = sorted(filter(None, (_date(record.get("date")) for _, record in _recorded(report))))
    if not dates:
        return None
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def _date(given: Any) -> str:
    """`2026-01-31 12:00 UTC` of ISO 8601 in UTC, as records have it."""
    return f"{given[:16].replace('T', ' ')} UTC" if isinstance(given, str) else ""


def _short(sha256: Any) -> str:
    return sha256[:SHORT] if isinstance(sha256, str) else ""


def _with_hash(name: str | None, short: str) -> str | None:
    return f"{name} (SHA-256 {short})" if name and short else name
