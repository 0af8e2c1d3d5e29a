"""The first plot: every client's score beside its limit, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clair_cli.renderers.page.looks import (
    LOOKS,
    Look,
    along,
    look,
    number,
    share,
    short,
    worst_first,
)
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, Verdict

ROWS = 40
"""Clients that have a row of their own; the others are counted in bands."""
BINS = 64
TICKS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
HINGES = 0.5
"""Stability below which a verdict hangs on single other clients."""


@dataclass(frozen=True, slots=True)
class Row:
    """One client: where its dot and its limit are, and the numbers in words."""

    client: str
    name: str
    look: Look
    anchor: str
    dot: float
    limit: float | None
    score: str
    limit_said: str
    stability: str
    hinges: bool


@dataclass(frozen=True, slots=True)
class Band:
    """Clients of one verdict that are only counted: bars (x, width, height), all in percent."""

    look: Look
    count: int
    least: str
    most: str
    bars: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Rows worst first, bands below them, ticks (x, text), and who has no score."""

    rows: tuple[Row, ...]
    bands: tuple[Band, ...]
    ticks: tuple[tuple[float, str], ...]
    limit: float | None
    limit_said: str
    unscored: tuple[str, ...]
    stability_known: bool


def scores(report: Report, anchors: dict[str, str]) -> Scores | None:
    """The plot, None where no client has a score."""
    scored = sorted((c for c in report.clients if c.score is not None), key=worst_first)
    if not scored:
        return None
    every = len(scored) <= ROWS
    single = scored if every else [c for c in scored if c.verdict != "benign"][:ROWS]
    shown = {c.client for c in single}
    rest = [c for c in scored if c.client not in shown]
    limits = sorted(c.limit for c in scored if c.limit is not None)
    usual = limits[len(limits) // 2] if limits else None
    return Scores(
        rows=tuple(_row(c, anchors.get(c.client, "")) for c in single),
        bands=tuple(
            _band(which, [c for c in rest if look(c) is which])
            for which in LOOKS.values()
            if any(look(c) is which for c in rest)
        ),
        ticks=tuple((along(t), f"{t:g}") for t in TICKS),
        limit=None if usual is None else along(usual),
        limit_said=number(usual),
        unscored=tuple(safe_text(c.client) for c in report.clients if c.score is None),
        stability_known=any(c.stability is not None for c in scored),
    )


def _row(client: Verdict, anchor: str) -> Row:
    assert client.score is not None
    return Row(
        safe_text(client.client),
        short(client.client),
        look(client),
        anchor,
        along(client.score),
        None if client.limit is None else along(client.limit),
        number(client.score),
        number(client.limit),
        share(client.stability),
        client.stability is not None and client.stability < HINGES,
    )


def _band(which: Look, clients: Sequence[Verdict]) -> Band:
    values = [c.score or 0.0 for c in clients]
    counts: dict[int, int] = {}
    for value in values:
        place = min(int(along(value) / 100 * BINS), BINS - 1)
        counts[place] = counts.get(place, 0) + 1
    tallest = max(counts.values())
    width = round(100 / BINS, 3)
    bars = tuple(
        (round(100 * b / BINS, 3), round(0.8 * width, 3), round(max(100 * n / tallest, 3), 1))
        for b, n in sorted(counts.items())
    )
    return Band(which, len(clients), number(min(values)), number(max(values)), bars)
