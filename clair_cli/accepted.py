"""What somebody has decided about a client: the entry that says so, and what became of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from clair_cli.errors import SettingError
from clair_cli.reasons import RULES
from clair_cli.records import key

LONGEST = 500
"""Characters of a reason: a line of a table, not a page."""
DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """A decision: findings of these codes on this client do not fail the gate.

    `until` is the last day on which it counts, as YYYY-MM-DD, of UTC; None: for good. `sha256` are
    hashes of the client's files; empty: whatever it sends. Raises SettingError for anything else.
    """

    client: str
    codes: tuple[str, ...]
    reason: str
    until: str | None = None
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.client), "client", "the id of a client", self.client)
        _require(bool(self.codes), "codes", "one reason code or more", self.codes)
        for code in self.codes:
            _require(code in RULES, "codes", "codes that `clair rules` lists", code)
        fine = len(self.reason.strip()) > 0 and len(self.reason) <= LONGEST
        _require(fine, "reason", f"why, in 1 to {LONGEST} characters", self.reason)
        _require(self.until is None or _is_day(self.until), "until", "YYYY-MM-DD", self.until)
        for digest in self.sha256:
            fine = HASH.fullmatch(digest) is not None
            _require(fine, "sha256", "64 hexadecimal digits in lower case", digest)


def _is_day(text: str) -> bool:
    try:
        return DAY.fullmatch(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise SettingError(f"accept: {name}: expected {expected}, got {str(value)[:80]!r}")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An entry of the report's list: the decision, and whether it took effect.

    accepted: the client has findings of these codes and no others. expired: its day is over. unused:
    `why` says what keeps it from counting.
    """

    client: str = field(metadata=key("id"))
    codes: tuple[str, ...]
    reason: str
    until: str | None
    sha256: tuple[str, ...]
    state: Literal["accepted", "expired", "unused"]
    why: str | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not _is_day(self.until):
            raise ValueError(f"acceptance: until: expected YYYY-MM-DD, found {self.until[:40]!r}")


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a client owes its entries: their codes together, their reasons, the first day to end."""

    codes: tuple[str, ...]
    reason: str
    until: str | None = None
