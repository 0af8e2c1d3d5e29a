"""The parts of the pages that are made from the program: settings, reason codes, the command line.

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`; cli.md is
generated as a whole. `python -m tests.docs.refresh` writes them anew.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import wrap
from typing import Any

import clair_cli.settings
from clair_cli.constants import Constants
from clair_cli.detection.calibration import DETECTION
from clair_cli.reasons import RULES, Rule
from clair_cli.refinement.calibration import REFINEMENT
from clair_cli.settings import Settings
from tests import ROOT

REFERENCE = ROOT / "docs" / "reference"
SETTINGS = REFERENCE / "settings.md"
REASONS = REFERENCE / "reasons.md"
CLI = REFERENCE / "cli.md"
WIDTH = 140
"""Characters of a line of prose."""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines: list[tuple[str, ...]] = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def constants(values: Constants) -> str:
    """One row per constant: its value, its unit, its range, what it does, and where it is from."""
    rows = []
    for f in fields(values):
        low, high = f.metadata["range"]
        about = (f.metadata["unit"], f"{low:g} to {high:g}", f.metadata["meaning"])
        rows.append(
            (f"`{f.name}`", f"{getattr(values, f.name):g}", *about, _link(f.metadata["source"]))
        )
    return table(("name", "value", "unit", "range", "meaning", "source"), rows)


def settings() -> str:
    """One row per setting of a run, with its docstring."""
    said = docstrings(Path(clair_cli.settings.__file__), "Settings")
    apart = ("detection", "refinement")
    rows = [
        (f"`{f.name}`", _value(f.default), said[f.name])
        for f in fields(Settings)
        if f.name not in apart
    ]
    return table(("name", "default", "meaning"), rows)


def docstrings(file: Path, name: str) -> dict[str, str]:
    """Field to docstring of a class in a source file; a string says something of the fields above it
    up to the last string, which share it."""
    found: dict[str, str] = {}
    waiting: list[str] = []
    (body,) = [
        node.body
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and waiting:
            found |= dict.fromkeys(waiting, " ".join(str(node.value.value).split()))
            waiting = []
    return found


def _value(value: Any) -> str:
    if value in ((), None):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _link(source: str) -> str:
    """A source as a link, where it is a page of the project."""
    if not source.endswith(".md"):
        return source
    return f"[{Path(source).stem}]({os.path.relpath(ROOT / source, REFERENCE)})"


def reasons() -> str:
    """A section per reason code, in families."""
    parts, family = [], ""
    for rule in RULES.values():
        if rule.family != family:
            family = rule.family
            parts.append(f"## {family}\n")
        parts.append(section(rule))
    return "\n".join(parts)


def section(rule: Rule) -> str:
    """What one code makes of a client and what is to be done, in the words of the package."""
    stands = " or ".join(rule.standings).capitalize()
    more = f" See [{Path(rule.page).stem}]({rule.page})." if rule.page else ""
    said = [
        f"**{stands}: {rule.title}.** {rule.seen}",
        f"*What it means:* {rule.means}",
        *([f"*How sure:* {rule.sure}"] if rule.sure else []),
        f"*What to do:* {rule.do}{more}",
    ]
    lines = [line for text in said for line in wrap(text, WIDTH, break_on_hyphens=False)]
    return "\n".join([f"### {rule.code}", "", *lines, ""])


PARTS: dict[Path, dict[str, Callable[[], str]]] = {
    SETTINGS: {
        "settings": settings,
        "detection": lambda: constants(DETECTION),
        "refinement": lambda: constants(REFINEMENT),
    },
    REASONS: {"reasons": reasons},
}
"""The pages with generated parts, and how each part is made."""


def with_parts(text: str) -> str:
    """The page with every generated part as it is today."""
    makers = {name: make for parts in PARTS.values() for name, make in parts.items()}

    def part(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n\n{makers[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


def command_line() -> str:
    """The page of the command line, as the program prints it."""
    done = subprocess.run(
        [sys.executable, "-m", "clair_cli.cli.reference"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def write_all() -> None:
    """Write every generated page and part."""
    for page in PARTS:
        page.write_text(with_parts(page.read_text()))
    CLI.write_text(command_line())
