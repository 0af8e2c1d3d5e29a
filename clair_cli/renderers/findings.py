"""What a report finds, as tools for findings take it: one per client and code, with a file each."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clair_cli.reasons import SEVERITIES, Severity, Standing
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import numbers
from clair_cli.report import Reason, Report, Verdict, is_note, over_rounds

WORST_FIRST: tuple[Standing, ...] = (
    "no verdict",
    "contaminated",
    "broken",
    "minority",
    "suspicious",
)
"""The order of findings; a client of another verdict has none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One code of one client, or of all of them where `client` is None.

    `head` says who is found to be what, and `text` why, both on one line. `place` is a path with
    slashes, relative where the report's is.
    """

    client: str | None
    code: str
    standing: Standing
    head: str
    text: str
    place: str
    accepted: str | None = None
    """Why somebody has accepted it, on one line."""

    @property
    def message(self) -> str:
        """The whole sentence."""
        return f"{self.head}: {self.text}"

    @property
    def severity(self) -> Severity:
        """In the words that such tools share."""
        return SEVERITIES[self.standing]

    @property
    def fingerprint(self) -> str:
        """The same for the same client and code, whatever the score, the time and the folder."""
        text = f"{self.code}\0{'' if self.client is None else self.client}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def findings(report: Report) -> list[Finding]:
    """Every finding, worst first, then in the order of the clients."""
    where = places(report)
    found = [f for c in over_rounds(report) if c.verdict for f in _of_client(c, where[c.client])]
    found += _of_all(report)
    return sorted(found, key=lambda f: WORST_FIRST.index(f.standing))


def notes(report: Report) -> list[tuple[str | None, Reason]]:
    """What changes no verdict: remarks on all clients (None), and notes on single ones."""
    remarks = report.population.findings[: -1 if report.status == "no_verdict" else None]
    found: list[tuple[str | None, Reason]] = [(None, r) for r in remarks]
    return found + [(c.client, r) for c in over_rounds(report) for r in c.reasons if is_note(c, r)]


def _of_client(client: Verdict, place: str) -> Iterator[Finding]:
    if client.verdict is None or client.verdict not in WORST_FIRST:
        return
    why = safe_text(client.accepted.reason) if client.accepted else None
    said: dict[str, list[str]] = {}
    for reason in client.reasons:
        if not is_note(client, reason):
            said.setdefault(reason.code, []).append(reason.message)
    measured = f" ({found})" if (found := numbers(client)) else ""
    for code, messages in (said or {client.verdict: ["no reason given"]}).items():
        head = f"{safe_text(client.client)} is {client.verdict}{measured}"
        text = "; ".join(map(safe_text, messages))
        yield Finding(client.client, code, client.verdict, head, text, place, why)


def _of_all(report: Report) -> Iterator[Finding]:
    """Why there is no verdict, so that a run without one does not look like a run without findings."""
    if report.status == "no_verdict":
        last = report.population.findings[-1:]
        code, text = (last[0].code, safe_text(last[0].message)) if last else ("no verdict", "")
        why = text or "no reason given"
        yield Finding(None, code, "no verdict", "no verdict", why, root(report))


# --- where a client lies


def root(report: Report) -> str:
    """The folder of clients, as the report names it."""
    return posixpath.normpath(str(report.inputs.get("root") or "."))


def places(report: Report) -> dict[str, str]:
    """Client -> the path of its first file; of its folder, where no file was read."""
    listed = {str(c.get("id")): c for c in report.inputs.get("clients") or ()}
    folder = root(report)
    return {c.client: _place(c.client, listed.get(c.client, {}), folder) for c in report.clients}


def _place(client: str, listed: Mapping[str, Any], folder: str) -> str:
    if found := listed.get("path"):
        return str(found)
    if "/" in client or client in ("", ".", ".."):  # no name of a folder: a report made by hand
        return folder
    names = [str(f.get("name")) for f in listed.get("files") or ()]
    first = names[0] if names else ""
    flat = first in (client, f"{client}{posixpath.splitext(first)[1]}")
    return posixpath.normpath(posixpath.join(folder, first if flat else f"{client}/{first}"))
