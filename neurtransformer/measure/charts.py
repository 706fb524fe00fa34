"""The pictures of the report page, each with how to read it and its values in words."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from neurtransformer.measure import alternatives, figures, figures_sentence
from neurtransformer.measure.drawing import darkened
from neurtransformer.measure.origin import size_of
from neurtransformer.measure.summary import legible, section

Heads = tuple[Tensor, Tensor]
"""Shift and present weight of every head, (layers, heads) both."""


@dataclass(frozen=True)
class Picture:
    """An SVG, how to read it, and its values for those who do not see it."""

    title: str
    caption: str
    svg: bytes
    values: str

    @property
    def address(self) -> str:
        """The picture itself, as a data: address."""
        return _address(self.svg)

    @property
    def dark_address(self) -> str:
        """The same on dark ground."""
        return _address(darkened(self.svg))


def _picture(name: str, draw: Callable[[], bytes], say: Callable[[], str]) -> Picture:
    return Picture(*CAPTIONS[name], draw(), say())


def _address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


CAPTIONS = {
    "race": (
        "A race",
        "How the last token of a sentence attends to those before it. Every token is a neuron;"
        " the query drives them, a threshold that they share falls, and each fires once. A"
        " spike that is 2 n steps late counts 2 to the power of -n, which is softmax in base"
        " 2.",
    ),
    "raster": (
        "Spikes",
        "Three neurons of each population, at even distances, reading one sentence. Each token"
        " takes the T time steps of the population's code, from left to right. Blue is a spike,"
        " orange one of the opposite sign, grey silence.",
    ),
    "rates": (
        "Spike rates",
        "Mean spikes per neuron and time step, by layer and population: 0 is silence, 1 a spike"
        " in every step.",
    ),
    "maps": (
        "Attention maps",
        "Before (dense softmax) and after (spiking): a row is a token that asks, a column a token"
        " of the sentence, from left to right. Shown are heads that look back far.",
    ),
    "forgetting": (
        "Forgetting",
        "What each head, a row, keeps of a token so far back. A row bright to the end remembers"
        " the whole past; one that is bright at 1 alone sees just the token before.",
    ),
    "positions": (
        "Loss by position",
        "Mean loss of the next token along the text, lower is better; ups and downs that both"
        " share are the text's. Positions past the dashed line were never trained and have no"
        " embedding of their own: they take the last one's, in both models.",
    ),
    "training": (
        "Fine-tuning",
        "Loss by step, and its mean over the last ten steps. The first stage, where there are two,"
        " matches attention outputs, the second the teacher's logits; their losses are different"
        " ones.",
    ),
    "energy": (
        "Energy by part",
        "Estimates, not measurements. Over each bar stands the change from the dense model; more"
        " than the dense model, in orange, is a loss.",
    ),
    "bill": (
        "The full bill",
        "Estimates, not measurements: all that is done and moved for one token. Above, with the"
        " weights on the chip; hatched is what it takes to read and write the sums that spikes"
        " add to, where the dense model keeps its own in registers. Below, DRAM means that the"
        " weights are there, and registers that the sums are.",
    ),
}


def charts(
    report: Mapping[str, Any], config: Mapping[str, Any], heads: Heads | None
) -> dict[str, Picture]:
    """The pictures that can be drawn from what is there, by the keys of CAPTIONS."""
    quality, energy = section(report, "eval"), section(report, "energy")
    rates = section(quality, "spike_rate_by_layer") or section(energy, "spike_rate_by_layer")
    context = size_of(config, "max_position_embeddings") or 0
    losses, curve = quality.get("loss_by_position"), section(report, "finetune").get("curve")
    race, raster, maps = (section(quality, x) for x in ("race", "raster", "attention_maps"))
    sources: dict[str, tuple[Any, Callable[[], bytes], Callable[[], str]]] = {
        "race": (race, lambda: figures_sentence.race(race), lambda: alternatives.race(race)),
        "raster": (
            raster,
            lambda: figures_sentence.raster(raster),
            lambda: alternatives.raster(raster),
        ),
        "rates": (rates, lambda: figures.spike_rates(rates), lambda: alternatives.rates(rates)),
        "maps": (
            maps,
            lambda: figures_sentence.attention_maps(maps),
            lambda: alternatives.attention_maps(maps),
        ),
        "forgetting": (
            heads,
            lambda: figures.forgetting(*heads, context) if heads else b"",
            lambda: alternatives.forgetting(*heads) if heads else "",
        ),
        "positions": (
            losses,
            lambda: figures.position_losses(losses or [], context),
            lambda: alternatives.position_losses(losses or []),
        ),
        "training": (
            curve,
            lambda: figures.loss_curve(curve or []),
            lambda: alternatives.loss_curve(curve or []),
        ),
        "energy": (
            "model" in energy,
            lambda: figures.energy_bars(energy),
            lambda: alternatives.energy_bars(energy),
        ),
        "bill": (
            "bill" in energy,
            lambda: figures.energy_bill(energy["bill"]),
            lambda: alternatives.energy_bill(energy["bill"]),
        ),
    }
    found = {
        name: legible(partial(_picture, name, draw, say))
        for name, (there, draw, say) in sources.items()
        if there
    }
    return {name: picture for name, picture in found.items() if picture is not None}
