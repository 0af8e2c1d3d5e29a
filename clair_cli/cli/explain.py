"""clair explain: a reason code, or the verdict on a client, in plain words."""

from __future__ import annotations

import re
from pathlib import Path

from clair_cli.cli import options as o
from clair_cli.cli.delivery import Delivery
from clair_cli.cli.given import meant, saved_report
from clair_cli.cli.streams import print_out, tell, width
from clair_cli.errors import UsageError
from clair_cli.reasons import RULES, Rule
from clair_cli.renderers import RENDERERS, explanation
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report
from clair_cli.results import Explained, explained

CODE = re.compile(r"CLR\d{3}", re.IGNORECASE)
ONE_DIGIT = 0.8
"""Likeness of codes below which more than one digit differs."""


def explain(
    what: o.Explained,
    clients: o.Clients = None,
    format: o.Format = "text",
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Explain a reason code, or the verdict on a client.

    In plain words: what was seen, how rare that is among honest clients, where it is worst, and what
    to do. Reads no adapter.
    """
    if CODE.fullmatch(what) and not Path(what).is_file():
        if clients:
            raise UsageError(f"{what}: is a reason code, which is explained alone")
        print_out(RENDERERS[format](_rule(what.upper())))
        return 0
    if not clients and _is_name(what):
        text = "neither a reason code, such as CLR203, nor a saved report"
        raise UsageError(f"{what}: is {text}; for a client: clair explain REPORT.json CLIENT")
    report = saved_report(Path(what))
    if missing := _missing(report, clients or []):
        raise UsageError(f"{what}: {missing}")
    show(explained(report, clients or None), format)
    return 0


def _rule(code: str) -> Rule:
    """Raises UsageError where there is no such one, with a code that differs in one digit."""
    if code not in RULES:
        near = meant(code, RULES, ONE_DIGIT)
        lists = " `clair rules`" if near else "; `clair rules`"
        raise UsageError(f"{code}: there is no such code{near}{lists} lists them")
    return RULES[code]


def _is_name(what: str) -> bool:
    """Whether it is a bare name, of no file."""
    return "/" not in what and Path(what).suffix != ".json" and not Path(what).is_file()


def show(found: Explained, format: str = "text") -> None:
    """Print explanations, on a terminal in lines that fit it."""
    print_out(explanation.as_text(found, width()) if format == "text" else RENDERERS[format](found))


def check_explained(names: list[str] | None, goes: Delivery) -> None:
    """Raises UsageError where explanations are asked for beside a document for a machine."""
    if names and not (goes.talks or goes.stdout is None):
        raise UsageError(
            f"--explain: is text, and stdout gets {goes.stdout}; save the report with "
            "-o json=REPORT.json, then `clair explain REPORT.json CLIENT`"
        )


def add_explained(report: Report, names: list[str] | None, code: int) -> int:
    """Print the explanations that --explain asks for, and return the exit code, which was `code` so far.

    A client that is not there is told on stderr, and is a usage error unless there is a finding.
    """
    there = {c.client for c in report.clients}
    if found := [name for name in names or [] if name in there]:
        print_out("\n")
        show(explained(report, found))
    if missing := _missing(report, names or []):
        tell(f"clair: --explain: {missing}")
        return code or UsageError.exit_code
    return code


def _missing(report: Report, names: list[str]) -> str | None:
    """That the first name which is not in the report is not, and which one may be meant."""
    there = [c.client for c in report.clients]
    for name in names:
        if name not in there:
            return f"there is no client {safe_text(name)!r} in the report{meant(name, there)}"
    return None
