"""What the ledger of rounds says, in sentences: whom it convicts, and who is on the way there."""

from __future__ import annotations

from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import FEW, many
from clair_cli.report import Report, Standing, Verdict

NEAR = 0.1
"""Of the limit: evidence from which on a client is named."""


def sentences(report: Report, verbose: bool) -> list[str]:
    """A line on the ledger, one for each client that it convicts, and those that are near it.

    `verbose` names every client.
    """
    found = report.history
    if found is None:
        return []
    added = "this one added" if found.added else "nothing added by this run"
    lines = [f"history: {many(found.lines, 'round')}, {added}; last line {found.head[:16]}"]
    if found.torn:
        left = f"{many(found.torn, 'byte')} of an unfinished line"
        lines.append(f"note: {left} cut off the history: a run was killed as it wrote")
    said = {c.client: c for c in report.clients}
    shown = [s for s in found.clients if verbose or s.evidence >= NEAR * found.limit]
    shown.sort(key=lambda s: -s.evidence)
    whole = len(shown) if verbose else max(FEW, sum(s.convicted for s in shown))
    lines += [_said(s, said.get(s.client), found.limit) for s in shown[:whole]]
    return lines


def _said(one: Standing, client: Verdict | None, limit: float) -> str:
    """The client in this round, and over all of them."""
    name = safe_text(one.client)
    verdict = (client.verdict if client else None) or "no verdict"
    score = f" {client.score:.1f}" if client is not None and client.score is not None else ""
    over = "contaminated" if one.convicted else "not convicted"
    evidence = f"(evidence {one.evidence:.3g}, limit {limit:.0f})"
    return f"{name} {verdict}{score}, over {many(one.rounds, 'round')}: {over} {evidence}"
