"""Decisions applied to a report: who is accepted, and which entries are expired or unused.

A decision is about the gate alone. It changes no verdict, no mean, and nobody's refinement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, TypeAlias

from clair_cli.accepted import Accept, Acceptance, Accepted
from clair_cli.report import Reason, Report, Verdict, is_note, over_rounds

EXPIRED, UNUSED = "CLR310", "CLR311"
"""The codes of the remarks on entries that do not count."""
Decision: TypeAlias = Accept | Acceptance
"""An entry as it is given, or as a report holds it."""


def accepting(report: Report, entries: Sequence[Decision], today: date) -> Report:
    """The report with decisions in place of those that it holds; gate it anew to have them count.

    Entries on one client count together. The remarks on entries that are expired or unused stand
    before all others, because the last one says why there is no verdict.
    """
    if not entries and not report.acceptance:
        return report
    said = {c.client: c for c in over_rounds(report)}
    files = {str(c.get("id")): c.get("files") or () for c in report.inputs.get("clients") or ()}
    live = [e for e in entries if not _is_over(e, today)]
    valid: dict[str, list[Decision]] = {}
    for entry in live:
        if _misses(entry, said.get(entry.client), files.get(entry.client, ())) is None:
            valid.setdefault(entry.client, []).append(entry)
    clients = tuple(
        replace(c, accepted=_accepted(said[c.client], valid.get(c.client, ())))
        for c in report.clients
    )
    accepted = {c.client: c for c in over_rounds(replace(report, clients=clients))}
    told = tuple(
        _expired(e)
        if _is_over(e, today)
        else _told(e, accepted.get(e.client), files.get(e.client, ()))
        for e in entries
    )
    kept = [r for r in report.population.findings if r.code not in (EXPIRED, UNUSED)]
    population = replace(report.population, findings=(*_remarks(told), *kept))
    return replace(report, clients=clients, population=population, acceptance=told)


def _is_over(entry: Decision, today: date) -> bool:
    return entry.until is not None and today > date.fromisoformat(entry.until)


def _accepted(client: Verdict, valid: Sequence[Decision]) -> Accepted | None:
    """None where a finding on the client has a code that none of its valid entries names."""
    found = _codes(client)
    if not found or not found <= {code for e in valid for code in e.codes}:
        return None
    days = [e.until for e in valid if e.until is not None]
    reasons = "; ".join(dict.fromkeys(e.reason for e in valid))
    return Accepted(tuple(sorted(found)), reasons, min(days, default=None))


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


def _expired(entry: Decision) -> Acceptance:
    return Acceptance(*_fields(entry), "expired")


def _told(
    entry: Decision, client: Verdict | None, files: Sequence[Mapping[str, Any]]
) -> Acceptance:
    """What became of an entry that has not ended."""
    why = _misses(entry, client, files)
    if why is None and client is not None and client.accepted is None:
        why = f"it also has {', '.join(sorted(_codes(client) - set(entry.codes)))}"
    return Acceptance(*_fields(entry), "unused" if why else "accepted", why)


def _fields(entry: Decision) -> tuple[str, tuple[str, ...], str, str | None, tuple[str, ...]]:
    return entry.client, entry.codes, entry.reason, entry.until, entry.sha256


def _remarks(told: Iterable[Acceptance]) -> Iterable[Reason]:
    for one in told:
        what = f"the acceptance of {one.client} ({one.reason})"
        if one.state == "expired":
            yield Reason(EXPIRED, f"{what} ended on {one.until} and does not count")
        elif one.state == "unused":
            yield Reason(UNUSED, f"{what} is not used: {one.why}")
