"""An earlier report to gate against: which findings are new since, which were known, which are gone.

A finding is a client and its verdict. Codes and numbers of one client change with the company that it
is judged in, and verdicts are what the gate is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from clair_cli.errors import UsageError
from clair_cli.report import (
    MAX_BYTES,
    VERDICTS,
    Baseline,
    Compared,
    Report,
    Verdict,
    VerdictName,
    from_dict,
    over_rounds,
)
from clair_cli.strict_json import parse_object, read_bounded


@dataclass(frozen=True, slots=True)
class Earlier:
    """A report that was read from a file, and the sha256 of its bytes."""

    report: Report
    sha256: str


def read_baseline(path: Path) -> Earlier:
    """The report in the file `path`, which may be anybody's.

    Raises UsageError where there is none, where it breaks the schema, or names a client twice.
    """
    data = read_bounded(path, MAX_BYTES, "--baseline")
    where = f"--baseline {str(path)!r}"
    try:
        report = from_dict(parse_object(data, where, UsageError))
    except UsageError as error:
        said = str(error)
        raise UsageError(said if said.startswith(where) else f"{where}: {said}") from None
    for client, count in Counter(c.client for c in report.clients).items():
        if count > 1:
            raise UsageError(f"{where}: the client {client[:40]!r} is in it {count} times")
    return Earlier(report, sha256(data).hexdigest())


def against(report: Report, earlier: Earlier) -> Report:
    """The report with what differs from an earlier one; gate it anew to have that counted."""
    before = {c.client: c for c in over_rounds(earlier.report)}
    now = {c.client: c for c in over_rounds(report)}
    files, old = _files(report.inputs), _files(earlier.report.inputs)
    found = []
    for client in [*now, *(c for c in before if c not in now)]:
        same = bool(files.get(client)) and files.get(client) == old.get(client)
        if compared := _compared(client, now.get(client), before.get(client), same):
            found.append(compared)
    baseline = Baseline(
        earlier.sha256,
        str(earlier.report.run["started_at"]),
        earlier.report.status,
        tuple(found),
    )
    return replace(report, baseline=baseline)


def _compared(
    client: str, now: Verdict | None, before: Verdict | None, same: bool
) -> Compared | None:
    """None where neither report has a finding on the client, or where this one cannot say."""
    if now is not None and now.verdict is None:
        return None
    verdict, was = (v.verdict if v is not None else None for v in (now, before))
    is_finding, was_finding = (v not in (None, "benign") for v in (verdict, was))
    if not (is_finding or was_finding):
        return None
    state: Literal["new", "known", "gone"] = "gone"
    if verdict is not None and is_finding:
        state = "known" if _covers(was, verdict) else "new"
    return Compared(client, state, verdict, was, same)


def _covers(was: VerdictName | None, now: VerdictName) -> bool:
    """Whether who knew the one verdict knew the other. Of a broken client nobody knew what is in it."""
    if was is None or "broken" in (was, now):
        return was == now
    return VERDICTS.index(was) >= VERDICTS.index(now)


def _files(inputs: Mapping[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Name, size and sha256 of every file of every client."""
    return {
        client["id"]: sorted((f["name"], f["size"], f["sha256"]) for f in client["files"])
        for client in inputs["clients"]
    }
