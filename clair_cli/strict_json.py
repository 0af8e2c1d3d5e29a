"""JSON from strangers: one meaning per document, bounded, finite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clair_cli.errors import ClairError, UsageError

MAX_DIGITS = 40
"""Twice what a 64-bit offset takes; int() of millions of digits is quadratic."""


def parse_object(data: bytes | bytearray, where: str, error: type[ClairError]) -> dict[str, Any]:
    """The JSON object in `data`, in the order of the document.

    Raises `error`, naming `where`, on invalid UTF-8 or JSON, duplicate keys, NaN, Infinity, numbers
    beyond float64, integers of more than 40 digits, nesting beyond Python's recursion limit, or
    anything but an object at the top.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise error(f"{where}: JSON is nested too deeply; save it again") from None
    except ValueError as cause:  # of which JSONDecodeError and UnicodeDecodeError are kinds
        raise error(f"{where}: invalid JSON: {cause}; save it again") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {type(value).__name__}; save it again")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!r} occurs twice")
        key.encode()  # a lone surrogate cannot be written back
        found[key] = value
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:40]} is beyond float64")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"integer of {len(text)} digits")
    return int(text)


def read_bounded(path: Path, most: int, what: str = "") -> bytes:
    """The bytes of a file that the user names, a pipe included, at most `most` of them.

    Raises UsageError, beginning with `what`, where it is larger or cannot be read.
    """
    shown = f"{what} {str(path)!r}".strip()
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as cause:  # ValueError: a path with a NUL
        why = getattr(cause, "strerror", None) or cause
        raise UsageError(f"{shown}: cannot be read: {why}") from None
    if len(data) > most:
        raise UsageError(f"{shown}: cannot be read: more than {most} bytes")
    return data
