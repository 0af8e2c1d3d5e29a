"""Module scores of all clients as shades: a row per client, a column per module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clair_cli.renderers.page import grids
from clair_cli.renderers.plots.looks import LETTER, ROW, RULE, SHADES, SMALL
from clair_cli.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 3.0
"""Inches that the rows of so many clients are high that only runs of them have a name."""
ROOM = 0.68
"""Share of the width that is left for the shades beside names."""


def draw(report: Report, width: float) -> Figure | None:
    """The figure, None without scores of modules."""
    from matplotlib.figure import Figure

    table = grids.heat(report)
    if table is None:
        return None
    named = len(table.labels) == len(table.rows)
    high = max(ROW * len(table.rows), 0.4) if named else MANY
    wide = 72 * ROOM * width
    slanted = any(LETTER * len(h.text) > wide * h.size / 100 for h in table.heads)
    longest = max((len(h.text) for h in table.heads), default=0) if slanted else 2
    figure = Figure((width, high + 0.75 + LETTER * longest / 72), layout="constrained")
    axis = figure.add_subplot()
    values = [list(row) for row in table.rows]
    picture = axis.imshow(
        values,
        cmap=SHADES,
        vmin=0,
        vmax=grids.LEVELS - 1,
        aspect="auto",
        interpolation="nearest",
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(True)
    _clients(axis, table, 72 * high)
    _modules(axis, table, wide, slanted)
    ticks = [grids.level(score) for score in grids.LEGEND]
    bar = figure.colorbar(
        picture, ax=axis, orientation="horizontal", ticks=ticks, aspect=30, pad=0.02
    )
    bar.ax.set_xticklabels([f"{score:g}" for score in grids.LEGEND])
    bar.set_label("score of a module")
    return figure


def _clients(axis: Axes, table: grids.Grid, high: float) -> None:
    """The names at their rows; those of runs of one verdict where a line of text fits."""
    shown = [r for r in table.labels if high * r.size / 100 >= SMALL]
    axis.set_yticks([_place(r.at, len(table.rows)) for r in shown], [r.text for r in shown])
    for run in table.labels[:-1] if len(table.labels) < len(table.rows) else ():
        axis.axhline(_place(run.at + run.size / 2, len(table.rows)), color=RULE, linewidth=0.6)


def _modules(axis: Axes, table: grids.Grid, wide: float, slanted: bool) -> None:
    """The kinds at their columns, and a line between two of them."""
    shown = [h for h in table.heads if wide * h.size / 100 >= SMALL]
    places = [_place(h.at, len(table.columns)) for h in shown]
    axis.set_xticks(places, [h.text for h in shown], rotation=90 if slanted else 0)
    for head in table.heads[:-1]:
        at = _place(head.at + head.size / 2, len(table.columns))
        axis.axvline(at, color=RULE, linewidth=0.6)


def _place(percent: float, count: int) -> float:
    """Where matplotlib has that percentage of `count` cells; the first is from -0.5 to 0.5."""
    return percent * count / 100 - 0.5
