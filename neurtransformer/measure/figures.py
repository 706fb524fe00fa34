"""The charts of what was measured, as SVG.

That of `neurtx place` stands alone and is a PNG; that of `neurtx energy` may be either.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from neurtransformer.measure.drawing import (
    DENSE,
    EDGE,
    GRADED,
    HATCHED,
    HEAT,
    INK,
    LOSS,
    ON_DARK,
    ON_LIGHT,
    PAPER,
    SPIKING,
    STYLE,
    WIDE,
    WIDTH,
    png_of,
    svg_of,
)
from neurtransformer.spiking.attention.linear import age_weights

STAGES = {"match": LOSS, "distil": SPIKING}
POPULATIONS = {
    "attn.encode": "attention input",
    "attn.query": "query",
    "attn.key": "key",
    "attn.value": "value",
    "attn.merged": "attention output",
    "mlp.encode": "feed-forward input",
    "mlp.hidden": "feed-forward hidden",
}
CAUSES = {  # Okabe and Ito's
    "projections": "#0072b2",
    "scores": "#56b4e9",
    "values": "#009e73",
    "writing keys and values": "#f0e442",
    "race steps": "#e69f00",
    "forgetting": "#e69f00",
    "neuron updates": "#d55e00",
    "norms and activations": "#cc79a7",
    "embedding and LM head": "#8c8c8c",
    "spike transport": INK,
}
FAR = 256  # tokens back that the picture of forgetting reaches
MOST_COLUMNS = 600  # of the picture of cores, about what the eye parts


def spike_rates(rates: Mapping[str, float]) -> bytes:
    """Heat map of spikes per neuron and step. rates: by `<layer>.<population>`, 0 to 1."""
    layers = sorted({int(name.partition(".")[0]) for name in rates})
    grid = [[rates.get(f"{i}.{name}", math.nan) for i in layers] for name in POPULATIONS]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5))
        axes = figure.subplots()
        image = axes.imshow(grid, cmap=HEAT, vmin=0, aspect="auto")
        axes.set_yticks(range(len(POPULATIONS)), list(POPULATIONS.values()))
        every = math.ceil(len(layers) / 12)
        axes.set_xticks(range(0, len(layers), every), [str(i) for i in layers[::every]])
        axes.set_xlabel("layer")
        if len(layers) <= 8:
            _write_values(axes, grid)
        figure.colorbar(image, label="spikes per neuron and step")
        return svg_of(figure)


def energy_bars(energy: Mapping[str, Any]) -> bytes:
    """Bars of microjoules per token, arithmetic above memory, by part of the model. Over each
    spiking form stands by how much it is less than dense, or more, which is a loss."""
    parts = {"attention": "attention", "feed_forward": "feed-forward", "model": "whole model"}
    forms = (("dense", DENSE), ("spiking", SPIKING), ("graded", GRADED))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6))
        panels = figure.subplots(2, 1)
        for axes, prefix, title in zip(
            panels, ("", "memory_"), ("arithmetic", "memory traffic"), strict=True
        ):
            for place, (form, colour) in enumerate(forms):
                heights = [energy[part][f"{prefix}{form}_j"] * 1e6 for part in parts]
                dense = [energy[part][f"{prefix}dense_j"] * 1e6 for part in parts]
                middles = [i + (place - 1) * 0.29 for i in range(len(parts))]
                axes.bar(middles, heights, 0.27, color=colour, label=_FORM_NAMES[form])
                for middle, height, before in zip(middles, heights, dense, strict=True):
                    if form != "dense":
                        change = round(100 * (height / before - 1))
                        told = f"{change:+d}%".replace("-", "\N{MINUS SIGN}")
                        worse = LOSS if change > 0 else INK
                        axes.text(
                            middle,
                            height,
                            told,
                            ha="center",
                            va="bottom",
                            color=worse,
                            fontsize=7.5,
                        )
            axes.set_xticks(range(len(parts)), list(parts.values()))
            axes.margins(y=0.12)
            axes.set_title(f"{title}, µJ per token")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
        )
        return svg_of(figure)


def energy_bill(bill: Mapping[str, Any], kind: str = "svg") -> bytes:
    """Where the energy of a token goes, and what it is in all. bill: what `bill.bill` returns.
    kind: svg or png."""
    bars = {
        "dense int8": bill["dense"]["int8, on-chip"],
        "spiking": bill["spiking"],
        "spiking, graded": bill["graded"],
    }
    totals = {f"dense {name}": of["total_j"] for name, of in bill["dense"].items()}
    for name, of in list(bars.items())[1:]:
        totals[name] = of["total_j"]
        totals[f"{name}, registers"] = of["total_j"] - of["accumulators_j"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.8), dpi=200)
        above, below = figure.subplots(2, 1, height_ratios=(1.4, 2.2))
        drawn: dict[str, None] = {}
        for row, of in enumerate(bars.values()):
            left = 0.0
            for line in of["lines"]:
                length, sums = line["total_j"] * 1e6, line["accumulators_j"] * 1e6
                colour = CAUSES.get(line["cause"], DENSE)
                label = None if line["cause"] in drawn else line["cause"]
                drawn[line["cause"]] = None
                above.barh(row, length, 0.6, left, color=colour, label=label)
                above.barh(row, sums, 0.6, left, color="none", **HATCHED)
                left += length
        above.barh(0, 0, color=DENSE, label="for sums in memory", **HATCHED)
        above.set_yticks(range(len(bars)), list(bars))
        above.invert_yaxis()
        above.set_title("where it goes, µJ per token")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7.5)
        ordered = sorted(totals.items(), key=lambda item: item[1])
        colours = [DENSE if name.startswith("dense") else SPIKING for name, _ in ordered]
        energies = [energy * 1e6 for _, energy in ordered]
        below.barh(range(len(ordered)), energies, 0.6, color=colours)
        for row, energy in enumerate(energies):
            number = f"{energy:,.{1 if energy < 100 else 0}f}"
            below.text(energy * 1.08, row, number, va="center", fontsize=7.5)
        below.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        below.invert_yaxis()
        below.set_xscale("log")
        below.set_xlim(min(energies) / 2, max(energies) * 3)
        below.set_title("in all, µJ per token")
        return svg_of(figure) if kind == "svg" else png_of(figure)


def loss_curve(curve: Sequence[Sequence[Any]]) -> bytes:
    """Loss of each fine-tuning stage in a panel of its own, for they are different losses.

    curve: [step, stage, loss] in order; the stages are `match` and `distil`.
    """
    stages = list(dict.fromkeys(stage for _, stage, _ in curve))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2))
        panels = figure.subplots(1, len(stages), squeeze=False)[0]
        for axes, stage in zip(panels, stages, strict=True):
            points = [(step, loss) for step, of, loss in curve if of == stage and loss is not None]
            steps = [step for step, _ in points]
            losses = [loss for _, loss in points]
            colour = STAGES.get(stage, SPIKING)
            axes.plot(steps, losses, color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(steps, _smooth(losses), color=colour, linewidth=1.6)
            axes.set_title(_STAGE_NAMES.get(stage, stage))
            axes.set_xlabel("step")
        panels[0].set_ylabel("loss")
        return svg_of(figure)


def position_losses(points: Sequence[Mapping[str, Any]], context: int) -> bytes:
    """Loss of both models along the text. points: {position, dense, spiking}, losses in nats."""
    positions = [point["position"] for point in points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4))
        axes = figure.subplots()
        axes.axvline(context, color=EDGE, linestyle="--", linewidth=1, label="trained context")
        for form, colour in (("dense", DENSE), ("spiking", SPIKING)):
            losses = [point[form] for point in points]
            axes.plot(positions, losses, color=colour, linewidth=1.6, marker=".", label=form)
        axes.set_xlabel("position, tokens from the start")
        axes.set_ylabel("loss, nats")
        axes.legend(frameon=False, fontsize=8)
        return svg_of(figure)


def forgetting(shift: Tensor, present: Tensor, context: int) -> bytes:
    """What each head keeps of a token so many tokens back; (layers, heads) both."""
    layers, heads = shift.shape
    far = min(context, FAR)
    layer_by_layer = zip(shift, present, strict=True)
    kept = torch.cat([age_weights(s, u, far)[:, -1].flip(-1) for s, u in layer_by_layer])
    # four columns to the octave
    ages = [0, *sorted({age for i in range(32) if (age := round(2 ** (i / 4))) < far})]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, min(1.4 + 0.14 * layers * heads, 5.0)))
        axes = figure.subplots()
        image = axes.imshow(kept[:, ages].tolist(), cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        shown = [i for i, age in enumerate(ages) if age == 0 or age & (age - 1) == 0]
        axes.set_xticks(shown, [str(ages[i]) for i in shown])
        axes.set_xlabel("tokens back (0 is the token itself)")
        every = math.ceil(layers / 12)
        axes.set_yticks(
            [heads * i + (heads - 1) / 2 for i in range(0, layers, every)],
            [f"layer {i}" for i in range(0, layers, every)],
        )
        for i in range(1, layers):
            axes.axhline(heads * i - 0.5, color=PAPER, linewidth=1.5)
        figure.colorbar(image, label="kept", extend="max" if kept.max() > 1 else "neither")
        return svg_of(figure)


def induction_heads(scores: Mapping[str, Sequence[Sequence[float]]]) -> bytes:
    """Heat maps of prefix-matching scores, one for each form. scores: form -> (layers, heads)."""
    largest = max(value for grid in scores.values() for row in grid for value in row)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 2.0))
        panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for axes, (form, grid) in zip(panels, scores.items(), strict=True):
            image = axes.imshow(grid, cmap=HEAT, vmin=0, vmax=largest, aspect="auto")
            axes.set_title(form)
            axes.set_xlabel("head")
            axes.set_xticks(range(0, len(grid[0]), math.ceil(len(grid[0]) / 4)))
            axes.set_yticks(range(0, len(grid), math.ceil(len(grid) / 12)))
        panels[0].set_ylabel("layer")
        figure.colorbar(image, ax=list(panels), label="prefix matching")
        return svg_of(figure)


def regression_errors(
    sweeps: Mapping[str, Sequence[Mapping[str, float]]], trained: Mapping[str, Any]
) -> bytes:
    """What the limits of the learning engine cost in-context regression, and what models learn.

    sweeps: what grows -> rows with its value and the relative errors of the forms of the engine.
    trained: `mse` by name, and `difference` of each model to each algorithm.
    """
    titles = {"bits": "bits of a trace", "dimension": "dimension d", "examples": "examples N"}
    forms = {"traces": GRADED, "nearest": DENSE, "stochastic": SPIKING, "lava": "#d55e00"}
    difference = trained["difference"]
    grid = [list(row.values()) for row in difference.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 5.4))
        halves: Any = figure.subfigures(2, 1, height_ratios=(2.2, 3.2))
        above, below = halves
        panels = above.subplots(1, len(sweeps), sharey=True)
        for axes, (name, rows) in zip(panels, sweeps.items(), strict=True):
            grows = [row[name] for row in rows]
            for form, colour in forms.items():
                errors = [row[form] for row in rows]
                axes.plot(grows, errors, color=colour, linewidth=1.4, marker=".", label=form)
            axes.set_yscale("log")
            if name != "bits":
                axes.set_xscale("log", base=2)
            axes.set_xlabel(titles[name])
        panels[0].set_ylabel("relative error")
        panels[0].legend(frameon=False, fontsize=7.5)
        axes = below.subplots()
        image = axes.imshow(grid, cmap=HEAT, vmin=0, aspect="auto")
        algorithms = list(next(iter(difference.values())))
        labels = ["\n".join(name.rsplit(" ", 1)) for name in algorithms]
        axes.set_xticks(range(len(labels)), labels, fontsize=7.5)
        axes.set_yticks(range(len(difference)), list(difference))
        axes.set_title(f"squared difference of predictions, noise {trained['noise']:g}")
        _write_values(axes, grid)
        below.colorbar(image, label="of the mean squared target")
        return svg_of(figure)


def core_utilisation(shares: NDArray[np.float64], names: Sequence[str], per_chip: int) -> bytes:
    """Heat map of what is used of every core, in order, as PNG; a column is the mean of neighbours
    where there are more cores than points. shares: (cores, resources), 0 to 1, named in `names`."""
    cores = len(shares)
    columns = min(cores, MOST_COLUMNS)
    edges = [cores * i // columns for i in range(columns + 1)]
    grid = [shares[a:b].mean(axis=0) for a, b in pairwise(edges)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.4 * WIDE, 2.2), dpi=200)
        axes = figure.subplots()
        extent = (0, cores, len(names) - 0.5, -0.5)
        image = axes.imshow(
            np.transpose(grid),
            cmap=HEAT,
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
            extent=extent,
        )
        axes.set_yticks(range(len(names)), list(names))
        lines = range(per_chip, cores, per_chip)
        for edge in lines if len(lines) < 40 else ():
            axes.axvline(edge, color=PAPER, linewidth=0.8)
        axes.set_xlabel(f"core, in the order of the network; {per_chip} to a chip")
        figure.colorbar(image, label="share used")
        return png_of(figure)


_FORM_NAMES = {"dense": "dense", "spiking": "spiking", "graded": "spiking, graded"}
_STAGE_NAMES = {"match": "1. attention outputs", "distil": "2. teacher's logits"}


def _smooth(losses: Sequence[float], window: int = 10) -> list[float]:
    """Mean of the last `window` values."""
    recent = [losses[max(0, i + 1 - window) : i + 1] for i in range(len(losses))]
    return [sum(values) / len(values) for values in recent]


def _write_values(axes: Any, grid: Sequence[Sequence[float]]) -> None:
    """Write each value into its cell, dark on light and light on dark."""
    largest = max((value for row in grid for value in row if not math.isnan(value)), default=1.0)
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            colour = ON_LIGHT if value > 0.6 * largest else ON_DARK
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7.5)
