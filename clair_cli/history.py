"""Evidence over rounds: what every round says of a client, multiplied up until it convicts.

A round's factor is an e-value: over the rounds of an honest client its mean is at most 1, whatever
came before. The evidence sums, over the round in which a client may have turned, the product of all
factors since, weighed so that the weights of a year are at most 1. By Doob's inequality the chance that
an honest client's evidence ever reaches 1 / alpha within its first year is at most alpha, and half of
that in every further year: the detector of Shiryaev and Roberts, with a head start, on e-values as in
Shin, Ramdas and Rinaldo, "E-detectors" (2023). Good rounds are no credit: the evidence stays near its
next weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from clair_cli import ledger
from clair_cli._version import __version__
from clair_cli.constants import Constants, constant
from clair_cli.ledger import Entry, Ledger, Line
from clair_cli.rarity import digest, table
from clair_cli.report import History, Reason, Report, Standing, Verdict

CODE = "CLR215"
MEASURED = "benchmarks/results/history.md, seeds for setting"
SILENT = ("broken", "minority", None)
"""Verdicts of a round that says nothing of the client alone: of a minority the group is judged."""


@dataclass(frozen=True, slots=True)
class HistoryConstants(Constants):
    """The numbers that convictions over rounds rest on. Every report with a history has them."""

    alpha: float = constant(
        0.01, "share", (1e-6, 0.5), "Of honest clients, convicted in their first year.", "stated"
    )
    year: int = constant(50, "rounds", (2, 10_000), "A year.", "a round a week")
    head_start: float = constant(
        0.5, "share", (0.01, 0.99), "Of alpha, for who is odd from the first round on.", "even odds"
    )
    level: float = constant(
        1.75, "score", (0.1, 10.0), "A round of this score weighs nothing: factor 1.", MEASURED
    )
    doubling: float = constant(
        0.5, "score", (0.01, 10.0), "So much more doubles the factor, less halves it.", MEASURED
    )
    least: float = constant(
        0.5, "factor", (0.01, 0.99), "Of a round, however low its score.", MEASURED
    )
    most: float = constant(
        16.0, "factor", (1.01, 100.0), "Of a round, however high: none convicts alone.", MEASURED
    )
    kept: float = constant(
        16.0, "limits", (1.0, 1e6), "The most evidence that is kept.", "five good rounds clear"
    )

    @property
    def limit(self) -> float:
        """The evidence that convicts."""
        return 1 / self.alpha


HISTORY = HistoryConstants()


def factor(score: float, by: HistoryConstants = HISTORY) -> float:
    """What the evidence is multiplied by after a round of this score."""
    power = min(max((score - by.level) / by.doubling, -60.0), 60.0)
    return float(f"{min(max(2.0**power, by.least), by.most):.6g}")  # as the file will have it


def after(evidence: float, factors: int, by: HistoryConstants, latest: float) -> float:
    """The evidence after one more factor, `latest`, of a client that had `factors` before."""
    weight = by.head_start if not factors else (1 - by.head_start) / (by.year - 1)
    return min(latest * (evidence + weight), by.kept * by.limit)


@dataclass(slots=True)
class _Sum:
    """One client so far."""

    rounds: int = 0
    evidence: float = 0.0


# --- a report and its ledger


def check(path: Path) -> None:
    """Raises UsageError where no round could be added to the file: for before an hour of numbers."""
    ledger.read(path)


def recorded(report: Report, path: Path) -> Report:
    """The report with what the file says after its round was added to it.

    Nothing is added without a verdict, or where every client's files were counted before. Raises
    UsageError where the file is no history, OutputError where it cannot be written.
    """
    with ledger.opened(path) as book:
        torn, line = book.ledger.torn, line_of(report, book.ledger)
        adds = any(e.factor is not None for e in line.clients)
        if adds:
            book.append(line)
        return with_history(report, book.ledger, line if adds else None, torn)


def line_of(report: Report, before: Ledger) -> Line:
    """What the ledger keeps of a round; `previous` is not yet known."""
    files = {str(c["id"]): _digest(c["files"]) for c in report.inputs["clients"] if c["files"]}
    again = _same_round(files, before)
    usable = report.status == "complete"
    entries = tuple(
        Entry(
            c.client,
            files.get(c.client, ""),
            c.verdict,
            c.score,
            _factor(c) if usable and c.client not in again else None,
        )
        for c in report.clients
    )
    started = str(report.run["started_at"])
    return Line("", ledger.KIND, ledger.VERSION, started, __version__, table().constants, entries)


def _factor(client: Verdict) -> float | None:
    silent = client.score is None or client.verdict in SILENT
    return None if silent else factor(float(client.score or 0.0))


def _same_round(files: Mapping[str, str], before: Ledger) -> set[str]:
    """The clients whose files were counted in an earlier line that is of this very round.

    That is one that has the same files for half of the clients and more. A client that sends in a new
    round what it sent before is judged anew: else a copy would buy a round that does not count.
    """
    found: set[str] = set()
    for line in before.lines:
        had = {e.client: e.files for e in line.clients if e.files}
        same = {client for client, own in files.items() if had.get(client) == own}
        if same and 2 * len(same) >= len(files):
            found |= same
    return found


def _digest(files: Iterable[Mapping[str, Any]]) -> str:
    said = sorted([str(f["name"]), int(f["size"]), str(f["sha256"])] for f in files)
    return sha256(json.dumps(said).encode()).hexdigest()


def with_history(report: Report, found: Ledger, added: Line | None, torn: int = 0) -> Report:
    """The report with the standing of each of its clients, and a reason where it convicts."""
    sums = _sums(found.lines)
    latest = {e.client: e.factor for e in added.clients} if added is not None else {}
    standings = tuple(
        Standing(c.client, s.rounds, latest.get(c.client), s.evidence, s.evidence >= HISTORY.limit)
        for c in report.clients
        for s in (sums.get(c.client, _Sum()),)
    )
    history = History(
        found.head,
        len(found.lines),
        added is not None,
        torn,
        HISTORY.limit,
        HISTORY.as_dict(),
        standings,
    )
    odd = {s.client: s for s in standings if s.convicted}
    clients = tuple(
        replace(c, reasons=(*c.reasons, _reason(odd[c.client]))) if c.client in odd else c
        for c in report.clients
    )
    return replace(report, history=history, clients=clients)


def _sums(lines: Iterable[Line]) -> dict[str, _Sum]:
    """Every client's rounds and evidence, by the factors that were counted at the time."""
    found: dict[str, _Sum] = {}
    for line in lines:
        for entry in line.clients:
            if entry.factor is not None:
                one = found.setdefault(entry.client, _Sum())
                one.evidence = after(one.evidence, one.rounds, HISTORY, entry.factor)
                one.rounds += 1
    return found


def _reason(standing: Standing) -> Reason:
    text = f"odd over {standing.rounds} rounds: evidence {standing.evidence:.0f}"
    return Reason(CODE, f"{text} (limit {HISTORY.limit:.0f})", standing.evidence, HISTORY.limit)


def fits(constants: Constants) -> bool:
    """Whether scores under these constants of detection are those that the factors were set for."""
    return digest(constants) == table().constants
