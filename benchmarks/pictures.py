"""Pictures of detection.py's results: scores by kind, clair beside the field, recall by dose.

python -m benchmarks.pictures benchmarks/results/detection-full.json

Draws beside the file. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measures import (
    CONVICTED,
    INITS,
    TRAINED,
    Row,
    compared_groups,
    from_init,
    judgements,
    of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRONG = ("random", "cipher", "common-cipher", "reverse", "other-task")
KINDS = (
    *("clean", "clean, controls", "few", "many", "short"),
    *(*STRONG, "corrupt-50", "corrupt-20", "backdoor-30", "backdoor-10"),
    *("planted strong", "planted medium", "planted weak", "copies"),
)
HONEST = KINDS[:5]
BLUE, ORANGE, GREY = "#3b6fb6", "#d1661a", "#7a7a7a"
COLOURS = dict(zip(INITS, (BLUE, ORANGE), strict=True))
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def draw(doc: Row, path: Path) -> list[Path]:
    """The pictures of a document beside its file: `detection-full.json`, `detection-scores.png`."""
    import matplotlib

    matplotlib.use("Agg")
    stem = path.stem.replace("-full", "")
    pictures = {"scores": scores, "field": field, "dose": dose}
    written = []
    with matplotlib.rc_context(STYLE):
        for name, picture in pictures.items():
            written.append(path.with_name(f"{stem}-{name}.png"))
            save(picture(doc), written[-1])
    return written


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, so that it stays small."""
    from matplotlib import pyplot
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    pyplot.close(figure)
    Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def scores(doc: Row) -> Figure:
    """clair's score of every client, a row for each kind, one panel for each init."""
    from matplotlib import pyplot

    kinds = [k for k in KINDS if any(kind == k for kind, _, _ in clients(doc["rows"]))]
    figure, axes = pyplot.subplots(
        1, 2, figsize=(11, 0.9 + 0.33 * len(kinds)), sharey=True, layout="constrained"
    )
    for axis, init in zip(axes, INITS, strict=True):
        strips(axis, kinds, list(clients(from_init(doc["rows"], init))))
        for at, name in ((doc["suspicious"], "suspicious"), (doc["limit"], "contaminated")):
            axis.axvline(at, color="black", lw=0.8, ls="--" if name == "suspicious" else "-")
        axis.text(doc["suspicious"], -0.7, "suspicious ", ha="right", size=8)
        axis.text(doc["limit"], -0.7, " contaminated", size=8)
        axis.set_title(f"{init} init", pad=16)
        axis.set_xlabel("score (linear up to 3, then logarithmic)")
    axes[0].set_yticks(range(len(kinds)), kinds)
    axes[0].set_ylim(len(kinds) - 0.5, -0.6)
    return figure


def strips(axis: Axes, kinds: list[str], said: list[tuple[str, str | None, float]]) -> None:
    """A dot for each client, a bar at the median, and on the right how many are convicted."""
    draws = np.random.default_rng(0)
    for row, kind in enumerate(kinds):
        points = np.array([points for k, _, points in said if k == kind])
        if not points.size:
            continue
        colour = BLUE if kind in HONEST else ORANGE
        heights = row + draws.uniform(-0.3, 0.3, points.size)
        axis.scatter(points, heights, s=5, color=colour, alpha=0.35, lw=0, rasterized=True)
        axis.plot(2 * [np.median(points)], [row - 0.38, row + 0.38], color="black", lw=1.6)
        convicted = np.mean([v in CONVICTED for k, v, _ in said if k == kind])
        axis.text(1.01, row, f"{convicted:.1%}", transform=axis.get_yaxis_transform(), va="center")
    axis.set_xscale("symlog", linthresh=3, linscale=1.5)
    axis.set_xlim(-0.1, 130)
    axis.set_xticks([0, 1, 2, 3, 10, 30, 100], ["0", "1", "2", "3", "10", "30", "100"])
    axis.text(1.01, -0.7, "convicted", transform=axis.get_yaxis_transform(), size=8)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)


def clients(rows: list[Row]) -> Iterator[tuple[str, str | None, float]]:
    """Kind, verdict and score of every client, those of cohorts without a majority left out."""
    for row in rows:
        if row["group"] not in ("few", "majority"):
            for kind, bad, verdict, points, _ in row["clients"]:
                if row["attack"]:
                    kind = row["group"] if bad else kind
                elif kind == "clean" and row["group"] == "controls":
                    kind = "clean, controls"
                yield kind, verdict, 100.0 if verdict == "broken" else points or 0.0


def field(doc: Row) -> Figure:
    """Exact-set recovery of clair and of every rule, on every group with contaminated clients."""
    from matplotlib import pyplot

    honest = ("clean", "controls", "majority")
    groups = [g for g in compared_groups(doc) if g not in honest]
    names = ["clair", *(j["name"] for j in doc["judges"])]
    said = {g: judgements(doc, g) for g in groups}
    table = np.array(
        [[np.nan if said[g][n][1] is None else said[g][n][1] for g in groups] for n in names]
    )
    figure, axis = pyplot.subplots(
        figsize=(3 + 0.85 * len(groups), 1.3 + 0.27 * len(names)), layout="constrained"
    )
    picture = axis.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        weight = "bold" if y == 0 else "normal"
        axis.text(
            x, y, text, ha="center", va="center", weight=weight, color="w" if value > 0.6 else "k"
        )
    labels = ["clair", *(j["name"] + " *" * j["told"] for j in doc["judges"])]
    axis.set_yticks(range(len(names)), labels)
    axis.set_xticks(range(len(groups)), [g.replace(" ", "\n") for g in groups])
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)
    for above in (0.5, 0.5 + (len(names) - 1) / 2):  # clair, and the two views of the peers
        axis.axhline(above, color="w", lw=4)
    axis.set_xlabel("* is told how many clients are contaminated")
    figure.colorbar(picture, label="share of cohorts with the exact set", fraction=0.03)
    return figure


def dose(doc: Row) -> Figure:
    """Share of contaminated clients found, by how much is poisoned and by how much data there is."""
    from matplotlib import pyplot

    rows = of(doc["rows"], *TRAINED)
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    steps = {
        "of the labels corrupted": {20: "corrupt-20", 50: "corrupt-50", 100: "random"},
        "of the samples with a backdoor": {10: "backdoor-10", 30: "backdoor-30"},
    }
    for axis, (name, kinds) in zip(axes, steps.items(), strict=False):
        for init in INITS:
            by_pool = [recalls(these, kinds) for these in pools(from_init(rows, init))]
            curve(axis, recalls(from_init(rows, init), kinds), COLOURS[init], f"{init} init")
            for each in by_pool:
                axis.plot(*zip(*each.items(), strict=True), ".", color=COLOURS[init], alpha=0.3)
        axis.set_xlabel(f"% {name}")
        axis.set_xticks(list(kinds))
        axis.set_title(name.rpartition(" ")[2].capitalize())
        axis.legend(frameon=False, title="dots: single pools", loc="lower right")
    against_samples(axes[2], rows)
    axes[0].set_ylabel("contaminated clients found")
    axes[0].set_ylim(-0.03, 1.03)
    for axis in axes:
        axis.grid(color="0.92")
    return figure


def against_samples(axis: Axes, rows: list[Row]) -> None:
    """Recall of three kinds of contamination by the samples of a client, per init."""
    sizes = sorted({r["samples"] for r in rows})
    kinds = {"strong": STRONG, "corrupt-50": ("corrupt-50",), "backdoor-30": ("backdoor-30",)}
    for (name, labels), ls in zip(kinds.items(), ("-", "--", ":"), strict=True):
        for init in INITS:
            found = {
                n: value
                for n in sizes
                for value in [
                    recall([r for r in from_init(rows, init) if r["samples"] == n], labels)
                ]
                if value is not None
            }
            curve(axis, found, COLOURS[init], f"{name}, {init}", ls)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(n) for n in sizes], rotation=45)
    axis.minorticks_off()
    axis.set_xlabel("training samples of a client")
    axis.set_title("By data")
    axis.legend(frameon=False, fontsize=7, ncols=2, loc="lower right", handlelength=2.5)


def curve(axis: Axes, found: dict[int, float], colour: str, label: str, ls: str = "-") -> None:
    """A line with markers."""
    axis.plot(list(found), list(found.values()), marker="o", ms=4, color=colour, ls=ls, label=label)


def pools(rows: list[Row]) -> list[list[Row]]:
    """The rows of each pool."""
    return [
        [r for r in rows if r["pool"] == name] for name in dict.fromkeys(r["pool"] for r in rows)
    ]


def recalls(rows: list[Row], kinds: dict[int, str]) -> dict[int, float]:
    """Dose -> recall of its kind, where there are such clients."""
    found = {at: recall(rows, (kind,)) for at, kind in kinds.items()}
    return {at: value for at, value in found.items() if value is not None}


def recall(rows: list[Row], kinds: tuple[str, ...]) -> float | None:
    """How many clients of these kinds are convicted."""
    said = [c[2] in CONVICTED for r in rows for c in r["clients"] if c[0] in kinds]
    return float(np.mean(said)) if said else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="detection-full.json or another of detection.py")
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(given.results.read_text())
    print(*draw(results, given.results), sep="\n")


if __name__ == "__main__":
    main()
