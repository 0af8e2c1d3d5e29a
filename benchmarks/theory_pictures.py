"""Pictures of theory.py's results, and the page that shows them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.pictures import BLUE, GREY, ORANGE, STYLE, save
from benchmarks.theory_records import Gain, Recovery, Results, Sets, Stability, breakdown
from benchmarks.theory_tables import as_markdown
from benchmarks.theory_truth import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = ("#9dbce0", "#3b6fb6", "#1d3d6b", "#0a1a33")


def report(results: Results, facts: str, out: Path) -> None:
    """Write theory.md and its pictures into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "theory.md").write_text(as_markdown(results, facts))
    if find_spec("matplotlib") is None:
        print("no pictures: matplotlib is not installed", file=sys.stderr)
    else:
        draw(results, out)


def draw(results: Results, folder: Path) -> list[Path]:
    """The pictures that theory.md shows."""
    import matplotlib

    matplotlib.use("Agg")
    makers = {
        "recovery": (draw_recovery, "recovery"),
        "noise": (draw_noise, "stability"),
        "sets": (draw_sets, "sets"),
        "gain": (draw_gain, "gain"),
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (make, records) in makers.items():
            written.append(folder / f"theory-{name}.png")
            save(make(results[records]), written[-1])
    return written


def draw_recovery(records: list[Recovery]) -> Figure:
    """Share of exact recoveries, rank chosen: kinds by K, contaminated clients by shared rank."""
    from matplotlib import pyplot

    counts = sorted({r.plan.clients for r in records})
    figure, axes = pyplot.subplots(
        len(KINDS), len(counts), figsize=(11, 6.4), layout="constrained", squeeze=False
    )
    for row, kind in zip(axes, KINDS, strict=True):
        for axis, clients in zip(row, counts, strict=True):
            these = [r for r in records if (r.plan.clients, r.plan.kind) == (clients, kind)]
            picture = _map(axis, these)
            axis.set_title(f"{kind}, K = {clients}")
        row[0].set_ylabel("shared rank")
    figure.supxlabel("contaminated clients; black line: predicted breakdown", size=9)
    figure.colorbar(picture, ax=axes, label="share of trials with U and M exact", fraction=0.02)
    return figure


def _map(axis: Axes, records: list[Recovery]) -> Any:
    bad = sorted({r.plan.contaminated for r in records})
    ranks = sorted({r.plan.rank for r in records})
    rates = {(r.plan.rank, r.plan.contaminated): r.rates["chosen"] for r in records}
    grid = np.array([[rates[s, m] for m in bad] for s in ranks])
    picture = axis.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(grid):
        colour = "w" if value > 0.6 else "k"
        axis.text(x, y, f"{value:.1f}", ha="center", va="center", size=7, color=colour)
    axis.set_xticks(range(len(bad)), [str(m) for m in bad])
    axis.set_yticks(range(len(ranks)), [str(s) for s in ranks])
    limit = breakdown(0.75) if records[0].plan.kind == "shift" else 0.5
    below = sum(m / records[0].plan.clients < limit for m in bad)
    axis.axvline(below - 0.5, color="black", lw=1.6)
    return picture


def draw_noise(records: list[Stability]) -> Figure:
    """Error of U over noise, by verdicts for every K, and of the decomposition alone by kind."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 4), sharey=True, layout="constrained"
    )
    random = [s for s in records if s.plan.kind == "random"]
    for s, colour in zip(random, SHADES, strict=False):
        left.loglog(
            s.noises, s.settled[:, 0], "o-", ms=4, color=colour, label=f"K = {s.plan.clients}"
        )
        left.loglog(s.noises, s.predicted, "--", lw=1, color=colour)
    left.set_title("Verdicts' consensus; dashed: predicted")
    chosen = [s for s in records if s.plan.clients == random[len(random) // 2].plan.clients]
    for s, colour in zip(chosen, (BLUE, GREY, ORANGE), strict=False):
        right.loglog(s.noises, s.split[:, 0], "o-", ms=4, color=colour, label=s.plan.kind)
    right.set_title(f"Decomposition alone, K = {chosen[0].plan.clients}")
    left.set_ylabel("error of U (spectral norm)")
    for axis in (left, right):
        axis.set_xlabel("noise, ||E|| over ||M||")
        axis.grid(color="0.92")
        axis.legend(frameon=False)
    return figure


def draw_sets(records: list[Sets]) -> Figure:
    """Rates of exactly recovered sets: above by the decomposition, below by the verdicts."""
    from matplotlib import pyplot

    levels = list(dict.fromkeys((r.plan.kind, r.plan.noise) for r in records))
    figure, axes = pyplot.subplots(
        2, len(levels), figsize=(11, 5.4), sharey=True, layout="constrained", squeeze=False
    )
    for column, (kind, noise) in zip(axes.T, levels, strict=True):
        here = [r for r in records if (r.plan.kind, r.plan.noise) == (kind, noise)]
        for clients, colour in zip(
            dict.fromkeys(r.plan.clients for r in here), SHADES, strict=False
        ):
            these = [r for r in here if r.plan.clients == clients]
            alone = [(r.over_noise, r.members) for r in these if r.verdicts is None]
            judged = [(r.over_update, r.verdicts) for r in these if r.verdicts is not None]
            for axis, points in zip(column, (alone, judged), strict=True):
                axis.plot(
                    *zip(*points, strict=True), "o-", ms=4, color=colour, label=f"K = {clients}"
                )
        column[0].set_title(f"{kind}, noise {noise:g}")
        column[0].axvline(8**0.5, color=ORANGE, lw=1)
        column[0].set_xlabel("||S|| / ||E||")
        column[1].set_xlabel("||S|| / ||benign update||")
    axes[0, 0].set_ylabel("decomposition: exact")
    axes[1, 0].set_ylabel("verdicts: exact")
    axes[1, -1].legend(frameon=False)
    for axis in axes.flat:
        axis.grid(color="0.92")
    return figure


def draw_gain(gains: list[Gain]) -> Figure:
    """Refined error over n for every h, and refined over local error by h for every n."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    ratios = list(dict.fromkeys(g.ratio for g in gains))
    for ratio, colour in zip(
        ratios, pyplot.get_cmap("viridis")(np.linspace(0, 0.85, len(ratios))), strict=True
    ):
        these = [g for g in gains if g.ratio == ratio]
        n = [g.clients for g in these]
        left.loglog(
            n,
            np.sqrt([g.refined for g in these]),
            "o",
            ms=4,
            color=colour,
            label=f"h = {ratio:g} sigma",
        )
        left.loglog(n, np.sqrt([g.predicted for g in these]), "-", lw=1, color=colour)
    left.axhline(1, color=ORANGE, lw=1, ls="--", label="local adapter")
    left.set_xlabel("benign clients")
    left.set_ylabel("off-subspace error / sigma")
    left.set_title("Refined error; lines: predicted")
    for n, colour in zip((2, 8, 64), SHADES, strict=False):
        these = [g for g in gains if g.clients == n]
        if these:
            ratio = [g.ratio for g in these]
            right.plot(
                ratio,
                [(g.refined / g.local) ** 0.5 for g in these],
                "o-",
                ms=4,
                color=colour,
                label=f"n = {n}",
            )
    right.axhline(1, color=ORANGE, lw=1, ls="--")
    right.axvline(1, color=ORANGE, lw=1, ls="--")
    right.set_xlabel("h / sigma")
    right.set_ylabel("refined over local error")
    right.set_title("Where the local adapter wins")
    for axis in (left, right):
        axis.grid(color="0.92")
        axis.legend(frameon=False, fontsize=8)
    return figure
