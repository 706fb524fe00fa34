"""The values of the report's pictures in words: what a picture says to those who do not see it."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from neurtransformer.measure.energy_tables import KINDS, PARTS
from neurtransformer.measure.figures import POPULATIONS
from neurtransformer.measure.figures_sentence import square
from neurtransformer.measure.raster import spike_train
from neurtransformer.measure.summary import change

MOST = 8
"""Layers, tokens or points that are read out one by one; of more there are fewer words."""


def race(values: Mapping[str, Any]) -> str:
    """The tokens that count most, and how many do not fire."""
    rows = list(
        zip(values["tokens"], values["step"], values["share"], values["softmax"], strict=True)
    )
    most = sorted(rows, key=lambda row: -row[2])[:MOST]
    told = [
        f"“{token.strip()}” in step {step}, {share:.0%} of the race and {softmax:.0%} of softmax"
        for token, step, share, softmax in most
        if step is not None
    ]
    silent = sum(step is None for step in values["step"])
    return (
        f"Layer {values['layer']}, head {values['head']}. {'; '.join(told)}. "
        f"{silent} of {len(rows)} tokens do not fire."
    )


def raster(values: Mapping[str, Any]) -> str:
    """How often the neurons of each layer fire."""
    told = []
    for layer, rows in groupby(values["rows"], lambda row: row["layer"]):
        spikes = [
            spike != 0
            for row in rows
            for text in row["counts"]
            for count in text.split()
            for spike in spike_train(int(count), row)
        ]
        told.append(f"layer {layer} {np.mean(spikes):.0%} of {len(spikes):,}")
    return f"Share of the time steps with a spike: {', '.join(told)}."


def rates(values: Mapping[str, float]) -> str:
    """By population, layer by layer."""
    told = []
    for name, title in POPULATIONS.items():
        found = sorted(
            (int(key.partition(".")[0]), rate)
            for key, rate in values.items()
            if key.partition(".")[2] == name
        )
        if len(found) > MOST:
            told.append(f"{title} {min(r for _, r in found):.2f} to {max(r for _, r in found):.2f}")
        elif found:
            told.append(f"{title} {', '.join(f'{rate:.2f}' for _, rate in found)}")
    return f"From the first layer to the last: {'; '.join(told)}."


def attention_maps(values: Mapping[str, Any]) -> str:
    """How much of the weight both put on the same tokens."""
    tokens = len(values["tokens"])
    told = []
    for head in values["heads"]:
        before, after = (square(head[form], tokens) for form in ("dense", "spiking"))
        same = np.nansum(np.minimum(before, after), axis=1).mean()
        favourites = (values["tokens"][int(np.nanargmax(x[-1]))].strip() for x in (before, after))
        told.append(
            "layer {}, head {}: both put {:.0%} of the weight on the same tokens; the last token "
            "attends most to “{}” before and to “{}” after".format(
                head["layer"], head["head"], same, *favourites
            )
        )
    return f"{'. '.join(told)}."


def forgetting(shift: Tensor, present: Tensor) -> str:
    """What the heads of each layer keep at some distances."""
    told = []
    for layer, (shifts, presents) in enumerate(zip(shift.tolist(), present.tolist(), strict=True)):
        kept = {
            f"{back} back": [(1 - 2.0**-s) ** (back - 1) for s in shifts] for back in (1, 16, 128)
        }
        kept = {"of the token itself": presents, **kept}
        words = [f"{name} {np.mean(shares):.2f}" for name, shares in kept.items()]
        told.append(f"layer {layer} {', '.join(words)}")
    if len(told) > MOST:
        told = [*told[: MOST // 2], "and so on", *told[-MOST // 2 :]]
    return f"Kept on average over the heads: {'; '.join(told)}."


def position_losses(points: Sequence[Mapping[str, Any]]) -> str:
    """Both losses at some positions."""
    told = [
        f"at {point['position']:.0f} dense {_loss(point['dense'])}, "
        f"spiking {_loss(point['spiking'])}"
        for point in points[:: -(-len(points) // MOST)]
    ]
    return f"Loss in nats: {'; '.join(told)}."


def loss_curve(curve: Sequence[Sequence[Any]]) -> str:
    """The first and the last loss of each stage."""
    told = []
    for stage in dict.fromkeys(stage for _, stage, _ in curve):
        points = [(step, loss) for step, of, loss in curve if of == stage and loss is not None]
        if points:
            (first, begin), (last, end) = points[0], points[-1]
            told.append(f"{stage}: {begin:.3g} in step {first}, {end:.3g} in step {last}")
    return f"{'; '.join(told)}."


def energy_bars(energy: Mapping[str, Any]) -> str:
    """Microjoules of each part and form, and the change from dense."""
    told = []
    for title, prefix in KINDS.items():
        parts = []
        for part, label in PARTS.items():
            dense, spiking, graded = (
                energy[part][f"{prefix}{form}_j"] for form in ("dense", "spiking", "graded")
            )
            parts.append(
                f"{label} dense {1e6 * dense:.3g}"
                + "".join(
                    f", {name} {1e6 * ours:.3g}, {change(100 * (1 - ours / dense))}"
                    for name, ours in (("spiking", spiking), ("graded spikes", graded))
                )
            )
        told.append(f"{title}: {'; '.join(parts)}")
    return f"Microjoules per token. {'. '.join(told)}."


def energy_bill(bill: Mapping[str, Any]) -> str:
    """What a token costs in all, in every form."""
    totals = {f"dense {name}": of["total_j"] for name, of in bill["dense"].items()}
    totals |= {"spiking": bill["spiking"]["total_j"], "graded spikes": bill["graded"]["total_j"]}
    told = [f"{name} {1e6 * total:,.1f}" for name, total in totals.items()]
    largest = sorted(bill["spiking"]["lines"], key=lambda line: -line["total_j"])[:3]
    causes = [f"{line['cause']} {1e6 * line['total_j']:,.1f}" for line in largest]
    return (
        f"Microjoules per token in all: {', '.join(told)}. "
        f"Most of the spiking network's are {', '.join(causes)}."
    )


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
