"""The page of a trend: a row for each client that stood out, a column for each round."""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.renderers.page.looks import LOOKS, Look, number, short
from clair_cli.renderers.page.trend import Trend as Plot
from clair_cli.renderers.page.trend import drawn
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.text import verdict_line
from clair_cli.renderers.trend import ARROWS, told
from clair_cli.renderers.words import many
from clair_cli.report import Report
from clair_cli.trend import Cell, Course, Trend

MOST = 500
"""Clients that have a row."""


@dataclass(frozen=True, slots=True)
class Square:
    """One client in one round; `look` is None where it took no part."""

    look: Look | None
    score: str
    arrow: str
    convicted: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One client over the rounds."""

    client: str
    short: str
    cells: tuple[Square, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that the page says, safe to show; `look` colours it."""

    title: str
    look: Look
    gate: str
    rounds: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: str
    told: tuple[str, ...]
    plot: Plot


def sheet(trend: Trend, last: Report) -> Sheet:
    """The page of a trend, whose last report is `last`."""
    shown = [c for c in trend.clients if c.stood_out]
    count = many(len(trend.rounds), "round")
    rest = len(trend.clients) - len(shown[:MOST])
    fine = {0: LOOKS["benign"], 1: LOOKS["contaminated"]}
    return Sheet(
        f"{many(len(trend.clients), 'client')} over {count}, {len(shown)} of them stood out",
        fine.get(last.exit_code, LOOKS[None]),
        verdict_line(last),
        tuple(str(r.position) for r in trend.rounds),
        tuple(map(_row, shown[:MOST])),
        f"{many(rest, 'client')} without a row" if rest else "",
        tuple(told(trend)),
        drawn(trend),
    )


def _row(course: Course) -> Row:
    cells = tuple(map(_square, course.cells))
    return Row(safe_text(course.client), short(course.client), cells)


def _square(cell: Cell | None) -> Square:
    if cell is None:
        return Square(None, "", "", False)
    arrow = ARROWS[cell.arrow].strip()
    return Square(LOOKS[cell.verdict], number(cell.score), arrow, cell.convicted)
