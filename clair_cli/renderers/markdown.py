"""The report as Markdown, for the summary of a job: who was found, why, and the bottom line."""

from __future__ import annotations

import re

from clair_cli.renderers.clients import ORDER
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.text import accounted, headline, verdict_line
from clair_cli.renderers.words import many
from clair_cli.report import Report, Verdict

MOST = 200
"""Clients that are listed. GitHub shows a summary of at most 1 MiB, all steps of a job together."""
SPECIAL = re.compile(r"[`*_\[\]#!~:$.()\-+=^{}]")
"""What Markdown, or GitHub's, makes something of; a backslash takes that away."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "@": "&#64;"}
"""What would be read before backslashes are: by tables, by HTML, by who looks for mentions."""


def render(report: Report) -> str:
    """A heading with the bottom line, a table of all but the benign, and what else there is to say."""
    lines = [f"## clair: {escaped(verdict_line(report))}", "", escaped(headline(report)), ""]
    found = [c for c in report.clients if c.verdict != "benign"]
    found.sort(key=lambda c: (ORDER.index(c.verdict) if c.verdict else -1, -(c.score or 0)))
    if found:
        lines += ["| verdict | client | score | limit | why |", "|---|---|--:|--:|---|"]
        lines += [_row(client) for client in found[:MOST]]
        lines.append("")
    if len(found) > MOST:
        lines += [f"and {len(found) - MOST} more", ""]
    lines += [f"- {escaped(f'{r.code} {r.message}')}" for r in report.population.findings[:MOST]]
    if report.population.findings:
        lines.append("")
    if refined := {c.client for c in report.refinement.clients} if report.refinement else set():
        lines += [f"Refined: {many(len(refined), 'client')}", ""]
    return "\n".join([*lines, escaped(accounted(report)), ""])


def _row(client: Verdict) -> str:
    score = "" if client.score is None else f"{client.score:.1f}"
    limit = "" if client.limit is None else f"{client.limit:.1f}"
    why = "<br>".join(escaped(f"{r.code} {r.message}") for r in client.reasons)
    cells = (client.verdict or "no verdict", escaped(client.client), score, limit, why)
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line and at most 512 characters of it."""
    shown = safe_text(text)
    return "".join(ENTITIES.get(c) or SPECIAL.sub(r"\\\g<0>", c) for c in shown)
