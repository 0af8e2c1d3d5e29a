"""Numbers as everybody writes them: what int() and float() take beyond that is no number here.

They also take 1_000, the digits of every script, nan and infinity, which other programs read otherwise.
"""

from __future__ import annotations

import math
import re

LONGEST = 64
"""Characters of a number: to read millions of digits takes quadratic time."""
WHOLE = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def whole(text: str) -> int:
    """An integer in ASCII digits. Raises ValueError."""
    return int(_checked(text, WHOLE))


def decimal(text: str) -> float:
    """A finite number in ASCII digits, with an exponent or without. Raises ValueError."""
    value = float(_checked(text, DECIMAL))
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is beyond float64")
    return value


def _checked(text: str, form: re.Pattern[str]) -> str:
    if len(text) > LONGEST or not form.fullmatch(text):
        raise ValueError(f"{text[:LONGEST]!r} is no number")
    return text
