"""The history of a federation in a file: a line of JSON for each judged round, in a chain of sha256.

A line begins with the sha256 of the line before and ends with its own, so that a line that was changed,
taken out or put in breaks the chain. Only cutting off the last lines leaves it whole, and for that the
report says which line was last. The file is written by appending alone, under a lock. A line without
an end is what a killed run left: it is cut off. Whatever else is wrong, the file is refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from clair_cli.errors import OutputError, UsageError
from clair_cli.output.publish import sync
from clair_cli.records import decode, encode, key
from clair_cli.report import VerdictName
from clair_cli.strict_json import parse_object

KIND, VERSION = "clair history", 1
MAX_BYTES = 64 * 2**20
"""Of the file: 50 years of 50 rounds of 100 clients."""
MOST = 1e6
"""A factor that is read back; clair itself writes less than 100."""
NONE_BEFORE = "0" * 64
"""What the first line has in place of the sha256 of a line before."""
SHA256 = re.compile(r"[0-9a-f]{64}")
END = re.compile(rb', "sha256": "([0-9a-f]{64})"\}')
ENDING = 79
"""Bytes of what END matches."""
WAIT, BETWEEN = 30.0, 0.05
"""Seconds that a run waits for another one's lock, and between two tries."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One client in one round. `files` is a sha256 over its files, empty where none was read.

    `factor` is what the evidence was multiplied by, None where the round says nothing of the client.
    """

    client: str = field(metadata=key("id"))
    files: str
    verdict: VerdictName | None
    score: float | None
    factor: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One judged round. `previous` is the sha256 of the line before."""

    previous: str
    kind: str
    version: int
    started_at: str
    clair: str
    constants: str
    clients: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """All lines, the sha256 of the last, and how many bytes of a torn line follow it."""

    lines: tuple[Line, ...] = ()
    head: str = NONE_BEFORE
    torn: int = 0


def read(path: Path) -> Ledger:
    """What the file holds, which may be anybody's; nothing where there is none yet.

    Raises UsageError, naming the line, where it is no such file, too large, or its chain is broken.
    """
    with _named(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return Ledger()
        try:
            return _parsed(_content(fd), path)
        finally:
            os.close(fd)


class Book:
    """A ledger that is locked for writing."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd, self.path = fd, path
        data = _content(fd)
        self.ledger = _parsed(data, path)
        self.whole = len(data) - self.ledger.torn

    def append(self, line: Line) -> None:
        """Cut a torn line off, and write this one whole, on disk when this returns.

        `line.previous` is set here. Raises OutputError; then the file ends with the lines it had.
        """
        line = replace(line, previous=self.ledger.head)
        data, head = _written(line)
        if self.whole + len(data) > MAX_BYTES:
            text = f"has reached {MAX_BYTES >> 20} MiB; begin a new file"
            raise UsageError(f"--history {str(self.path)!r}: {text}")
        try:
            os.ftruncate(self.fd, self.whole)
            try:
                _all(self.fd, data)
                os.fsync(self.fd)
            except OSError:
                os.ftruncate(self.fd, self.whole)
                raise
        except OSError as cause:
            text = f"cannot be written: {cause.strerror}"
            raise OutputError(f"--history {str(self.path)!r}: {text}") from None
        self.whole += len(data)
        self.ledger = Ledger((*self.ledger.lines, line), head, self.ledger.torn)


@contextmanager
def opened(path: Path) -> Iterator[Book]:
    """The ledger, made where there is none, locked against other writers until the block ends.

    Raises what `read` raises, and OutputError where another run holds the lock for WAIT seconds or the
    file cannot be written.
    """
    with _named(path):
        fd = _locked(path)
    try:
        with _named(path):
            book = Book(fd, path)
        yield book
    finally:
        os.close(fd)  # and with it goes the lock


def _locked(path: Path) -> int:
    """The open file, locked; never one that another has taken its place of meanwhile."""
    try:
        import fcntl
    except ImportError:
        raise UsageError("--history: needs the locks of Linux or macOS") from None
    until = time.monotonic() + WAIT
    while True:
        new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                if new:
                    sync(path.absolute().parent)
                return fd
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() > until:
            text = f"another run has been writing it for {WAIT:g} seconds; try again"
            raise OutputError(f"--history {str(path)!r}: {text}")
        time.sleep(BETWEEN)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the system as one line that names the option and the file."""
    try:
        yield
    except (OSError, ValueError) as cause:  # ValueError: a path with a NUL
        why = getattr(cause, "strerror", None) or cause
        raise UsageError(f"--history {str(path)!r}: cannot be used: {why}") from None


def _content(fd: int) -> bytes:
    """All bytes of a regular file of at most MAX_BYTES. Raises OSError."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if info.st_size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_BYTES} bytes")
    parts, offset = [], 0
    while part := os.pread(fd, MAX_BYTES + 1 - offset, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _parsed(data: bytes, path: Path) -> Ledger:
    """The lines of a whole file. Raises UsageError."""
    *whole, torn = data.split(b"\n")
    lines, head = [], NONE_BEFORE
    for number, text in enumerate(whole, start=1):
        where = f"--history {str(path)!r}: line {number}"
        line, own = _line(text, where)
        if line.previous != head:
            raise UsageError(f"{where}: does not follow the line before; {REFUSED}")
        lines.append(line)
        head = own
    begin = b'{"previous": "%s"' % head.encode()
    if not torn.startswith(begin) and not begin.startswith(torn):  # another kind of file altogether
        why = f"ends with what is no line of a history; {REFUSED}"
        raise UsageError(f"--history {str(path)!r}: {why}")
    return Ledger(tuple(lines), head, len(torn))


REFUSED = "the file was changed, so nothing of it is believed: restore it, or begin a new one"


def _line(text: bytes, where: str) -> tuple[Line, str]:
    """A line and its sha256. Raises UsageError."""
    end = END.fullmatch(text[-ENDING:])
    if end is None:
        raise UsageError(f"{where}: not a line of a history that clair wrote; {REFUSED}")
    own = sha256(text[:-ENDING]).hexdigest()
    if end[1].decode() != own:
        raise UsageError(f"{where}: its sha256 is not that of the line; {REFUSED}")
    try:
        line = decode(Line, parse_object(text, where, UsageError))
        _check(line)
    except (ValueError, RecursionError) as cause:
        raise UsageError(f"{where}: not a line of a history: {cause}; {REFUSED}") from None
    return line, own


def _check(line: Line) -> None:
    """Raises ValueError where a value is not one that clair writes."""
    if line.kind != KIND or line.version != VERSION:
        raise ValueError(
            f"expected {KIND!r} of version {VERSION}, found another; use a newer clair"
        )
    seen = set()
    for entry in line.clients:
        if entry.client in seen:
            raise ValueError(f"the client {entry.client[:40]!r} is in it twice")
        seen.add(entry.client)
        if entry.files and not SHA256.fullmatch(entry.files):
            raise ValueError("files: expected a sha256")
        if entry.factor is not None and not 0 < entry.factor <= MOST:
            raise ValueError(f"factor: expected above 0, and {MOST:g} at most")
        if entry.score is not None and not entry.score >= 0:
            raise ValueError("score: expected 0 or more")


def _written(line: Line) -> tuple[bytes, str]:
    """A line as the file holds it, ASCII alone, and its sha256."""
    body = json.dumps(encode(line), allow_nan=False)[:-1].encode()
    own = sha256(body).hexdigest()
    return body + f', "sha256": "{own}"}}\n'.encode(), own


def _all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
