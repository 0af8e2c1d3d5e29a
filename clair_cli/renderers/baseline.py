"""What differs from an earlier report, in sentences: which findings are new, known, or gone."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import few, many
from clair_cli.report import Compared, Report


def sentences(report: Report, verbose: bool) -> list[str]:
    """A line on the whole, and one for each state that there is; `verbose` gives all names."""
    found = report.baseline
    if found is None:
        return []
    states = {s: [c for c in found.clients if c.state == s] for s in ("new", "known", "gone")}
    counts = ", ".join(f"{len(clients)} {state}" for state, clients in states.items())
    silent = "; it has no verdict" if found.status == "no_verdict" else ""
    lines = [f"against the baseline of {safe_text(found.started_at)}: {counts}{silent}"]
    lines += [
        f"{state}: {_names([_said(c) for c in clients], verbose)}"
        for state, clients in states.items()
        if clients
    ]
    if same := sum(c.unchanged for c in states["known"]):
        lines.append(f"of those known, {many(same, 'client')} with the very same files")
    return lines


def _names(said: Sequence[str], verbose: bool) -> str:
    return ", ".join(said) if verbose else few(said)


def _said(one: Compared) -> str:
    """The client, and from what to what its verdict changed."""
    name = safe_text(one.client)
    if one.state == "gone":
        now = f"now {one.verdict}" if one.verdict else "no longer there"
        return f"{name} (was {one.was}, {now})"
    if one.was == one.verdict:
        return f"{name} ({one.verdict})"
    return f"{name} ({one.verdict}, {f'was {one.was}' if one.was else 'was not there'})"
