"""How long work says how far it is, to whoever asks, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is; 0: not known."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing, for whoever does not ask how far it is."""


@dataclass(slots=True)
class Stopwatch:
    """A Progress that passes on what it is told, and adds up the time: all since the call before was
    spent on what a call names."""

    tell: Progress = silent
    last: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell, and count."""
        self.count(what)
        self.tell(what, done, total)

    def count(self, what: str) -> None:
        """The time since the last call was spent on `what`."""
        now = time.monotonic()
        self.spent[what] = self.spent.get(what, 0.0) + now - self.last
        self.last = now

    def timings(self) -> list[dict[str, Any]]:
        """Seconds by what they were spent on, in the order in which it began."""
        return [{"what": what, "seconds": seconds} for what, seconds in self.spent.items()]
