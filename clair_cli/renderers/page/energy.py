"""How energy spreads over directions, and what refining took from each client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from clair_cli.refined import RefinedClient
from clair_cli.renderers.page.looks import Look, look, number, share, short
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import span
from clair_cli.report import Report, Verdict

BARS = 16
ROWS = 40
"""Refined clients that have a row of their own in the picture; the table has all."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Shares as bars: x, width, height in percent, whether it is among the chosen, and the share."""

    title: str
    said: str
    bars: tuple[tuple[float, float, float, bool, str], ...]
    top: str


@dataclass(frozen=True, slots=True)
class Moved:
    """One refined client: how far from its group's mean before and after, relative to its norm."""

    name: str
    short: str
    anchor: str
    look: Look
    before: float | None
    after: float | None
    before_said: str
    after_said: str
    averaged: str
    averaged_value: float
    change: str
    lost: str
    rank: int
    weight: str
    group: int
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Moves:
    """All refined clients, the first `rows` of them drawn; ticks (x, text) of their axis."""

    clients: tuple[Moved, ...]
    rows: int
    ticks: tuple[tuple[float, str], ...]
    known: bool
    groups: bool


def spectra(report: Report) -> tuple[Bars, ...]:
    """Three bar charts at most: what the report holds of them."""
    found, done = report.population.spectra, report.refinement
    charts = []
    if found is not None and found.updates:
        text = f"{share(found.updates[0])} lies in one combination of the clients: what they share"
        charts.append(_bars("Updates, by combination of clients", text, found.updates, 1))
    differences = found.differences if found is not None else ()
    if not differences and done is not None:
        differences = done.spectrum
    if differences:
        charts.append(
            _bars("Differences from the mean, by combination", _gap(report), differences, 0)
        )
    if chart := _modules(report):
        charts.append(chart)
    return tuple(charts)


def _gap(report: Report) -> str:
    done = report.refinement
    if done is None or done.gap is None:
        return (
            "a steep first bar: the clients come in kinds; a flat row: each differs in its own way"
        )
    return (
        f"largest step: {done.gap:.1f} times, after {done.gap_after}; a step of several times would "
        "say that the clients come in kinds"
    )


def _modules(report: Report) -> Bars | None:
    """The median module's differences, with the usual shared rank marked."""
    modules = [m for m in report.population.modules if m.spectrum]
    if not modules:
        return None
    length = min(len(m.spectrum) for m in modules)
    usual = [median(m.spectrum[k] for m in modules) for k in range(length)]
    ranks = [m.shared_rank for m in report.population.modules]
    text = f"shared rank {span(ranks)} was chosen per module, {median(ranks):g} in the median one"
    title = "Differences from the mean, by direction of a module"
    return _bars(title, text, usual, int(median(ranks)))


def _bars(title: str, said: str, shares: Sequence[float], chosen: int) -> Bars:
    shown = shares[:BARS]
    top = max(shown) or 1.0
    width = 100 / max(len(shown), 6)
    bars = tuple(
        (
            round(k * width, 2),
            round(0.72 * width, 2),
            round(max(100 * (s / top), 0.6), 1),
            k < chosen,
            share(s),
        )
        for k, s in enumerate(shown)
    )
    return Bars(title, said, bars, share(top))


def moves(report: Report, anchors: dict[str, str]) -> Moves | None:
    """What refining did to each client, None where nothing was refined."""
    done = report.refinement
    if done is None or not done.clients:
        return None
    by_name = {c.client: c for c in report.clients}
    strengths = {c.strength for c in done.clients}
    refined = [c for c in done.clients if len(strengths) < 2 or c.strength == done.strength]
    most = min(max((c.deviation or 0.0 for c in refined), default=0.0), 1e6)
    top = max(math.ceil(10 * most) / 10, 0.1)
    verdicts = (by_name.get(c.client, Verdict(c.client, None)) for c in refined)
    clients = [_moved(c, v, anchors, top) for c, v in zip(refined, verdicts, strict=True)]
    clients.sort(key=lambda m: -(m.before or 0))
    return Moves(
        tuple(clients),
        min(len(clients), ROWS),
        tuple((round(2 + 96 * k / 4, 2), f"{top * k / 4:.2g}") for k in range(5)),
        any(c.deviation is not None for c in refined),
        any(c.group for c in refined),
    )


def _moved(client: RefinedClient, verdict: Verdict, anchors: dict[str, str], top: float) -> Moved:
    before, gone = client.deviation, client.averaged_away
    after = None if before is None or gone is None else before * math.sqrt(max(1 - gone, 0.0))
    return Moved(
        name=safe_text(client.client),
        short=short(client.client),
        anchor=anchors.get(client.client, ""),
        look=look(verdict),
        before=None if before is None else round(2 + 96 * before / top, 2),
        after=None if after is None else round(2 + 96 * after / top, 2),
        before_said=number(before, 2),
        after_said=number(after, 2),
        averaged=share(gone),
        averaged_value=gone or 0.0,
        change=share(client.change),
        lost="0 %" if client.truncation_error < 1e-5 else share(client.truncation_error),
        rank=client.rank,
        weight=number(client.weight, 3),
        group=client.group,
        unchanged=client.unchanged,
    )
