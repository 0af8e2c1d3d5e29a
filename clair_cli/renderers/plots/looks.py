"""How figures look: type for a column of a paper, and verdicts by shape, shade and colour at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from clair_cli.renderers.page.looks import Look

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SMALL = 6.5
"""Points of names and numbers; nothing is smaller."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 7.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.45",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handletextpad": 0.2,
    "legend.columnspacing": 1.2,
    "lines.markersize": 4.5,
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "clair",
    "savefig.dpi": 300,
}
SHAPES = {
    "contaminated": "^",
    "broken": "X",
    "minority": "D",
    "suspicious": "s",
    "none": "o",
    "benign": "o",
}
"""Marks by verdict, those of the page."""
COLOURS = {
    "contaminated": "#7a0a0a",
    "broken": "#3d3d3d",
    "minority": "#3c55b4",
    "suspicious": "#d98a00",
    "none": "#8c8c8c",
    "benign": "#86c5da",
}
"""Each has a lightness of its own, so that grey print tells neighbours apart."""
INK, SOFT, RULE = "#1d3f70", "#b9c3d0", "0.85"
SHADES = "Blues"
"""Shades of tables: the darker the more, in one colour."""
LETTER = 4.0
"""Points that a letter of a small name is wide."""
ROW = 0.155
"""Inches of a row with a name."""


def mark(look: Look, hollow: bool = False) -> dict[str, Any]:
    """How matplotlib is to draw the mark of a verdict."""
    colour = COLOURS[look.name]
    return {
        "marker": SHAPES[look.name],
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour,
        "linestyle": "none",
    }


def key(look: Look) -> Line2D:
    """The mark and the word of a verdict in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **mark(look), label=look.word)


def legend(figure: Figure, keys: Iterable[Artist], outside: bool = True) -> None:
    """One legend below everything; where it is not `outside`, room has been left for it."""
    place: Any = "outside lower center" if outside else "lower center"
    figure.legend(handles=list(keys), loc=place, ncols=3)
