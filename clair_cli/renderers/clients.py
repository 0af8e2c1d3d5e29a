"""The table of verdicts: a line per client, with its reasons beside it or below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from clair_cli.accepted import Accepted
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import as_high, decision, few, folded, many, percent
from clair_cli.report import Report, Verdict

ACCEPTED = "accepted"
"""What stands for the verdict on a client that somebody has decided about."""
STYLES = {
    "contaminated": "bold red",
    "broken": "bold magenta",
    "minority": "bold cyan",
    "suspicious": "yellow",
    "benign": "green",
    "no verdict": "bold yellow",
    ACCEPTED: "bold blue",
}
ORDER = ("contaminated", "broken", "minority", "suspicious", "benign")
FEW = 3
"""Broken clients of one reason that are listed by name."""
COPY = "CLR205"
"""The code of a client that is a copy of another."""
COPIES = "copies of one adapter: nothing tells which is the original; counted once"
MOST_COPIES = 12
"""Copies of one adapter that are listed by name."""
NARROWEST = 60
"""Columns below which breaking lines would help nobody."""
REASON = " " * 6
"""Indent of a reason that stands below its client."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table: cells that are safe to print, and the reasons that go with them."""

    verdict: str
    client: str
    score: str
    limit: str
    reasons: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What stands in columns of its own."""
        return (self.verdict, self.client, self.score, self.limit)


HEAD = _Row("verdict", "client", "score", "limit", ("why",))


def table(report: Report, verbose: bool, width: int | None) -> list[Text]:
    """The verdicts, worst first; `verbose` gives every client a line, and every reason its code.

    Reasons follow on the client's line, joined by semicolons, so that a line can be searched for. On
    a terminal of `width` columns too narrow for that they stand below it, one a line.
    """
    rows = _rows(report, verbose)
    widths = [max(len(row.cells[i]) for row in (HEAD, *rows)) for i in range(4)]
    flat = [_line(row, widths, "; ".join(row.reasons)) for row in (HEAD, *rows)]
    if width is None or width < NARROWEST or max(map(len, flat)) <= width:
        return flat
    stacked = [_line(replace(HEAD, reasons=()), widths)]
    for row in rows:
        stacked += _stacked(row, widths, width)
    return stacked


def _rows(report: Report, verbose: bool) -> list[_Row]:
    shown = [c for c in report.clients if verbose or c.verdict != "benign"]
    shown.sort(key=lambda c: (c.accepted is not None, *_rank(c)))
    if verbose:
        return [_row(client, coded=True) for client in shown]
    rows = [_row(c[0]) if len(c) == 1 else _set(c) for c in _copied(shown)]
    return _alike(rows) + _benign([c for c in report.clients if c.verdict == "benign"])


def _rank(client: Verdict) -> tuple[int, float]:
    return ORDER.index(client.verdict) if client.verdict else 0, -(client.score or 0)


def _row(client: Verdict, coded: bool = False) -> _Row:
    score = "-" if client.score is None else f"{client.score:.1f}"
    limit = "-" if client.limit is None else f"{client.limit:.1f}"
    decided = [decision(client.accepted, str(client.verdict))] if client.accepted else []
    said = [f"{r.code} {safe_text(r.message)}" for r in client.reasons]
    reasons = [*decided, *(said if coded else (safe_text(r.message) for r in client.reasons))]
    if client.depends_on and client.stability is not None and client.stability < 0.5:
        names = ", ".join(map(safe_text, client.depends_on))
        stable = f"stability {percent(client.stability)}"
        reasons.append(f"would not hold without any one of {names} ({stable})")
    if client.rarity is not None:
        reasons.append(as_high(client.rarity))
    name = safe_text(client.client)
    word = ACCEPTED if client.accepted else client.verdict or "no verdict"
    return _Row(word, name, score, limit, tuple(reasons))


def _copied(clients: list[Verdict]) -> list[list[Verdict]]:
    """The clients in their order, copies of one adapter with one verdict and decision together."""
    copies = {c.client: c for c in clients if any(r.code == COPY for r in c.reasons)}
    first: dict[str, str] = {}
    for client in copies.values():
        near = client.cause.nearest if client.cause else client.client
        ends = {
            _first(first, client.client),
            _first(first, near if near in copies else client.client),
        }
        first |= dict.fromkeys(ends, min(ends))
    sets: dict[tuple[str, str | None, Accepted | None], list[Verdict]] = {}
    for client in clients:
        same = (_first(first, client.client), client.verdict, client.accepted)
        sets.setdefault(same, []).append(client)
    return list(sets.values())


def _first(first: dict[str, str], client: str) -> str:
    """The client that stands for all copies of `client`."""
    while first.get(client, client) != client:
        client = first[client]
    return client


def _set(copies: list[Verdict]) -> _Row:
    """One row for copies of one adapter: what is said of all of them."""
    row = _row(replace(copies[0], reasons=()))
    names = few([safe_text(c.client) for c in copies], MOST_COPIES)
    said = [{r.message for r in c.reasons} for c in copies[1:]]
    common = [r for r in copies[0].reasons if all(r.message in others for others in said)]
    reasons = (COPIES, *(safe_text(r.message) for r in common), *row.reasons)
    scores = sorted(c.score for c in copies if c.score is not None)
    ends = dict.fromkeys(f"{scores[end]:.1f}" for end in (0, -1)) if scores else ["-"]
    name = f"set of {len(copies)}: {names}"
    return replace(row, client=name, score=" - ".join(ends), reasons=reasons)


def _alike(rows: list[_Row]) -> list[_Row]:
    """Many broken clients with the same reasons take one row; -v gives each its own."""
    groups: dict[_Row, list[_Row]] = {}
    for row in rows:
        groups.setdefault(replace(row, client="") if row.verdict == "broken" else row, []).append(
            row
        )
    found: list[_Row] = []
    for alike in groups.values():
        rest = f"{alike[0].client} and {len(alike) - 1} more"
        found += alike if len(alike) <= FEW else [replace(alike[0], client=rest)]
    return found


def _benign(clients: list[Verdict]) -> list[_Row]:
    """One row for all, and one for each note on some of them."""
    if not clients:
        return []
    scores = [c.score for c in clients if c.score is not None]
    span = f"{min(scores):.1f} - {max(scores):.1f}" if scores else "-"
    notes: dict[str, list[str]] = {}
    for client in clients:
        for reason in client.reasons:
            notes.setdefault(safe_text(reason.message), []).append(safe_text(client.client))
    named = [
        _Row("", who[0] if len(who) == 1 else f"{len(who)} of them", "", "", (note,))
        for note, who in notes.items()
    ]
    rarest = max(
        (c for c in clients if c.rarity is not None), key=lambda c: c.score or 0, default=None
    )
    said = as_high(rarest.rarity) if rarest is not None and rarest.rarity is not None else ""
    why = (said + " as the highest" * (len(clients) > 1),) if said else ()
    return [_Row("benign", many(len(clients), "client"), span, "", why), *named]


def _line(row: _Row, widths: Sequence[int], why: str = "") -> Text:
    cells = [
        cell.rjust(w) if i in (2, 3) else cell.ljust(w)
        for i, (cell, w) in enumerate(zip(row.cells, widths, strict=True))
    ]
    line = Text("  ")
    line.append(cells[0], style=STYLES.get(row.verdict, ""))
    line.append("   " + "   ".join([*cells[1:], why]))
    line.rstrip()
    return line


def _stacked(row: _Row, widths: Sequence[int], width: int) -> Iterator[Text]:
    """The client's line, and below it one reason a line; a note on benign ones has no line above."""
    if row.verdict:
        yield _line(row, widths)
    for reason in row.reasons:
        text = reason if row.verdict else f"{row.client}: {reason}"
        yield from map(Text, folded(text, width, REASON))
