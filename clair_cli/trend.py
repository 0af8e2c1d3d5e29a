"""Several reports, one a round, side by side: every client in every round, who turned, came and went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clair_cli.errors import UsageError
from clair_cli.records import key
from clair_cli.report import Report, Verdict, VerdictName

STEP = 0.5
"""How much a score moves before that is called up or down: honest clients move by as much."""
FINE = ("benign", "suspicious")
Arrow = Literal["up", "down", "level"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One client in one round. `arrow`: its score against that of the round before that scored it.

    `convicted` says whether the ledger had convicted it by then.
    """

    verdict: VerdictName | None
    score: float | None
    arrow: Arrow | None
    convicted: bool


@dataclass(frozen=True, slots=True)
class Course:
    """One client over the rounds, a cell for each; None where it took no part."""

    client: str = field(metadata=key("id"))
    cells: tuple[Cell | None, ...]

    @property
    def stood_out(self) -> bool:
        """Whether it was more than benign in some round."""
        return any(c and (c.convicted or c.verdict not in ("benign", None)) for c in self.cells)


@dataclass(frozen=True, slots=True)
class Turn:
    """A client that was one of FINE and is not any more in this round, or the other way round.

    In between may lie rounds that say nothing of it.
    """

    client: str = field(metadata=key("id"))
    round: int
    was: VerdictName
    now: VerdictName


@dataclass(frozen=True, slots=True)
class Round:
    """One report. `came` and `went` are against the round before."""

    position: int
    folder: str
    started_at: str
    status: Literal["complete", "no_verdict"]
    counts: Mapping[str, int]
    agreement: float | None
    came: tuple[str, ...]
    went: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trend:
    """All rounds, in the order in which the reports were given, and the clients of all of them.

    Clients are matched by their ids. `limit` is that of the last round's scores.
    """

    rounds: tuple[Round, ...]
    clients: tuple[Course, ...]
    turned: tuple[Turn, ...]
    limit: float


def over(reports: tuple[Report, ...]) -> Trend:
    """The trend over the reports. Raises UsageError where one has a client twice."""
    found = [_by_name(k, r) for k, r in enumerate(reports, start=1)]
    ids = dict.fromkeys(c for clients in reversed(found) for c in clients)
    odd = [
        {s.client for s in r.history.clients if s.convicted} if r.history else () for r in reports
    ]
    courses = tuple(Course(c, _cells([clients.get(c) for clients in found], c, odd)) for c in ids)
    turns = [t for course in courses for t in _turns(course)]
    return Trend(
        tuple(_round(k, r, found) for k, r in enumerate(reports)),
        courses,
        tuple(sorted(turns, key=lambda t: t.round)),
        float(reports[-1].settings["limit"]),
    )


def _by_name(position: int, report: Report) -> dict[str, Verdict]:
    for client, count in Counter(c.client for c in report.clients).items():
        if count > 1:
            raise UsageError(
                f"report {position}: the client {client[:40]!r} is in it {count} times"
            )
    return {c.client: c for c in report.clients}


def _cells(
    said: list[Verdict | None], client: str, convicted: list[set[str] | tuple[()]]
) -> tuple[Cell | None, ...]:
    cells: list[Cell | None] = []
    before: float | None = None
    for verdict, odd in zip(said, convicted, strict=True):
        if verdict is None:
            cells.append(None)
            continue
        cells.append(
            Cell(verdict.verdict, verdict.score, _arrow(before, verdict.score), client in odd)
        )
        before = before if verdict.score is None else verdict.score
    return tuple(cells)


def _arrow(before: float | None, now: float | None) -> Arrow | None:
    if before is None or now is None:
        return None
    moved = now - before
    return "level" if abs(moved) < STEP else "up" if moved > 0 else "down"


def _turns(course: Course) -> list[Turn]:
    found, was = [], None
    for k, cell in enumerate(course.cells, start=1):
        if cell is None or cell.verdict is None:
            continue
        if was is not None and (was in FINE) != (cell.verdict in FINE):
            found.append(Turn(course.client, k, was, cell.verdict))
        was = cell.verdict
    return found


def _round(k: int, report: Report, found: list[dict[str, Verdict]]) -> Round:
    now, before = found[k], found[k - 1] if k else found[k]
    consensus = report.population.consensus
    return Round(
        k + 1,
        str(report.inputs.get("root", "")),
        str(report.run.get("started_at", "")),
        report.status,
        report.counts,
        consensus.agreement if consensus else None,
        tuple(c for c in now if c not in before),
        tuple(c for c in before if c not in now),
    )
