"""Several rounds: counts of each, and the scores of whoever stood out in one of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from clair_cli.renderers.page.looks import LOOKS, Look, along, look, number, short
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, Verdict

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
    if len(reports) < 2:
        return None
    ids = dict.fromkeys(c.client for r in reversed(reports) for c in r.clients)
    by_name = [{c.client: c for c in r.clients} for r in reports]
    lines = [_line(client, by_name) for client in ids]
    drawn = [line for line in lines if line is not None]
    odd = sorted((found for found in drawn if found.odd), key=lambda f: f.points[-1].y)[:LINES]
    verdicts = tuple(
        w for w in LOOKS.values() if any(look(c) is w for r in reports for c in r.clients)
    )
    limit = float(reports[-1].settings["limit"])
    return Trend(
        verdicts,
        tuple(_round(k, r, verdicts) for k, r in enumerate(reports, start=1)),
        _apart(odd),
        len(drawn) - len(odd),
        tuple((_x(k, len(reports)), str(k + 1)) for k in range(len(reports))),
        tuple((_y(t), f"{t:g}") for t in (0.1, 1.0, 10.0, 100.0)),
        _y(limit),
        HEIGHT,
    )


def _round(position: int, report: Report, verdicts: tuple[Look, ...]) -> Round:
    root = str(report.inputs.get("root", "")).rstrip("/").rpartition("/")[2]
    consensus = report.population.consensus
    return Round(
        f"{position}: {short(root)}" if root else str(position),
        safe_text(str(report.run.get("started_at", "")))[:16].replace("T", " "),
        report.status,
        tuple(sum(look(c) is w for c in report.clients) for w in verdicts),
        number(consensus.agreement, 2) if consensus else "\u2013",
    )


def _line(client: str, reports: list[dict[str, Verdict]]) -> Line | None:
    """The points of one client where it has a score; `odd` says in how many rounds it stood out."""
    points, odd = [], 0
    for k, report in enumerate(reports):
        said = report.get(client)
        if said is not None and said.score is not None:
            text = f"round {k + 1}: {number(said.score)}, {look(said).word}"
            points.append(Point(_x(k, len(reports)), _y(said.score), look(said), text))
            odd += said.verdict not in ("benign", None)
    if not points:
        return None
    pairs = tuple(pairwise(points))
    told = f"{odd} of {len(reports)} rounds" if odd else ""
    return Line(safe_text(client), short(client), tuple(points), pairs, told, points[-1].y)


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
    return round(6 + 66 * position / (count - 1), 2)


def _y(score: float) -> float:
    return round(10 + (HEIGHT - 30) * (1 - (along(score) - 2) / 96), 1)
