"""Speed and memory against clients, rank, width, threads and a cold cache: tables, a picture, exponents.

python -m benchmarks.speed_curves --work DIR [--out DIR] [--repeat 1] [--ready]

Each point is one run of `speed.measure`, and is kept as a line of DIR/curves.jsonl; what is there is not
measured again, and `--ready` measures nothing. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lines
from benchmarks.speed import WIDTH, make_adapters, measure

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured: adapters of these shapes, read warm or cold, with so many threads."""

    clients: int = 20
    modules: int = 8
    rank: int = 16
    width: int = WIDTH
    threads: int = 1
    cold: bool = False


CURVES: dict[str, tuple[Point, ...]] = {
    "clients": tuple(Point(clients=n) for n in (20, 50, 100, 200)),
    "many clients": tuple(Point(clients=n, modules=2) for n in (200, 500, 1000)),
    "rank": tuple(Point(rank=r) for r in (8, 16, 32, 64, 128)),
    "width": tuple(Point(width=w) for w in (1024, 2048, 4096, 8192)),
    "threads": tuple(Point(clients=50, threads=n) for n in (1, 2)),
    "cold": tuple(Point(clients=50, cold=c) for c in (False, True)),
}
"""By the name of what differs from point to point."""
FIELD = {"many clients": "clients"}
NAMES = ("read", "write", "detect", "refine")
KEPT = "curves.jsonl"
LESS = ("detect", "refine")
"""What start-up is taken off from."""


def seconds(row: Row, name: str, kind: str = "cpu") -> float:
    """Of the processor, or of the clock ("wall"), without start-up."""
    start = row[f"start_{kind}_s"] if name in LESS else 0
    return float(max(row[f"{name}_{kind}_s"] - start, 1e-3))


def exponent(rows: Sequence[Row], field: str, name: str) -> float:
    """Slope of the log of processor seconds over that of the field, by least squares."""
    points = np.log([[r[field], seconds(r, name)] for r in rows])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def table(name: str, rows: Sequence[Row]) -> list[str]:
    """One curve: processor seconds, ratios to the floors, memory, and exponents."""
    field = FIELD.get(name, name)
    head = "floor, s | and writing, s | detect, s | refine, s | detect / floor | refine / both"
    found = [f"| {field} | {head} | detect, GB | refine, GB |", "|---" * 9 + "|"]
    for row in rows:
        cells = [f"{seconds(row, n):.2f}" for n in NAMES]
        cells += [f"{row[f'{n}_cpu_ratio']:.1f}" for n in LESS]
        cells += [f"{row[f'{n}_gb']:.2f}" for n in LESS]
        found.append(f"| {row[field]} | " + " | ".join(cells) + " |")
    if field not in ("cold", "threads") and len(rows) > 1:
        slopes = [f"{exponent(rows, field, n):.2f}" for n in NAMES]
        found.append("| exponent | " + " | ".join(slopes) + " | | | | |")
    return found


def page(found: dict[str, list[Row]]) -> str:
    """All curves as Markdown."""
    text = []
    for name, rows in found.items():
        if rows:
            one = Point(**{k: rows[0][k] for k in asdict(Point())})
            fixed = asdict(one) | {FIELD.get(name, name): "as told"}
            said = ", ".join(f"{k} {v}" for k, v in fixed.items() if k not in ("cold",))
            text += [
                f"### By {name}",
                "",
                f"{said}; processor seconds.",
                "",
                *table(name, rows),
                "",
            ]
    return "\n".join(text)


def drawable(found: dict[str, list[Row]]) -> list[str]:
    """The curves that have a line to draw."""
    return [name for name in ("clients", "many clients", "rank", "width") if len(found[name]) > 1]


def draw(found: dict[str, list[Row]], file: Path) -> bool:
    """Seconds and memory against clients, rank and width, with floors. Whether there are any."""
    from matplotlib.figure import Figure

    drawn = drawable(found)
    if not drawn:
        return False
    figure = Figure(figsize=(3.2 * len(drawn), 5.2), layout="constrained")
    axes = figure.subplots(2, len(drawn), squeeze=False)
    styles = {"read": "k:", "write": "k--", "detect": "C0o-", "refine": "C1s-"}
    said = {"read": "floor", "write": "floor and writing"}
    for column, name in enumerate(drawn):
        field = FIELD.get(name, name)
        rows = found[name]
        time, memory = axes[0][column], axes[1][column]
        for one in NAMES:
            along = [r[field] for r in rows]
            time.loglog(
                along, [seconds(r, one) for r in rows], styles[one], label=said.get(one, one)
            )
            if one in LESS:
                memory.loglog(along, [r[f"{one}_gb"] for r in rows], styles[one])
        time.set_title(f"{rows[0]['modules']} modules, by {field}")
        memory.set_xlabel(field)
        for axis in (time, memory):
            axis.set_xticks(along, list(map(str, along)))
            axis.minorticks_off()
    axes[0][0].set_ylabel("processor, s")
    axes[1][0].set_ylabel("peak memory, GB")
    axes[0][0].legend(fontsize="small")
    figure.savefig(file, dpi=110)
    return True


def ready(work: Path) -> dict[Point, Row]:
    """What is kept, by point."""
    rows = lines.kept(work / KEPT)
    return {Point(**{k: row[k] for k in asdict(Point())}): row for row in rows}


def curves(work: Path) -> dict[str, list[Row]]:
    """What is kept, by curve."""
    known = ready(work)
    return {name: [known[p] for p in points if p in known] for name, points in CURVES.items()}


def measured(point: Point, work: Path, repeat: int) -> Row:
    """One point, on adapters that are made for it and taken away again."""
    given = argparse.Namespace(threads=point.threads, device="cpu", cold=point.cold, repeat=repeat)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        root = Path(scratch) / "adapters"
        make_adapters(root, point.clients, point.modules, point.rank, point.width)
        row = asdict(point) | measure(root, Path(scratch), given)
    return row | {"load": round(os.getloadavg()[0], 1), "machine": platform.machine()}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder of speed-curves.png")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--ready", action="store_true", help="Measure nothing.")
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    known = ready(given.work)
    for point in dict.fromkeys(p for points in CURVES.values() for p in points):
        if point not in known and not given.ready:
            known[point] = measured(point, given.work, given.repeat)
            lines.keep(given.work / KEPT, known[point])
            print(json.dumps(known[point]), flush=True)
    found = curves(given.work)
    print(page(found))
    if given.out:
        draw(found, given.out / "speed-curves.png")


if __name__ == "__main__":
    main()
