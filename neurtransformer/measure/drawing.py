"""What all pictures have in common: one width, one type size, colours told apart by all, and files.

Every picture is drawn on white. `darkened` gives the same SVG its colours on dark ground, so that
nothing is drawn twice.
"""

import io
import re
from typing import Any

from matplotlib.figure import Figure

WIDTH = 3.9  # inches: about the width of a phone, where type is then nearly as large as on paper
WIDE = 5.2  # of pictures in docs/
INK, PAPER, EDGE = "#1c1e21", "#ffffff", "#666666"
DENSE, SPIKING, GRADED = "#8c8c8c", "#0072b2", "#56b4e9"  # Okabe and Ito's, and a grey
LOSS = "#d55e00"  # what is worse than in the dense model; spikes of the other sign
HEAT = "cividis"
ON_LIGHT, ON_DARK = "#010101", "#fefefe"  # on heat maps, which are the same on dark ground
STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.constrained_layout.use": True,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "neurtx",  # the same numbers give the same file
}
HATCHED: dict[str, Any] = {"hatch": "////", "edgecolor": PAPER, "linewidth": 0}

DARK = {
    INK: "#e6e8ea",
    PAPER: "#16191c",
    EDGE: "#9aa3ad",
    SPIKING: "#4a9fdc",
    GRADED: "#a3d5f5",
    LOSS: "#f08a3c",
}
"""Colours on white -> the same on dark ground; the others are seen on both."""


def darkened(svg: bytes) -> bytes:
    """The same picture on dark ground."""
    return re.sub(
        rb"#[0-9a-f]{6}\b",
        lambda found: DARK.get(found[0].decode(), found[0].decode()).encode(),
        svg,
    )


def svg_of(figure: Figure) -> bytes:
    """The file of a figure, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def png_of(figure: Figure) -> bytes:
    """The same as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
