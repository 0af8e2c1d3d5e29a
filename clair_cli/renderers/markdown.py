"""The report as Markdown, for the summary of a job: who was found, why, and the bottom line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate

from clair_cli.renderers import history
from clair_cli.renderers.clients import ACCEPTED, ORDER
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.text import accounted, headline, verdict_line
from clair_cli.renderers.words import as_high, decision, many
from clair_cli.report import Report, Verdict, over_rounds

ROOM = 500_000
"""Characters of the table of clients. GitHub shows at most 1 MiB for all that a step says."""
SPECIAL = re.compile(r"[`*_\[\]#!~$]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
"""What Markdown, or GitHub's, makes something of; a backslash takes that away."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "@": "&#64;"}
"""What would be read before backslashes are: by tables, by HTML, by who looks for mentions."""
EITHER = re.compile(f"(?i:{SPECIAL.pattern})|[{re.escape(''.join(ENTITIES))}]")


def render(report: Report) -> str:
    """A heading with the bottom line, a table of all but the benign, and what else there is to say."""
    lines = [f"## clair: {escaped(verdict_line(report))}", "", escaped(headline(report)), ""]
    found = [c for c in over_rounds(report) if c.verdict != "benign"]
    found.sort(key=_rank)
    if found:
        rows = list(_fitting([_row(client) for client in found]))
        lines += ["| verdict | client | score | limit | why |", "|---|---|--:|--:|---|", *rows, ""]
        lines += [f"and {len(found) - len(rows)} more", ""] if len(rows) < len(found) else []
    if remarks := [f"- {escaped(f'{r.code} {r.message}')}" for r in report.population.findings]:
        lines += [*_fitting(remarks), ""]
    if over := [f"- {escaped(line)}" for line in history.sentences(report, verbose=False)]:
        lines += [*_fitting(over), ""]
    if refined := {c.client for c in report.refinement.clients} if report.refinement else set():
        lines += [f"Refined: {many(len(refined), 'client')}", ""]
    return "\n".join([*lines, escaped(accounted(report)), ""])


def _rank(client: Verdict) -> tuple[bool, int, float]:
    verdict = ORDER.index(client.verdict) if client.verdict else -1
    return client.accepted is not None, verdict, -(client.score or 0)


def _row(client: Verdict) -> str:
    score = "" if client.score is None else f"{client.score:.1f}"
    limit = "" if client.limit is None else f"{client.limit:.1f}"
    verdict = client.verdict or "no verdict"
    said = [decision(client.accepted, verdict)] if client.accepted else []
    said += [f"{r.code} {r.message}" for r in client.reasons]
    said += [as_high(client.rarity)] if client.rarity else []
    why = "<br>".join(map(escaped, said))
    cells = (ACCEPTED if client.accepted else verdict, escaped(client.client), score, limit, why)
    return f"| {' | '.join(cells)} |"


def _fitting(lines: list[str]) -> Iterator[str]:
    """The first lines, as many as there is room for."""
    ends = accumulate(len(line) for line in lines)
    return (line for line, end in zip(lines, ends, strict=True) if end <= ROOM)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line and at most 512 characters of it."""
    return EITHER.sub(lambda found: ENTITIES.get(found[0], rf"\{found[0]}"), safe_text(text))
