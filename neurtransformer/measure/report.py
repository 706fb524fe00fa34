"""The report page of a run: one HTML file that holds everything it shows."""

import base64
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors import SafetensorError, safe_open

from neurtransformer.measure import figures
from neurtransformer.measure.summary import section, shown, summary_rows, trainings
from neurtransformer.provenance import current, provenance_of, remarks, run_sha256
from neurtransformer.runs import read_json

PACKAGES = ("neurtransformer", "torch", "transformers", "spikingjelly", "lava-nc", "lava-dl")


@dataclass(frozen=True)
class Step:
    """One step between two forms. result is None if `command` has not been run yet."""

    name: str
    promise: str
    result: str | None
    command: str


@dataclass(frozen=True)
class Picture:
    """An SVG, what it shows, and how to read it."""

    title: str
    caption: str
    svg: bytes

    @property
    def address(self) -> str:
        """The picture itself, as a data: address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def page(run: Path) -> str:
    """The page for a run folder. Raises UserError if report.json or config.json is damaged."""
    report, config = read_json(run / "report.json"), read_json(run / "config.json")
    weights = run_sha256(run, config)
    heads = head_forgetting(run, _size(config, "num_hidden_layers") or 0)
    said = remarks(report, config, weights)
    return render(current(report, weights), config, run.name, heads, said)


def render(
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str,
    heads: tuple[torch.Tensor, torch.Tensor] | None = None,
    said: Sequence[str] = (),
) -> str:
    """The page for what report.json and config.json say; sections may be missing.

    heads: shift and present weight of every head, (layers, heads) both. said: see
    `provenance.remarks`.
    """
    environment = Environment(
        loader=PackageLoader("neurtransformer", "measure"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    energy = section(report, "energy")
    return environment.get_template("report.html.j2").render(
        name=name,
        said=said,
        facts=facts(report, config),
        summary=summary_rows(report),
        steps=steps(report),
        pictures=pictures(report, config, heads),
        energy=energy if "model" in energy else None,
        generated=section(report, "generate"),
        recipe=list(_flat(section(report, "recipe"))),
        records=records(report),
        versions=versions(),
    )


_GPT2_NAMES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def _size(config: Mapping[str, Any], name: str) -> int | None:
    """A size in a config.json, whatever its family calls it."""
    return config.get(name, config.get(_GPT2_NAMES[name]))


def facts(report: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What this run is, in words."""
    converted = section(report, "convert")
    size = partial(_size, config)
    found = {
        "made from": converted.get("model") or config.get("dense"),
        "size": f"{size('num_hidden_layers')} layers, {size('hidden_size')} wide, "
        f"{size('num_attention_heads')} heads",
        "parameters": shown(converted.get("parameters"), "{:,}"),
        "context": f"{size('max_position_embeddings')} tokens",
        "attention": _attention(config),
        "feed-forward": f"{config.get('coding', 'rate')} coded, T = {config.get('timesteps')}",
        "digits": "signed, what is phase coded" if config.get("digits") == "signed" else None,
        "calibrated on": f"{shown(converted.get('calibration_tokens'), '{:,}') or '?'} tokens",
        "fine-tuned": "; then ".join(_trained(values) for values in trainings(report))
        or "not yet: neurtx finetune",
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def _attention(config: Mapping[str, Any]) -> str:
    """The kind of attention and its code. Runs made before there were two kinds name neither."""
    coding = config.get("attention_coding") or config.get("coding", "rate")
    timesteps = config.get("attention_timesteps") or config.get("timesteps")
    return f"{config.get('attention', 'linear')}, {coding} coded, T = {timesteps}"


def steps(report: Mapping[str, Any]) -> list[Step]:
    """The steps through the four forms and what each one cost."""
    quality, simulated = section(report, "eval"), section(report, "simulate")
    measured = {
        "perplexity ratio": shown(quality.get("ppl_ratio"), "{:.3f}"),
        "cosine similarity": shown(quality.get("cosine_similarity"), "{:.3f}"),
        "token agreement": shown(quality.get("token_agreement"), "{:.1%}"),
    }
    equality = {
        "mismatches": shown(simulated.get("mismatches"), "{:,}"),
        "largest difference": shown(simulated.get("max_abs_difference")),
        "on": simulated.get("backend"),
        "time steps": shown(simulated.get("steps"), "{:,}"),
        "tokens": shown(simulated.get("tokens"), "{:,}"),
    }
    quantised = section(report, "integer")
    integer = {
        "perplexity ratio to spiking": shown(quantised.get("ppl_ratio_to_spiking"), "{:.3f}"),
        "to dense": shown(quantised.get("ppl_ratio"), "{:.3f}"),
        "tokens": shown(quantised.get("tokens"), "{:,}"),
    }
    return [
        Step("dense → spiking", "measured loss", _listed(measured), "neurtx eval"),
        Step(
            "spiking, step by step → spiking, counts",
            "equal, neuron for neuron",
            "equal by construction, which the tests prove; "
            "neurtx eval --mode steps simulates this run step by step",
            "neurtx eval --mode steps",
        ),
        Step(
            "spiking → integer",
            "measured loss",
            _listed(integer),
            "neurtx export --target loihi2",
        ),
        Step(
            "integer → Lava",
            "equal, integer for integer",
            _listed(equality),
            "neurtx simulate --prompt TEXT",
        ),
    ]


def pictures(
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    heads: tuple[torch.Tensor, torch.Tensor] | None,
) -> list[Picture]:
    """The pictures that can be drawn from what is there."""
    energy, curve = section(report, "energy"), section(report, "finetune").get("curve")
    quality = section(report, "eval")
    losses = quality.get("loss_by_position") or []
    race = section(quality, "race")
    rates = section(quality, "spike_rate_by_layer") or section(energy, "spike_rate_by_layer")
    context = _size(config, "max_position_embeddings") or 0
    drawn: list[tuple[str, str, Any, Callable[[], bytes]]] = [
        (
            "Spike rates",
            "Mean spikes per neuron and time step, by layer and population: 0 is silence, 1 a spike"
            " in every step.",
            rates,
            lambda: figures.spike_rates(rates),
        ),
        (
            "A race",
            "How the last token of a sentence attends to those before it. Every token is a neuron;"
            " the query drives them, a threshold that they share falls, and each fires once. A"
            " spike that is 2 n steps late counts 2 to the power of -n, which is softmax in base"
            " 2.",
            race,
            lambda: figures.race(race),
        ),
        (
            "Forgetting",
            "What each head, a row, keeps of a token so far back. A row bright to the end remembers"
            " the whole past; one that is bright at 1 alone sees just the token before.",
            heads,
            lambda: figures.forgetting(*heads, context) if heads else b"",
        ),
        (
            "Loss by position",
            "Mean loss of the next token along the text, lower is better; ups and downs that both"
            " share are the text's. Positions past the dashed line were never trained and have no"
            " embedding of their own: they take the last one's, in both models.",
            losses,
            lambda: figures.position_losses(losses, context),
        ),
        (
            "Fine-tuning",
            "Loss by step, and its mean over the last ten steps. The two stages have different"
            " losses and scales.",
            curve,
            lambda: figures.loss_curve(curve or []),
        ),
        (
            "Energy",
            "Estimates, not measurements. Graded spikes carry a count: fewer weights are read, but"
            " each one is multiplied.",
            "model" in energy,
            lambda: figures.energy_bars(energy),
        ),
        (
            "The full bill",
            "Estimates, not measurements: all that is done and moved for one token. Hatched is what"
            " it takes to read and write the sums that spikes add to; the dense model keeps its own"
            " in registers. docs/energy.md explains the causes.",
            "bill" in energy,
            lambda: figures.energy_bill(energy["bill"]),
        ),
    ]
    return [Picture(title, caption, draw()) for title, caption, there, draw in drawn if there]


def head_forgetting(run: Path, layers: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Shift and present weight of every head, (layers, heads) both; None if they cannot be read."""
    path = run / "model.safetensors"
    if not path.is_file():  # whoever opens a pipe waits
        return None
    try:
        with safe_open(path, framework="pt") as weights:
            shift, present = (
                torch.stack(
                    [weights.get_tensor(f"transformer.h.{i}.attn.{name}") for i in range(layers)]
                )
                for name in ("shift", "present")
            )
    except (SafetensorError, OSError, RuntimeError):
        return None
    return shift, present


def versions() -> list[tuple[str, str]]:
    """Python and packages, as installed where the page is made."""
    found = [("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found.append((package, "not installed"))
    return found


def _trained(values: Mapping[str, Any]) -> str:
    tokens = shown(values.get("tokens"), "{:,}")
    return f"{values.get('steps')} steps, {tokens} tokens, seed {values.get('seed')}"


def records(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was done to get each section, oldest first, and its record, key by key."""
    done = [("convert", section(report, "convert"))]
    done += [("finetune", values) for values in trainings(report)]
    done += [
        (name, section(report, name))
        for name in report
        if name not in ("convert", "finetune", "recipe")
    ]
    found = [(name, list(_flat(provenance_of(values)))) for name, values in done]
    return [(name, rows) for name, rows in found if rows]


def _listed(values: Mapping[str, str | None]) -> str | None:
    """`name value, name value` of what is there; None if nothing is."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value) or None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(value)))
    return rows
