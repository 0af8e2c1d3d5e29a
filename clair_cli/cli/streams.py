"""stdout and stderr: the only place of the command line that writes to them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress

from clair_cli.errors import OutputError
from clair_cli.renderers.safe import inert, safe_text, visible, visible_but_styles

BEFORE, BETWEEN = 0.5, 0.1
"""Seconds before a progress bar is shown, and between two states of it."""
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

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.off:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; where `total` is 0 nobody knows how many there are."""
        now = time.monotonic()
        if self.off or now < self.shown_at:
            return
        self.shown_at = now + BETWEEN
        filled = BAR * done // total if total else 0
        bar = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{total}" if total else f"step {done}"
        sys.stderr.write(f"\r\x1b[K{what} {bar}")
        sys.stderr.flush()
