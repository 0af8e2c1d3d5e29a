"""What every reason code says in plain words: the one table behind pages, explanations and rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clair_cli.records import decode

Standing = Literal[
    "broken", "contaminated", "suspicious", "minority", "no verdict", "note", "remark"
]
"""What a code makes of a client, or what it is where it makes nothing of one."""
Severity = Literal["error", "warning", "note"]
SEVERITIES: dict[Standing, Severity] = {
    "broken": "error",
    "contaminated": "error",
    "no verdict": "error",
    "suspicious": "warning",
    "minority": "warning",
    "note": "note",
    "remark": "note",
}
"""How severe each standing is, in the three words that tools for findings share."""
FAMILIES = {"CLR1": "Files", "CLR2": "Clients", "CLR3": "All clients together"}
"""How codes begin, and what the codes that begin like that are about."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One reason code in plain words. Options and names of files stand between backticks.

    `standings` are what it can make of a client, the worst first. `seen` says what was found, `means`
    how to take it, `do` what to do, `sure` how certain it is where that needs saying. `page` is a page
    of the reference that says more.
    """

    code: str
    title: str
    standings: tuple[Standing, ...]
    seen: str
    means: str
    do: str
    sure: str = ""
    page: str = ""

    @property
    def severity(self) -> Severity:
        """That of its worst standing."""
        return SEVERITIES[self.standings[0]]

    @property
    def family(self) -> str:
        """What codes that begin alike are about."""
        return FAMILIES[self.code[:4]]


def plain(text: str) -> str:
    """A text of a rule without backticks, for a screen."""
    return text.replace("`", "")


def _read(path: Path) -> dict[str, Rule]:
    found = json.loads(path.read_text(encoding="utf-8"))["reasons"]
    return {rule.code: rule for rule in (decode(Rule, one) for one in found)}


RULES: dict[str, Rule] = _read(Path(__file__).with_name("reasons.json"))
"""Every code that a report can hold, in order. The words are in reasons.json."""
