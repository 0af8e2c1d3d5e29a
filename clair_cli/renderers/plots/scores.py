"""Every client's score beside its limit; of many, those that stand out, and the others counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clair_cli.renderers.page import scores as page
from clair_cli.renderers.page.looks import LOOKS
from clair_cli.renderers.plots.looks import COLOURS, ROW, RULE, SMALL, key, legend, mark
from clair_cli.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = 3
"""Rows that the bars of counted clients are high."""


def draw(report: Report, width: float) -> Figure | None:
    """The figure, None where no client has a score."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    plot = page.scores(report, {})
    if plot is None:
        return None
    high = len(plot.rows) + BAND * len(plot.bands)
    figure = Figure((width, 0.75 + ROW * high), layout="constrained")
    axis = figure.add_subplot()
    _rows(axis, plot)
    _bands(axis, plot)
    axis.set_xlim(0, 100)
    axis.set_ylim(high - 0.5, -0.5)
    axis.set_xticks([x for x, _ in plot.ticks], [text for _, text in plot.ticks])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=RULE, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.set_xlabel(_axis(plot))
    there = {r.look.name for r in plot.rows}
    keys = [key(look) for look in LOOKS.values() if look.name in there]
    keys.append(Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (3, 2)), label="limit"))
    if any(r.hinges for r in plot.rows):
        hollow: dict[str, Any] = {
            "marker": "o",
            "markerfacecolor": "white",
            "markeredgecolor": "0.3",
        }
        keys.append(Line2D([], [], linestyle="none", label="hollow: rests on few", **hollow))
    legend(figure, keys)
    return figure


def _rows(axis: Axes, plot: page.Scores) -> None:
    for y, row in enumerate(plot.rows):
        axis.hlines(y, 2, row.dot, color=RULE, linewidth=1.2)
        _limit(axis, row.limit, y - 0.5, y + 0.5)
        axis.plot(row.dot, y, **mark(row.look, row.hinges))
        _said(axis, y, row.score)
    names = [row.name for row in plot.rows]
    axis.set_yticks(range(len(names)), names)


def _bands(axis: Axes, plot: page.Scores) -> None:
    """A histogram per verdict below the rows, with its count in place of a name."""
    places, names = list(axis.get_yticks()), [row.name for row in plot.rows]
    for k, band in enumerate(plot.bands):
        base = len(plot.rows) + BAND * (k + 1) - 0.7
        highest = BAND - 0.6
        for x, wide, high in band.bars:
            axis.bar(
                x, -highest * high / 100, wide, base, align="edge", color=COLOURS[band.look.name]
            )
        axis.hlines(base, 0, 100, color=RULE, linewidth=0.6)
        _limit(axis, plot.limit, base - BAND + 0.2, base)
        _said(axis, base - highest / 2, f"{band.least}\n- {band.most}")
        places.append(base - highest / 2)
        names.append(f"{band.count} {band.look.word}")
    axis.set_yticks(places, names)


def _limit(axis: Axes, at: float | None, top: float, bottom: float) -> None:
    if at is not None:
        axis.vlines(at, top, bottom, color="black", linewidth=0.9, linestyle=(0, (3, 2)))


def _said(axis: Axes, y: float, text: str) -> None:
    axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", size=SMALL)


def _axis(plot: page.Scores) -> str:
    count = len(plot.unscored)
    return f"score; {count} without one not shown" if count else "score"
