"""The model card of a run: its README.md, which the hub shows and a colleague reads first."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from neurtransformer.dense import KNOWN
from neurtransformer.errors import UserError
from neurtransformer.measure.summary import section, summary_rows, trainings
from neurtransformer.provenance import current, provenance_of, run_sha256
from neurtransformer.runs import is_read_only, read_json, write_text

CARD = "README.md"

MARK = "<!-- neurtx writes this file anew; delete this line to keep what you write here -->"
"""In a card that nobody has taken over."""


def write_card(run: Path) -> None:
    """Write the card of a run, unless somebody has made it theirs (`MARK`).

    Raises UserError if the run's report.json or config.json is damaged.
    """
    path = run / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    config = read_json(run / "config.json")
    report = current(read_json(run / "report.json"), run_sha256(run, config))
    write_text(path, card(config, report))


def refresh_card(run: Path) -> None:
    """`write_card` for a run that has a card; one that is for reading only stays as it is."""
    if not is_read_only(run) and (run / CARD).is_file():
        with contextlib.suppress(UserError):  # that its report is damaged was said
            write_card(run)


def card(config: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The card as Markdown. config, report: of the run; the latter without what is outdated.

    Folders are named without their paths, which say nothing to others; the run itself is `.`.
    """
    teacher = public(config.get("dense"))
    known = KNOWN.get(str(config.get("dense")))
    base = known.hub if known is not None else teacher
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["spiking", "neurtx"],
        **({"base_model": base} if base and "/" in base else {}),
    }
    recipe = section(report, "recipe")
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{MARK}\n",
        f"# {teacher or 'a dense model'}, spiking\n",
        f"A spiking network that neurtx made from "
        f"{f'`{teacher}`' if teacher else 'a dense model'}. {_codes(config)}\n",
        *_numbers(report),
        _LOADING,
        "## How it was made\n",
        _history(report, teacher, config),
        f"The recipe in full:\n\n```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```\n",
        "## Licence\n",
        f"The weights are derived from those of {f'`{teacher}`' if teacher else 'the dense model'}"
        + ("" if not trainings(report) else ", and from the text that they were trained on")
        + ". What licence that means is for whoever shares this folder to find out and to write "
        "here: neurtx does not know.\n",
    ]
    return "\n".join(parts)


def public(source: object) -> str | None:
    """The name of a teacher without its place on somebody's machine."""
    return None if source is None else Path(str(source)).name if _is_path(source) else str(source)


def _is_path(source: object) -> bool:
    return Path(str(source)).is_absolute()


def _codes(config: Mapping[str, Any]) -> str:
    kinds = {"ttfs": "a race of token neurons", "linear": "fast weights"}
    attention = kinds.get(str(config.get("attention")), str(config.get("attention")))
    steps, coding = config.get("timesteps"), config.get("coding")
    own_steps = config.get("attention_timesteps") or steps
    own_coding = config.get("attention_coding") or coding
    digits = ""
    if config.get("digits") == "signed":
        digits = " What is phase coded is sent by signed digits, spikes of -1, 0 and 1."
    return (
        f"Its attention is {attention}, {own_coding} coded in T = {own_steps} time steps; the "
        f"feed-forward blocks are {coding} coded in T = {steps}.{digits}"
    )


def _numbers(report: Mapping[str, Any]) -> list[str]:
    """A table of what was measured of the present weights."""
    rows = summary_rows(report)
    found, made = section(report, "eval"), section(report, "convert")
    if not found and not trainings(report) and "ppl_ratio" in made:
        tokens = made.get("unseen_tokens")
        rows.insert(
            0,
            (
                "perplexity ratio",
                f"{made['ppl_ratio']:.3f}",
                f"spiking over dense, on {tokens} tokens that the conversion has not seen",
            ),
        )
    if not rows:
        return ["## Numbers\n", "Nothing was measured yet: `neurtx eval` does that.\n"]
    lines = [f"| {what} | {number} | {meaning} |" for what, number, meaning in rows]
    texts = {str(public(found.get("text")) or "CPython's help texts")} if found else set()
    where = f"Measured with `neurtx eval` on {', '.join(texts)}.\n" if texts else ""
    head = "| what | number | meaning |\n| --- | --- | --- |"
    return ["## Numbers\n", "\n".join([head, *lines]) + "\n", where]


_LOADING = """## How to load it

The code is in the package `neurtransformer` (`pip install neurtransformer`).

```python
import neurtransformer  # registers the model with transformers
from transformers import pipeline

run = "."  # this folder, or owner/name if it stands on the Hugging Face hub
write = pipeline("text-generation", model=run)
print(write("The old man", max_new_tokens=20)[0]["generated_text"])
```

`AutoModelForCausalLM.from_pretrained(run)` works the same way. With `trust_remote_code=True`
neither needs the first line. On the command line, with the same names:

    neurtx eval .
    neurtx generate . --prompt "The old man"
    neurtx export . --target loihi2
"""


def _history(report: Mapping[str, Any], teacher: str | None, config: Mapping[str, Any]) -> str:
    """What was done to the weights, step by step."""
    lines = []
    made = section(report, "convert")
    if made:
        versions = provenance_of(made).get("versions") or {}
        which = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        lines.append(
            f"- converted from `{teacher}`, thresholds fitted to "
            f"{made.get('calibration_tokens')} tokens of "
            f"{public(made.get('text')) or 'text that the dense model wrote'}"
            + (f" ({which})" if which else "")
        )
    for values in trainings(report):
        lines.append(
            f"- fine-tuned for {values.get('steps')} steps on {values.get('tokens')} tokens of "
            f"{public(values.get('text')) or 'CPython and dense-model text'} (seed "
            f"{values.get('seed')}) to follow `{public(provenance_of(values).get('teacher'))}`"
        )
    if not trainings(report):
        lines.append("- nothing was trained")
    if config.get("dense_sha256"):
        lines.append(f"- SHA-256 of the dense model's weights: `{config['dense_sha256']}`")
    return "\n".join(lines) + "\n"
