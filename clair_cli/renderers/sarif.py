"""SARIF 2.1.0 for code scanning: a result per client and code, and the rule behind each code.

GitHub reads of it what its page "SARIF support for code scanning" lists, and accepts at most
MAX_RESULTS results. A name is data: brackets would be a link in a message, braces a placeholder
(SARIF 2.1.0, sections 3.11.5 and 3.11.6).
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from clair_cli.reasons import RULES, Rule, Standing, plain
from clair_cli.renderers.findings import Finding, findings, notes, root
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
PAPER = "https://arxiv.org/abs/2605.21217"
MAX_RESULTS = 25_000
LONGEST = 1024
"""Characters of a description that GitHub keeps."""
REGION = {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1}
"""Of a file that has no lines."""
DANGER: dict[Standing, str] = {
    "contaminated": "8.0",
    "broken": "6.0",
    "no verdict": "5.0",
    "minority": "4.0",
    "suspicious": "4.0",
    "note": "1.0",
    "remark": "1.0",
}
"""The security-severity of a code: GitHub calls 7.0 and more high, 4.0 and more medium."""
PRECISION: dict[Standing, str] = {
    "contaminated": "high",
    "broken": "very-high",
    "no verdict": "very-high",
    "minority": "medium",
    "suspicious": "medium",
    "note": "low",
    "remark": "low",
}
SEVERITY = {"error": "error", "warning": "warning", "note": "recommendation"}
SEMANTIC = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


def render(report: Report) -> str:
    """One SARIF log with one run."""
    every = findings(report)
    found = every[:MAX_RESULTS]
    rules = list(dict.fromkeys(f.code for f in found))
    run = {
        "tool": {"driver": _driver(report, found, rules)},
        "automationDetails": {"id": f"clair/{_uri(root(report)).strip('/')}/"},
        "invocations": [_invocation(report, len(every) - len(found))],
        "results": [_result(f, rules.index(f.code)) for f in found],
        "columnKind": "unicodeCodePoints",
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _driver(report: Report, found: list[Finding], codes: list[str]) -> dict[str, Any]:
    version = safe_text(str(report.tool.get("version")))
    standings = {f.code: f.standing for f in reversed(found)}
    driver = {"name": "clair", "version": version, "informationUri": PAPER}
    if SEMANTIC.fullmatch(version):
        driver["semanticVersion"] = version
    return driver | {"rules": [_rule(code, RULES.get(code), standings[code]) for code in codes]}


def _rule(code: str, rule: Rule | None, standing: Standing) -> dict[str, Any]:
    """What is known of a code; of one of a newer clair that is how it was found."""
    standing = rule.standings[0] if rule else standing
    title, seen = (rule.title, plain(rule.seen)) if rule else (standing, f"A client is {standing}.")
    severity = SEVERITY[rule.severity] if rule else "warning"
    return {
        "id": safe_text(code),
        "name": "".join(word.capitalize() for word in re.findall(r"\w+", title)),
        "shortDescription": {"text": _message(title[:1].upper() + title[1:])[:LONGEST]},
        "fullDescription": {"text": _message(seen)[:LONGEST]},
        "help": _help(rule, seen),
        "properties": {
            "tags": ["security", "federated-learning"],
            "precision": PRECISION[standing],
            "problem.severity": severity,
            "security-severity": DANGER[standing],
        },
    }


def _help(rule: Rule | None, seen: str) -> dict[str, str]:
    if rule is None:
        return {"text": _message(seen), "markdown": seen}
    parts = [("", rule.seen), ("", rule.means), ("What to do", rule.do), ("How sure", rule.sure)]
    said = [(head, text) for head, text in parts if text]
    texts = [f"{head}: {plain(text)}" if head else plain(text) for head, text in said]
    shown = [f"**{head}:** {text}" if head else text for head, text in said]
    return {"text": _message("\n\n".join(texts)), "markdown": "\n\n".join(shown)}


def _result(found: Finding, rule: int) -> dict[str, Any]:
    decided = {} if found.accepted is None else {"suppressions": [_suppression(found.accepted)]}
    location = {"artifactLocation": {"uri": _uri(found.place)}, "region": REGION}
    return {
        "ruleId": safe_text(found.code),
        "ruleIndex": rule,
        "level": found.severity,
        "message": {"text": _message(found.message)},
        "locations": [{"physicalLocation": location}],
        "partialFingerprints": {"primaryLocationLineHash": f"{found.fingerprint[:32]}:1"},
        **decided,
    }


def _suppression(why: str) -> dict[str, str]:
    """A decision that stands outside of what was looked at (SARIF 2.1.0, section 3.35)."""
    return {"kind": "external", "status": "accepted", "justification": why}


def _invocation(report: Report, left_out: int) -> dict[str, Any]:
    """How the run ended, and what it has to say that is no finding."""
    said = [
        (f"{safe_text(client)}: " if client is not None else "") + safe_text(reason.message)
        for client, reason in notes(report)
    ]
    if left_out:
        said.insert(0, f"{left_out} results left out: there is room for {MAX_RESULTS}")
    found: dict[str, Any] = {
        "executionSuccessful": report.status == "complete",
        "exitCode": report.exit_code,
        "toolExecutionNotifications": [
            {"level": "note", "message": {"text": _message(text)}} for text in said
        ],
    }
    if started := _utc(str(report.run.get("started_at"))):
        found["startTimeUtc"] = started
    return found


def _message(text: str) -> str:
    """A text of which SARIF makes no link and no placeholder."""
    text = re.sub(r"([\\\[\]])", r"\\\1", text)
    return text.replace("{", "{{").replace("}", "}}")


def _uri(path: str) -> str:
    """A path as a relative reference, or as a file: URI where it is absolute."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = path.encode("utf-8", "surrogatepass")
    return ("file://" if path.startswith("/") else "") + quote(raw)


def _utc(when: str) -> str | None:
    try:
        found = datetime.fromisoformat(when).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")
