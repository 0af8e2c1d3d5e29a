"""stdout and stderr: the only place of the command line that writes to them."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from contextlib import suppress

from clair_cli.errors import OutputError
from clair_cli.renderers import text
from clair_cli.renderers.safe import inert, safe_text, visible, visible_but_styles
from clair_cli.report import Report

BEFORE, BETWEEN = 0.5, 0.1
"""Seconds before a progress bar is shown, and between two states of it."""
STEADY = 2.0
"""Seconds of one kind of work before its rate is shown."""
BAR = 24
"""Characters of a full progress bar."""


def print_out(product: str | bytes, commands: bool = False) -> None:
    """Write to stdout. A reader that has gone changes nothing; a full disk raises OutputError.

    Whatever a record or a message holds, only lines of visible characters and colours get through, and
    without `commands` none that a runner of jobs would obey. Bytes are for a file or a pipe.
    """
    try:
        if isinstance(product, bytes):
            sys.stdout.buffer.write(product)
        else:
            shown, encoding = visible_but_styles(product), sys.stdout.encoding or "ascii"
            shown = shown if commands else inert(shown)
            sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        return
    except OSError as error:
        raise OutputError(f"stdout: {error.strerror or error}") from error


def tell(line: str) -> None:
    """Write one line to stderr, and go on where nobody takes it."""
    line, encoding = inert(visible(line)), sys.stderr.encoding or "ascii"
    with suppress(OSError):
        sys.stderr.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))


def fail(message: str, code: int) -> int:
    """Say on stderr what went wrong, and return the exit code for it."""
    tell(f"clair: {safe_text(message)}")
    return code


class Remarks(logging.Handler):
    """What the library logs, a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it as clair's."""
        tell(f"clair: {safe_text(record.getMessage())}")


def tell_remarks() -> None:
    """From now on warnings of the library are told; without this Python prints them bare."""
    log = logging.getLogger("clair_cli")
    if not any(isinstance(handler, Remarks) for handler in log.handlers):
        log.addHandler(Remarks(logging.WARNING))


def add_timings(report: Report, wanted: bool) -> None:
    """Say on stderr where the seconds of the run went, if that is wanted."""
    for line in text.timings(report) if wanted else ():
        tell(line)


def is_terminal() -> bool:
    """Whether a person sees stdout, and no program."""
    return sys.stdout.isatty()


def is_colored() -> bool:
    """Whether stdout is a terminal whose user wants colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def width() -> int | None:
    """Columns of the terminal behind stdout, None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Progress:
    """A bar on stderr, on a terminal only, from the second half second on."""

    def __init__(self, off: bool) -> None:
        self.off = off or not sys.stderr.isatty()
        self.shown_at = time.monotonic() + BEFORE
        self.what, self.since, self.first = "", 0.0, 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.off:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; where `total` is 0 nobody knows how many there are."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.since, self.first = what, now, done
        if self.off or now < self.shown_at:
            return
        self.shown_at = now + BETWEEN
        filled = BAR * done // total if total else 0
        bar = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{total}" if total else f"step {done}"
        left = pace(done - self.first, total - done, now - self.since) if total else ""
        sys.stderr.write(f"\r\x1b[K{what} {bar}{left}")
        sys.stderr.flush()


def pace(done: int, left: int, seconds: float) -> str:
    """The rate so far and the time that is left at this rate; nothing before it can be told."""
    if seconds < STEADY or done < 1:
        return ""
    rate = done / seconds
    fast = (
        f"{rate:.0f}/s"
        if rate >= 10
        else f"{rate:.1f}/s"
        if rate >= 1
        else f"{1 / rate:.1f} s each"
    )
    return f", {fast}, {_span(left / rate)} left"


def _span(seconds: float) -> str:
    """42 s, 3:05, 1:20:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
