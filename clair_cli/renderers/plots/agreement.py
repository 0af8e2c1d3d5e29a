"""Who agrees with whom: the map of the clients, and the table of every two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clair_cli.renderers.page import grids, maps
from clair_cli.renderers.page.looks import Look
from clair_cli.renderers.plots.looks import LETTER, SHADES, SMALL, key, legend, mark
from clair_cli.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = 6.0
"""Inches of width from which on the two stand side by side."""
EDGE, TEXT, BAR = 0.05, 0.25, 0.5
"""Inches beside everything, for a line of text, and for the shades with their numbers."""
PITCH = 6.0
"""Points that a row with a name is high at least."""
OPPOSED = -25
"""Hundredths below which the shades reach down to -1."""


def draw(report: Report, width: float) -> Figure | None:
    """The figure, None where the report has neither map nor table."""
    from matplotlib.figure import Figure

    chart, table = maps.client_map(report), grids.matrix(report)
    count = (chart is not None) + (table is not None)
    if not count:
        return None
    wide = width / 2 if count == 2 and width >= BESIDE else width
    side = wide - 2 * EDGE
    names = EDGE if table is None else _names(table, wide)
    lower = wide - BAR - names
    stacked = count == 2 and wide == width
    high = (side + TEXT + lower if stacked else side if chart else lower) + 2 * TEXT + EDGE
    figure = Figure((width, high))
    if chart is not None:
        _map(_axis(figure, EDGE, high - EDGE - side, side), chart)
        legend(figure, map(key, chart.looks), outside=False)
    if table is not None:
        left = names if wide == width else wide + names
        bottom = 2 * TEXT if stacked else high - EDGE - lower
        _matrix(_axis(figure, left, bottom, lower), table, names > TEXT)
    return figure


def _names(table: grids.Grid, wide: float) -> float:
    """Inches for the names of the rows, where the rows are high enough for them; else for marks."""
    longest = max((len(label.text) for label in table.labels), default=0)
    needed = 2 * EDGE + longest * LETTER / 72
    fits = 72 * (wide - BAR - needed) >= PITCH * len(table.rows)
    return max(needed, TEXT + EDGE) if table.labels and fits else TEXT


def _axis(figure: Figure, left: float, bottom: float, side: float) -> Axes:
    """A square, in inches, with a frame and nothing on it."""
    wide, high = figure.get_size_inches()
    axis = figure.add_axes((left / wide, bottom / high, side / wide, side / high))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.tick_params(length=0)
    return axis


def _map(axis: Axes, chart: maps.Map) -> None:
    axis.set_xlim(0, chart.side)
    axis.set_ylim(chart.side, 0)
    for m in chart.marks:
        axis.plot(m.x, m.y, **mark(m.look))
        axis.text(m.text_x, m.text_y, m.text, size=SMALL, ha="right" if m.end else "left")
    axis.set_xlabel(f"near is alike; stress {chart.stress}, {chart.kept} of the differences")


def _matrix(axis: Axes, table: grids.Grid, named: bool) -> None:
    """Hundredths as shades, with names where there is room, else with marks of those that are odd."""
    values = [[level - 100 for level in row] for row in table.rows]
    opposed = min(map(min, values)) < OPPOSED
    low = -100 if opposed else OPPOSED
    picture = axis.imshow(
        values, cmap=SHADES, vmin=low, vmax=100, aspect="auto", interpolation="nearest"
    )
    axis.set_xlabel("agreement; who is alike stands side by side")
    if named:
        axis.set_yticks(range(len(values)), [label.text for label in table.labels])
    else:
        _odd(axis, table.looks)
    ticks = [-100, -50, 0, 50, 100] if opposed else [-25, 0, 25, 50, 75, 100]
    bar = axis.figure.colorbar(picture, cax=axis.inset_axes((1.03, 0, 0.04, 1)), ticks=ticks)
    bar.ax.set_yticklabels([f"{t / 100:g}" for t in ticks])


def _odd(axis: Axes, looks: tuple[Look, ...]) -> None:
    """The marks of those who are not benign, left of their rows."""
    for y, look in enumerate(looks):
        if look.name != "benign":
            where = axis.get_yaxis_transform()
            axis.plot(-0.03, y, transform=where, clip_on=False, **mark(look))
