"""Several rounds: counts of each, and the scores of whoever stood out in one of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from clair_cli import trend as rounds
from clair_cli.renderers.page.looks import LOOKS, Look, along, number, short
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report
from clair_cli.trend import over

LINES = 12
"""Clients whose scores are drawn over the rounds."""
HEIGHT = 220


@dataclass(frozen=True, slots=True)
class Round:
    """One report: its name, when, how many of each verdict, and the usual agreement of its members."""

    name: str
    when: str
    status: str
    counts: tuple[int, ...]
    agreement: str


@dataclass(frozen=True, slots=True)
class Point:
    """One client in one round: x in percent, y in pixels."""

    x: float
    y: float
    look: Look
    said: str


@dataclass(frozen=True, slots=True)
class Line:
    """One client over the rounds; the name stands at (percent, pixels) of its last point."""

    client: str
    short: str
    points: tuple[Point, ...]
    segments: tuple[tuple[Point, Point], ...]
    odd: str
    label_y: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The table and the lines; ticks are (y, text) and (x, text)."""

    verdicts: tuple[Look, ...]
    rounds: tuple[Round, ...]
    lines: tuple[Line, ...]
    others: int
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    limit: float
    height: int


def trend(reports: tuple[Report, ...]) -> Trend | None:
    """The trend over two and more reports."""
    return drawn(over(reports)) if len(reports) > 1 else None


def drawn(found: rounds.Trend) -> Trend:
    """The table and the lines of a trend."""
    count = len(found.rounds)
    lines = [line for c in found.clients if (line := _line(c)) is not None]
    odd = sorted((line for line in lines if line.odd), key=lambda f: f.points[-1].y)[:LINES]
    seen = {c.verdict for one in found.clients for c in one.cells if c is not None}
    verdicts = {name: w for name, w in LOOKS.items() if name in seen}
    return Trend(
        tuple(verdicts.values()),
        tuple(_round(r, [*verdicts]) for r in found.rounds),
        _apart(odd),
        len(lines) - len(odd),
        tuple((_x(k, count), str(k + 1)) for k in range(count)),
        tuple((_y(t), f"{t:g}") for t in (0.1, 1.0, 10.0, 100.0)),
        _y(found.limit),
        HEIGHT,
    )


def _round(found: rounds.Round, verdicts: list[str | None]) -> Round:
    root = found.folder.rstrip("/").rpartition("/")[2]
    without = found.counts["clients"] - sum(n for v, n in found.counts.items() if v != "clients")
    return Round(
        f"{found.position}: {short(root)}" if root else str(found.position),
        safe_text(found.started_at)[:16].replace("T", " "),
        found.status,
        tuple(without if v is None else found.counts[v] for v in verdicts),
        number(found.agreement, 2),
    )


def _line(client: rounds.Course) -> Line | None:
    """The points of one client where it has a score; `odd` says in how many rounds it stood out."""
    points, odd, count = [], 0, len(client.cells)
    for k, cell in enumerate(client.cells):
        if cell is not None and cell.score is not None:
            how = LOOKS[cell.verdict]
            text = f"round {k + 1}: {number(cell.score)}, {how.word}"
            points.append(Point(_x(k, count), _y(cell.score), how, text))
            odd += cell.verdict not in ("benign", None)
    if not points:
        return None
    pairs = tuple(pairwise(points))
    told = f"{odd} of {count} rounds" if odd else ""
    name = client.client
    return Line(safe_text(name), short(name), tuple(points), pairs, told, points[-1].y)


def _apart(lines: list[Line]) -> tuple[Line, ...]:
    """Names a line of text apart, from the top down."""
    found: list[Line] = []
    least = 8.0
    for line in lines:
        at = max(line.label_y, least)
        found.append(
            Line(line.client, line.short, line.points, line.segments, line.odd, round(at, 1))
        )
        least = at + 14
    return tuple(found)


def _x(position: int, count: int) -> float:
    return round(6 + 66 * position / max(count - 1, 1), 2)


def _y(score: float) -> float:
    return round(10 + (HEIGHT - 30) * (1 - (along(score) - 2) / 96), 1)
