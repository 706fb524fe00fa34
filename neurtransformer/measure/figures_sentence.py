"""The pictures of one sentence: a race, a raster of spikes, attention maps."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurtransformer.measure.drawing import (
    DENSE,
    HEAT,
    SPIKING,
    STYLE,
    WIDTH,
    svg_of,
)
from neurtransformer.measure.figures import POPULATIONS
from neurtransformer.measure.raster import spike_train

SMALL = 7.5  # points, of tokens
TOKEN, LINE = 24, 4  # points of the raster for a token, and for a neuron
POSITIVE, NEGATIVE = "#2f8fce", "#e0701c"  # a picture of points is the same on dark ground
EMPTY = 0.12  # of grey, so that silence is seen


def race(values: Mapping[str, Any]) -> bytes:
    """When the neuron of each token fires, and what its spike counts beside the softmax weight.

    values: what `race.one_race` returns.
    """
    tokens = [_word(token) for token in values["tokens"]]
    rows = range(len(tokens))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.15 * len(tokens)))
        times, shares = figure.subplots(1, 2, sharey=True)
        fired = [(step, row) for row, step in enumerate(values["step"]) if step is not None]
        times.scatter([step for step, _ in fired], [row for _, row in fired], color=SPIKING, s=18)
        times.set_yticks(list(rows), tokens, fontsize=SMALL)
        times.invert_yaxis()
        times.set_xlabel("time step after the first spike")
        times.set_title(f"layer {values['layer']}, head {values['head']}: when")
        for form, colour, shift in (("softmax", DENSE, -0.2), ("share", SPIKING, 0.2)):
            label = "dense softmax" if form == "softmax" else "race"
            places = [row + shift for row in rows]
            shares.barh(places, values[form], height=0.4, color=colour, label=label)
        shares.set_xlabel("attention weight")
        shares.legend(frameon=False, fontsize=8)
        return svg_of(figure)


def raster(values: Mapping[str, Any]) -> bytes:
    """Spikes of some neurons of some layers, time from left to right, a panel for each layer.

    values: what `raster.raster` returns.
    """
    tokens = [_word(token) for token in values["tokens"]]
    layers = sorted({row["layer"] for row in values["rows"]})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 1.25 * len(layers)))
        panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
        for axes, layer in zip(panels, layers, strict=True):
            rows = [row for row in values["rows"] if row["layer"] == layer]
            picture, middles, height = _points(rows, len(tokens))
            extent = (0, len(tokens), height, 0)
            axes.imshow(picture, aspect="auto", interpolation="none", extent=extent)
            names = [POPULATIONS.get(row["population"], row["population"]) for row in rows]
            axes.set_yticks(middles, names, fontsize=SMALL)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(f"layer {layer}")
        middle = [i + 0.5 for i in range(len(tokens))]
        panels[-1].set_xticks(middle, tokens, rotation=90, fontsize=SMALL)
        return svg_of(figure)


def attention_maps(values: Mapping[str, Any]) -> bytes:
    """Weights of dense softmax and of the spiking attention side by side, a row for each head.

    values: what `maps.attention_maps` returns.
    """
    tokens = [_word(token) for token in values["tokens"]]
    heads = values["heads"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + (0.3 + 0.125 * len(tokens)) * len(heads)))
        grid = figure.subplots(len(heads), 2, sharey="row", squeeze=False)
        for panels, head in zip(grid, heads, strict=True):
            for axes, form in zip(panels, ("dense", "spiking"), strict=True):
                weights = square(head[form], len(tokens))
                image = axes.imshow(weights, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
                axes.set_title(f"{form}, layer {head['layer']}, head {head['head']}", fontsize=8)
                axes.set_xticks([])
                asking = range(len(tokens) - len(weights), len(tokens))
                axes.set_yticks(range(len(weights)), [tokens[i] for i in asking], fontsize=SMALL)
                axes.tick_params(length=0)
                axes.spines[:].set_visible(False)
        figure.colorbar(
            image, ax=grid, label="attention weight", location="bottom", aspect=40, pad=0.01
        )
        return svg_of(figure)


def square(rows: list[str], tokens: int) -> NDArray[np.float64]:
    """Weights of `maps.attention_maps` as numbers, (asking, tokens), NaN behind the asking one."""
    weights = np.full((len(rows), tokens), np.nan)
    for row, text in zip(weights, rows, strict=True):
        numbers = [int(number) / 1000 for number in text.split()]
        row[: len(numbers)] = numbers
    return weights


def _points(
    rows: list[Mapping[str, Any]], tokens: int
) -> tuple[NDArray[np.float64], list[float], int]:
    """The raster of one layer in colours, (points, points, 4); where populations have their middle,
    and the height of all, in points."""
    lines, middles, height = [], [], 0
    for row in rows:
        if row["timesteps"] > TOKEN:
            raise ValueError("more time steps than a token has points")
        for text in row["counts"]:
            line = np.zeros((LINE, tokens * TOKEN, 4))
            line[:-1] = (*to_rgb(DENSE), EMPTY)
            for token, count in enumerate(text.split()):
                spikes = spike_train(int(count), row)
                edges = [round(TOKEN * (token + i / len(spikes))) for i in range(len(spikes) + 1)]
                for spike, left, right in zip(spikes, edges, edges[1:], strict=False):
                    if spike:
                        colour = POSITIVE if spike > 0 else NEGATIVE
                        line[:-1, left : max(left + 1, right - 1)] = (*to_rgb(colour), 1)
            lines.append(line)
        drawn = LINE * len(row["counts"])
        middles.append(height + drawn / 2)
        lines.append(np.zeros((LINE // 2, tokens * TOKEN, 4)))
        height += drawn + LINE // 2
    return np.concatenate(lines), middles, height


def _word(token: str) -> str:
    """A token as a label: what cannot be seen, as an escape; not too long."""
    word = token.strip() or repr(token)
    # a dollar sign would begin a formula
    return (word if len(word) < 14 else word[:12] + "…").replace("$", r"\$")
