"""Findings beside the files they are about: workflow commands of GitHub, code quality of GitLab."""

from __future__ import annotations

import json

from clair_cli.reasons import Standing
from clair_cli.renderers.findings import Finding, findings
from clair_cli.renderers.safe import one_line, safe_text
from clair_cli.report import Report, failing

SEVERITY: dict[Standing, str] = {
    "contaminated": "critical",
    "broken": "major",
    "no verdict": "major",
    "minority": "minor",
    "suspicious": "minor",
    "note": "info",
    "remark": "info",
}
"""In GitLab's words."""


def as_github(report: Report) -> str:
    """One workflow command per client: an error where the gate fails on it, else a warning, or a notice
    where it is accepted.

    GitHub shows ten of each per step, so codes of one client share a line.
    """
    failed = {c.client for c in failing(report, str(report.settings.get("fail_on", "never")))}
    clients: dict[str | None, list[Finding]] = {}
    for found in findings(report):
        clients.setdefault(found.client, []).append(found)
    lines = [_command(found, name is None or name in failed) for name, found in clients.items()]
    return "".join(f"{line}\n" for line in lines)


def _command(found: list[Finding], fails: bool) -> str:
    first, codes = found[0], ", ".join(safe_text(f.code) for f in found)
    why = "" if first.accepted is None else f"accepted, {first.accepted}; "
    said = f"{first.head}: {why}{'; '.join(f.text for f in found)}"
    properties = {
        "file": one_line(first.place),
        "line": "1",
        "title": f"clair: {first.standing} ({codes})",
    }
    shown = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    word = "error" if fails else "warning" if first.accepted is None else "notice"
    return f"::{word} {shown}::{_data(said)}"


def _data(text: str) -> str:
    """As the toolkit of GitHub's actions escapes what a command says."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_gitlab(report: Report) -> str:
    """A code quality report: one entry per finding, each with a fingerprint of its own."""
    entries = [
        {
            "description": f.message,
            "check_name": safe_text(f.code),
            "fingerprint": f.fingerprint,
            "severity": SEVERITY[f.standing if f.accepted is None else "note"],
            "location": {"path": one_line(f.place), "lines": {"begin": 1}},
        }
        for f in findings(report)
    ]
    return json.dumps(entries, indent=1) + "\n"
