"""ROC curves of real.py, one panel per kind: clair, an older one, and what others would say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.measures import auroc, shown, table
from benchmarks.pictures import STYLE, save
from benchmarks.real_cohorts import Cohort
from benchmarks.real_tables import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scores = dict[str, dict[str, float]]
"""Cohort -> client -> score."""
Curves = dict[str, Scores]
"""Whose -> scores."""
COLOURS = ("#3b6fb6", "#d1661a", "#2a9d55", "#8a5cb8", "#7a7a7a", "#b3a12b", "#c04a6e", "#4bb3b8")


def of_kind(cohorts: list[Cohort], scores: Scores, kind: str) -> tuple[list[float], list[bool]]:
    """Scores of the contaminated clients of a kind and of the honest ones beside them, and which
    are contaminated."""
    values, bad = [], []
    for cohort in cohorts:
        wanted = {n: c for n, c in cohort.clients.items() if c.honest or c.label == kind}
        if cohort.name in scores and any(not c.honest for c in wanted.values()):
            values += [scores[cohort.name][n] for n in wanted]
            bad += [not c.honest for c in wanted.values()]
    return values, bad


def areas(cohorts: list[Cohort], curves: Curves) -> str:
    """Area under the curve by kind, all cohorts with the kind together."""
    lines = []
    for kind in KINDS:
        found = [auroc(*of_kind(cohorts, scores, kind)) for scores in curves.values()]
        if any(a is not None for a in found):
            lines.append([kind, *map(shown, found)])
    return table(["kind", *curves], lines)


def draw(cohorts: list[Cohort], curves: Curves, title: str, path: Path) -> None:
    """A panel for each kind that the cohorts have."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [k for k in KINDS if any(any(of_kind(cohorts, s, k)[1]) for s in curves.values())]
    with matplotlib.rc_context(STYLE):
        rows = -(-len(kinds) // 3)
        figure, axes = pyplot.subplots(
            rows, 3, figsize=(11, 3.4 * rows), layout="constrained", squeeze=False
        )
        for axis in axes.flat:
            axis.set_visible(False)
        for axis, kind in zip(axes.flat, kinds, strict=False):
            axis.set_visible(True)
            panel(axis, kind, cohorts, curves)
        figure.suptitle(title)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        save(figure, path)


def panel(axis: Axes, kind: str, cohorts: list[Cohort], curves: Curves) -> None:
    """The curves of one kind; the horizontal axis is logarithmic above one in a thousand."""
    for colour, (name, scores) in zip(COLOURS, curves.items(), strict=False):
        values, bad = of_kind(cohorts, scores, kind)
        if any(bad):
            own = name == "clair"
            axis.plot(*curve(values, bad), color=colour, lw=1 + own, zorder=2 + own, label=name)
    axis.set_xscale("symlog", linthresh=1e-3, linscale=0.3)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_title(kind)
    axis.set_xlabel("honest clients above")
    axis.set_ylabel("contaminated above")
    axis.grid(color="0.92")


def curve(values: list[float], bad: list[bool]) -> tuple[list[float], list[float]]:
    """Shares of the honest and of the contaminated at or above each score, from nobody to all."""
    scores, wrong = np.asarray(values), np.asarray(bad)
    limits = [np.inf, *np.unique(scores)[::-1]]
    honest, contaminated = scores[~wrong], scores[wrong]
    return (
        [float((honest >= limit).mean()) for limit in limits],
        [float((contaminated >= limit).mean()) for limit in limits],
    )
