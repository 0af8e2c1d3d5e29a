"""Decisions applied to a report: who is accepted, and which entries are expired or unused.

A decision is about the gate alone. It changes no verdict, no mean, and nobody's refinement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, TypeAlias

from clair_cli.accepted import Accept, Acceptance, Accepted
from clair_cli.report import Reason, Report, Verdict, is_note

EXPIRED, UNUSED = "CLR310", "CLR311"
"""The codes of the remarks on entries that do not count."""
Decision: TypeAlias = Accept | Acceptance
"""An entry as it is given, or as a report holds it."""


def accepting(report: Report, entries: Sequence[Decision], today: date) -> Report:
    """The report with decisions in place of those that it holds; gate it anew to have them count.

    Entries on one client count together. The remarks on entries that are expired or unused stand
    before all others, because the last one says why there is no verdict.
    """
    clients = {c.client: c for c in report.clients}
    files = {str(c.get("id")): c.get("files") or () for c in report.inputs.get("clients") or ()}
    live = [e for e in entries if not _is_over(e, today)]
    valid = [e for e in live if not _misses(e, clients.get(e.client), files.get(e.client, ()))]
    accepted = {c.client: found for c in report.clients if (found := _accepted(c, valid))}
    told = tuple(
        _told(e, e in live, clients.get(e.client), files.get(e.client, ()), accepted)
        for e in entries
    )
    kept = [r for r in report.population.findings if r.code not in (EXPIRED, UNUSED)]
    findings = (*_remarks(told), *kept)
    return replace(
        report,
        clients=tuple(replace(c, accepted=accepted.get(c.client)) for c in report.clients),
        population=replace(report.population, findings=findings),
        acceptance=told,
    )


def _is_over(entry: Decision, today: date) -> bool:
    return entry.until is not None and today > date.fromisoformat(entry.until)


def _accepted(client: Verdict, valid: Iterable[Decision]) -> Accepted | None:
    """None where a finding on the client has a code that no valid entry names."""
    found = _codes(client)
    own = [e for e in valid if e.client == client.client and found & set(e.codes)]
    if not found or not found <= {code for e in own for code in e.codes}:
        return None
    days = [e.until for e in own if e.until is not None]
    codes = tuple(sorted({code for e in own for code in e.codes} & found))
    reasons = "; ".join(dict.fromkeys(e.reason for e in own))
    return Accepted(codes, reasons, min(days, default=None))


def _codes(client: Verdict) -> set[str]:
    """The codes that made the client what it is; none where there is nothing to accept."""
    return {r.code for r in client.reasons if not is_note(client, r)}


def _misses(
    entry: Decision, client: Verdict | None, files: Sequence[Mapping[str, Any]]
) -> str | None:
    """Why an entry cannot count, whatever other entries say; None where it can."""
    if client is None:
        return "there is no such client"
    if client.verdict is None:
        return "it has no verdict"
    if client.verdict == "benign":
        return "it is benign"
    found = _codes(client)
    if not found & set(entry.codes):
        return f"it has {', '.join(sorted(found)) or 'no code'}"
    if entry.sha256 and not _same_files(set(entry.sha256), files):
        return "it has sent other files"
    return None


def _same_files(hashes: set[str], files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every hash is of a file of the client, and every file but .json ones has a hash here."""
    all_of_them = {f["sha256"] for f in files}
    weights = {f["sha256"] for f in files if not str(f["name"]).endswith(".json")}
    return hashes <= all_of_them and weights <= hashes


def _told(
    entry: Decision,
    live: bool,
    client: Verdict | None,
    files: Sequence[Mapping[str, Any]],
    accepted: Mapping[str, Accepted],
) -> Acceptance:
    """What became of one entry."""
    own = (entry.client, entry.codes, entry.reason, entry.until, entry.sha256)
    if not live:
        return Acceptance(*own, "expired")
    why = _misses(entry, client, files)
    if why is None and client is not None and entry.client not in accepted:
        why = f"it also has {', '.join(sorted(_codes(client) - set(entry.codes)))}"
    return Acceptance(*own, "unused", why) if why else Acceptance(*own, "accepted")


def _remarks(told: Iterable[Acceptance]) -> Iterable[Reason]:
    for one in told:
        what = f"the acceptance of {one.client} ({one.reason})"
        if one.state == "expired":
            yield Reason(EXPIRED, f"{what} ended on {one.until} and does not count")
        elif one.state == "unused":
            yield Reason(UNUSED, f"{what} is not used: {one.why}")
