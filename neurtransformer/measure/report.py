"""The report page of a run: one HTML file that holds everything it shows."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors import SafetensorError, safe_open

from neurtransformer.measure.charts import Heads, charts
from neurtransformer.measure.energy_tables import energy_tables
from neurtransformer.measure.forms import forms
from neurtransformer.measure.origin import (
    commands,
    facts,
    flat,
    made_with,
    measured,
    records,
    size_of,
)
from neurtransformer.measure.summary import legible, section, shown, summary_rows
from neurtransformer.provenance import current, remarks, run_sha256
from neurtransformer.runs import read_json

PACKAGES = ("neurtransformer", "torch", "transformers", "spikingjelly", "lava-nc", "lava-dl")


@dataclass(frozen=True)
class Text:
    """What a form of the network wrote behind a prompt."""

    form: str
    prompt: str
    written: str


def page(run: Path) -> str:
    """The page for a run folder. Raises UserError if report.json or config.json is damaged."""
    report, config = read_json(run / "report.json"), read_json(run / "config.json")
    weights = run_sha256(run, config)
    heads = head_forgetting(run, size_of(config, "num_hidden_layers") or 0)
    said = remarks(report, config, weights)
    return render(current(report, weights), config, run.name, heads, said, weights)


def render(
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str,
    heads: Heads | None = None,
    said: Sequence[str] = (),
    weights: str | None = None,
) -> str:
    """The page for what report.json and config.json say; sections may be missing.

    heads: see `head_forgetting`. said: see `provenance.remarks`. weights: the hash of those that
    the run has.
    """
    environment = Environment(
        loader=PackageLoader("neurtransformer", "measure"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    energy = section(report, "energy")
    html = environment.get_template("report.html.j2").render(
        name=name,
        said=said,
        facts=facts(report, config, weights),
        summary=summary_rows(report),
        forms=forms(report),
        charts=charts(report, config, heads),
        races=config.get("attention") == "ttfs",
        energy=legible(lambda: energy_tables(energy)),
        placed=placed(section(report, "place")),
        texts=texts(section(report, "generate")),
        commands=commands(report),
        measured=measured(report),
        made_with=made_with(report),
        recipe=list(flat(section(report, "recipe"))),
        records=records(report),
        versions=versions(),
    )
    # half a character, which JSON can hold and a file cannot
    return html.encode("utf-8", "backslashreplace").decode()


def placed(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `neurtx place` found, in words; empty if it was not run."""
    cores, chips = (shown(values.get(key), "{:,}") for key in ("cores", "chips"))
    if cores is None or chips is None:
        return []
    fits = section(values, "fits")
    used = section(values, "utilisation")
    rows = [
        ("chip", str(values.get("chip"))),
        ("cores", cores),
        ("chips", chips),
        ("chips at least, were no layer split", shown(values.get("lower_bound_chips"), "{:,}")),
        ("what is scarce", str(values.get("bottleneck"))),
        *((f"fits {system}", "yes" if fit is True else "no") for system, fit in fits.items()),
        *((f"{what.replace('_', ' ')} used", shown(x, "{:.1%}")) for what, x in used.items()),
    ]
    return [(what, value) for what, value in rows if value is not None]


def texts(generated: Mapping[str, Any]) -> list[Text]:
    """What the network, and the dense model, made of a prompt."""
    prompt = generated.get("prompt")
    ours = "integer" if generated.get("backend") == "integer" else "spiking"
    found = []
    for form, text in ((ours, generated.get("text")), ("dense", generated.get("dense_text"))):
        if isinstance(text, str) and text:
            given = prompt if isinstance(prompt, str) and text.startswith(prompt) else ""
            found.append(Text(form, given, text[len(given) :]))
    return found if found and found[0].form == ours else []


def head_forgetting(run: Path, layers: int) -> Heads | None:
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
