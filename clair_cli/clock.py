"""When a run began, by which command, and where its time goes."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from clair_cli.progress import Progress, silent


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


@dataclass(frozen=True, slots=True)
class Clock:
    """One run: the command line that it was asked for by, if any, and its beginning."""

    command: str | None
    watch: Stopwatch
    began: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def run(self, threads: int | None, device: str) -> dict[str, Any]:
        """All that may differ between equal runs; what was done since the last call was reporting."""
        self.watch.count("reporting")
        torch = sys.modules.get("torch")
        environment = {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "torch": getattr(torch, "__version__", None),
            "threads": threads,
            "device": device,
        }
        return {
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "duration_s": time.monotonic() - self.began,
            "timings": self.watch.timings(),
            "command": self.command,
            "environment": environment,
        }
