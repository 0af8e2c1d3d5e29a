"""How a verdict, a name and a number look on the page: never by colour alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clair_cli.detection.module_names import layer
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import percent
from clair_cli.report import Verdict

SHORT = 20
"""Characters of a name beside a plot; the whole name is in its title and on its card."""
LEAST, MOST = 0.1, 100.0
"""Ends of the axis of scores."""


@dataclass(frozen=True, slots=True)
class Look:
    """A verdict as a word, an icon, and the name of its colour and its mark."""

    word: str
    icon: str
    name: str
    rank: int


LOOKS = {
    "contaminated": Look("contaminated", "\u2715", "contaminated", 0),
    "broken": Look("broken", "!", "broken", 1),
    "minority": Look("minority", "\u25c6", "minority", 2),
    "suspicious": Look("suspicious", "?", "suspicious", 3),
    None: Look("no verdict", "\u2013", "none", 4),
    "benign": Look("benign", "\u2713", "benign", 5),
}
"""Worst first."""


def look(client: Verdict) -> Look:
    """That of the client's verdict."""
    return LOOKS[client.verdict]


def worst_first(client: Verdict) -> tuple[int, float]:
    """By verdict, then by score."""
    return look(client).rank, -(client.score or 0.0)


def short(name: str) -> str:
    """The name, with its middle left out where it is long."""
    shown = safe_text(name)
    if len(shown) <= SHORT:
        return shown
    return f"{shown[: SHORT - 8]}\u2026{shown[-7:]}"


def number(value: float | None, digits: int = 1) -> str:
    """With that many digits behind the point; a dash for None."""
    if value is None:
        return "\u2013"
    small = 0 < abs(value) < 0.5 * 10**-digits
    return f"{value:.1g}" if small else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """In percent; a dash for None."""
    return "\u2013" if value is None else percent(value)


def along(score: float) -> float:
    """Where a score is on its logarithmic axis, in percent of the width, between 2 and 98."""
    within = min(max(score, LEAST), MOST)
    return round(2 + 96 * math.log10(within / LEAST) / math.log10(MOST / LEAST), 2)


def layer_of(module: str) -> int:
    """The first number among the parts of a module's name; -1 where none is one."""
    return int(layer(module) or -1)


def kind_of(module: str) -> str:
    """What a module is in its layer: its last part that is no number."""
    parts = [p for p in module.split(".") if not p.isdecimal()]
    return parts[-1] if parts else module
