"""How energy spreads over directions, and which of them count as shared."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from clair_cli.renderers.page.energy import Bars, spectra
from clair_cli.renderers.plots.looks import INK, SOFT, legend
from clair_cli.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIGH = 1.05
"""Inches of one chart with its title."""
AXIS = 0.45
"""Inches left of a title."""
WIDE = 4.4
"""Points that a letter of a title is wide."""


def draw(report: Report, width: float) -> Figure | None:
    """The figure, None where the report has no spectrum."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    charts = spectra(report)
    if not charts:
        return None
    figure = Figure((width, HIGH * len(charts) + 0.3), layout="constrained")
    axes = figure.subplots(len(charts), 1, squeeze=False).flat
    for axis, chart in zip(axes, charts, strict=True):
        _chart(axis, chart)
        axis.set_title("\n".join(wrap(chart.title, int(72 * (width - AXIS) / WIDE))))
    legend(
        figure, [Patch(color=INK, label="counts as shared"), Patch(color=SOFT, label="does not")]
    )
    return figure


def _chart(axis: Axes, chart: Bars) -> None:
    """Bars in percent of the largest one, whose share stands on the axis."""
    for x, wide, high, chosen, _ in chart.bars:
        axis.bar(x, high, wide, align="edge", color=INK if chosen else SOFT)
    middles = [x + wide / 2 for x, wide, *_ in chart.bars]
    axis.set_xticks(middles, [str(k) for k in range(1, len(middles) + 1)])
    axis.set_yticks([0, 100], ["0", chart.top])
    axis.set_xlim(-1, 100)
    axis.set_ylim(0, 100)
    axis.tick_params(axis="x", length=0)
