"""What refining did: how far each client was from its group's mean, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clair_cli.renderers.page.energy import Moves, moves
from clair_cli.renderers.page.view import OLDER
from clair_cli.renderers.plots.looks import INK, ROW, RULE, legend
from clair_cli.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "0.35"}
AFTER: dict[str, Any] = {"marker": "o", "markerfacecolor": INK, "markeredgecolor": INK}


def draw(report: Report, width: float) -> Figure | str | None:
    """The figure; None where nothing was refined, why where the report does not say how far."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    plot = moves(report, {})
    if plot is None:
        return None
    if not plot.known:
        return OLDER
    figure = Figure((width, 0.75 + ROW * plot.rows), layout="constrained")
    axis = figure.add_subplot()
    _rows(axis, plot)
    axis.set_xlim(0, 100)
    axis.set_ylim(plot.rows - 0.5, -0.5)
    axis.set_xticks([x for x, _ in plot.ticks], [text for _, text in plot.ticks])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=RULE, linewidth=0.5)
    axis.set_axisbelow(True)
    more = len(plot.clients) - plot.rows
    of = "distance from the group's mean / norm"
    axis.set_xlabel(f"{of}; {more} more not shown" if more else of)
    keys = (("before", BEFORE), ("after", AFTER))
    legend(figure, [Line2D([], [], linestyle="none", label=t, **how) for t, how in keys])
    return figure


def _rows(axis: Axes, plot: Moves) -> None:
    shown = plot.clients[: plot.rows]
    for y, client in enumerate(shown):
        if client.before is not None and client.after is not None:
            axis.hlines(y, client.after, client.before, color="0.6", linewidth=1.2)
        for at, how in ((client.before, BEFORE), (client.after, AFTER)):
            if at is not None:
                axis.plot(at, y, **how)
    axis.set_yticks(range(len(shown)), [client.short for client in shown])
