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
    """One workflow command per finding: an error where the gate fails on it, else a warning.

    One line on the result comes first, which is no command and is there without findings, too.
    """
    failed = {c.client for c in failing(report, str(report.settings.get("fail_on", "never")))}
    lines = [f"clair: {len(report.clients)} clients, exit code {report.exit_code}"]
    lines += [_command(f, f.client is None or f.client in failed) for f in findings(report)]
    return "".join(f"{line}\n" for line in lines)


def _command(found: Finding, fails: bool) -> str:
    title = f"{found.code}: {found.standing}"
    properties = {"file": one_line(found.place), "line": "1", "title": safe_text(title)}
    shown = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{'error' if fails else 'warning'} {shown}::{_data(found.message)}"


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
            "severity": SEVERITY[f.standing],
            "location": {"path": one_line(f.place), "lines": {"begin": 1}},
        }
        for f in findings(report)
    ]
    return json.dumps(entries, indent=1) + "\n"
