"""Rounds side by side: a table for a person, JSON, or a row of CSV for each client and round."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise

from clair_cli._version import __version__
from clair_cli.records import encode
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.tables import cell as spreadsheet_cell
from clair_cli.renderers.words import aligned, few, many
from clair_cli.trend import Cell, Course, Trend

ARROWS = {"up": "\u2191", "down": "\u2193", "level": " ", None: " "}
"""A score that went up, down, or neither."""
LETTERS = {
    "contaminated": "C",
    "broken": "B",
    "minority": "M",
    "suspicious": "S",
    "benign": "",
    None: "?",
}
LEGEND = (
    "C contaminated, B broken, M of a minority, S suspicious, no letter benign, ? no verdict, - not "
    "there, ! convicted over the rounds"
)
COLUMNS = ("round", "folder", "started_at", "id", "verdict", "score", "arrow", "convicted")
"""Of the CSV."""
HEAD = {"schema_version": "1.0", "tool": {"name": "clair", "version": __version__}}


def as_text(trend: Trend, verbose: bool = False, width: int | None = None) -> str:
    """Clients that stood out in some round, or with `verbose` all, by round; then who turned.

    A terminal of `width` columns shows as many of the last rounds as it has room for.
    """
    count = len(trend.rounds)
    lines = [f"{many(count, 'round')} in the order given, {many(len(trend.clients), 'client')}"]
    shown = [c for c in trend.clients if verbose or c.stood_out]
    if shown:
        rows = [(c.client, [*map(_cell, c.cells)]) for c in shown]
        first = _first_shown(rows, width)
        head = ("client", *(str(r.position) for r in trend.rounds[first:]))
        body = [(name, *cells[first:]) for name, cells in rows]
        lines += ["", *aligned([head, *body], right=range(1, count - first + 1)), "", LEGEND]
        if first:
            lines.append(f"rounds 1 to {first} are not shown: the terminal has no room for them")
    quiet = len(trend.clients) - sum(c.stood_out for c in trend.clients)
    lines.append(f"{many(quiet, 'client')} stood out in no round")
    lines += ["", *told(trend)]
    return "".join(f"{line}\n" for line in lines)


def _first_shown(rows: list[tuple[str, list[str]]], width: int | None) -> int:
    """The number of rounds that a terminal has no room for."""
    count = len(rows[0][1])
    if width is None:
        return 0
    left = width - 2 - max(len(safe_text(name)) for name, _ in rows)
    for k in reversed(range(count)):
        left -= 2 + max(len(str(k + 1)), *(len(cells[k]) for _, cells in rows))
        if left < 0:
            return min(k + 1, count - 1)
    return 0


def _cell(cell: Cell | None) -> str:
    """C 7.5 and an arrow."""
    if cell is None:
        return "- "
    score = "" if cell.score is None else f"{cell.score:.1f}"
    return f"{'!' * cell.convicted}{LETTERS[cell.verdict]}{score}{ARROWS[cell.arrow]}"


def told(trend: Trend) -> list[str]:
    """Sentences: who turned, and who came and went in which round; safe to print."""
    lines = [
        f"round {t.round}: {safe_text(t.client)} turned from {t.was} to {t.now}"
        for t in trend.turned
    ]
    for found in trend.rounds:
        for names, word in ((found.came, "came"), (found.went, "went")):
            if names:
                lines.append(f"round {found.position}: {few([*map(safe_text, names)])} {word}")
    lines.sort(key=lambda line: int(line.split(":")[0].split()[1]))
    backwards = [
        str(later.position)
        for first, later in pairwise(trend.rounds)
        if later.started_at < first.started_at
    ]
    if backwards:
        text = "made before the report that is given before it; give them oldest first"
        lines.append(f"round {', '.join(backwards)}: {text}")
    silent = [str(r.position) for r in trend.rounds if r.status == "no_verdict"]
    lines += [f"no verdict in round {', '.join(silent)}"] if silent else []
    return lines or ["nobody turned, came or went"]


def as_json(trend: Trend) -> str:
    """One JSON document: the rounds, every client with a cell for each, and who turned."""
    return json.dumps(HEAD | encode(trend), indent=1, allow_nan=False) + "\n"


def as_csv(trend: Trend) -> str:
    """RFC 4180: a row for each client and round that it took part in."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for course in trend.clients:
        for row in _rows(course, trend):
            writer.writerow([spreadsheet_cell(value) for value in row])
    return out.getvalue()


def _rows(course: Course, trend: Trend) -> Iterator[tuple[object, ...]]:
    for found, c in zip(trend.rounds, course.cells, strict=True):
        if c is not None:
            where = (found.position, found.folder, found.started_at, course.client)
            score = None if c.score is None else float(f"{c.score:.9g}")
            yield (*where, c.verdict, score, c.arrow, c.convicted)
