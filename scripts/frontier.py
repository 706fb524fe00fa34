"""The frontier: perplexity ratio against spikes and energy, as a table and a picture.

    python scripts/frontier.py OUT --text FILE... [--model NAME] [--timesteps T]...
      [--run RUN]...

The model is converted once for every T with phase coding, without training; runs that were trained
stand beside them (--run, more than once). Everything is measured by `neurtx eval` on the same
tokens of every text, and the figures are means over texts. OUT gets

    frontier.json, frontier.md    the table
    frontier.svg                  ratio against spikes per token, and against the estimated energy
    T5/, T6/, ...                 the converted runs, which a second call takes as they are
"""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from neurtransformer import convert, evaluate
from neurtransformer.measure.drawing import svg_of

KEYS = (
    "ppl_ratio",
    "cosine_similarity",
    "token_agreement",
    "spikes_per_token",
    "attention_energy_reduction_percent",
    "model_energy_reduction_percent",
)
HEAD = """\
| network | ratio | cosine | agreement | spikes a token | attention / model energy saved, estimate |
| --- | --- | --- | --- | --- | --- |
"""


def measured(name: str, run: str | Path, texts: Iterable[Path], limit: int) -> dict[str, Any]:
    """What `neurtx eval` says of a run, the mean over texts, and its ratio on each."""
    found = [evaluate(run, text=text, limit=limit) for text in texts]
    row = {key: statistics.fmean(values[key] for values in found) for key in KEYS}
    return {"network": name, **row, "ratios": [values["ppl_ratio"] for values in found]}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; ratios text by text."""
    lines = [
        f"| {row['network']} | {' / '.join(f'{x:.3f}' for x in row['ratios'])} "
        f"| {row['cosine_similarity']:.3f} | {row['token_agreement']:.0%} "
        f"| {row['spikes_per_token']:,.0f} | {row['attention_energy_reduction_percent']:.1f} % / "
        f"{row['model_energy_reduction_percent']:.1f} % |\n"
        for row in rows
    ]
    return HEAD + "".join(lines)


def picture(title: str, converted: list[dict[str, Any]], trained: list[dict[str, Any]]) -> Figure:
    """Two panels with one vertical axis: a line through what was converted, points of the rest."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        ("spikes_per_token", "spikes per token"),
        ("attention_energy_reduction_percent", "energy of attention saved, estimate (%)"),
    )
    for panel, (key, label) in zip(axes, panels, strict=True):
        every = [row[key] for row in (*converted, *trained)]
        middle = (min(every) + max(every)) / 2
        for rows, style, name in (
            (converted, "o-", "converted, phase coded"),
            (trained, "s", "trained"),
        ):
            if not rows:
                continue
            x, y = [row[key] for row in rows], [row["ppl_ratio"] for row in rows]
            panel.plot(x, y, style, label=name)
            for row, at in zip(rows, zip(x, y, strict=True), strict=True):
                # a name grows towards the middle, so that none leaves the panel
                aside, align = (-4, "right") if at[0] > middle else (4, "left")
                panel.annotate(row["network"], at, (aside, 4), textcoords="offset points",
                               fontsize=7, ha=align)  # fmt: skip
        panel.margins(0.12)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.7g}"))
        panel.axhline(1, color="0.6", linewidth=0.8)
        panel.set_xlabel(label)
    axes[0].set_ylabel("perplexity, ratio to the dense model")
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", default="gpt2-nano", show_default=True)
@click.option("--text", "texts", multiple=True, required=True,
              type=click.Path(exists=True, path_type=Path))  # fmt: skip
@click.option("--timesteps", multiple=True, type=int, default=(4, 5, 6, 7, 8), show_default=True)
@click.option("--run", "runs", multiple=True, help="A folder, or the name of one that ships.")
@click.option("--limit", default=8176, show_default=True, help="Tokens of each text.")
def main(
    out: Path,
    model: str,
    texts: tuple[Path, ...],
    timesteps: tuple[int, ...],
    runs: tuple[str, ...],
    limit: int,
) -> None:
    """Measure the frontier of MODEL and of trained runs into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    converted, trained = [], []
    for number in sorted(timesteps):
        run = out / f"T{number}"
        if not run.exists():
            convert(model, run, coding="phase", timesteps=number)
        converted.append(measured(f"T = {number}", run, texts, limit))
        click.echo(table(converted[-1:]).splitlines()[-1])
    for run in runs:
        trained.append(measured(Path(run).name, run, texts, limit))
        click.echo(table(trained[-1:]).splitlines()[-1])
    rows = [*converted, *trained]
    (out / "frontier.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "frontier.md").write_text(table(rows))
    names = " and ".join(text.stem for text in texts)
    figure = picture(f"{model}, {limit:,} tokens each of {names}", converted, trained)
    (out / "frontier.svg").write_bytes(svg_of(figure))


if __name__ == "__main__":
    main()
