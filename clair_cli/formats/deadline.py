"""How long one client may take: a deadline per thread, looked at wherever bytes are read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clair_cli.errors import LimitExceeded


class Stopped(BaseException):
    """Nobody waits for the result any more."""


@dataclass(frozen=True, slots=True)
class _Deadline:
    """Until when on the monotonic clock, after how many seconds, and who may call it off before."""

    end: float
    seconds: float
    stop: threading.Event | None


_own = threading.local()


@contextmanager
def deadline(seconds: float, stop: threading.Event | None = None) -> Iterator[None]:
    """Reading within the block, in this thread, raises LimitExceeded once `seconds` have passed.

    The end of the block looks at the clock, too. Once `stop` is set, or that of a block around it,
    reading raises Stopped.
    """
    before: _Deadline | None = getattr(_own, "deadline", None)
    stop = stop or (before.stop if before else None)
    _own.deadline = _Deadline(time.monotonic() + seconds, seconds, stop)
    try:
        yield
        check_time()
    finally:
        _own.deadline = before


def check_time() -> None:
    """Raises LimitExceeded after the deadline of this thread, Stopped where it was called off."""
    own: _Deadline | None = getattr(_own, "deadline", None)
    if own is None:
        return
    if own.stop is not None and own.stop.is_set():
        raise Stopped
    if time.monotonic() > own.end:
        text = f"not read after {own.seconds:.3g} s"
        raise LimitExceeded(f"{text}; give it more with --client-timeout, or leave this client out")
