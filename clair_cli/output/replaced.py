"""A file written anew under another name and put in its place, whole or not at all, by one writer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clair_cli.errors import OutputError, UsageError
from clair_cli.output.leftovers import passing, sweep
from clair_cli.output.publish import STAGED


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a new file under; it takes the place of `path` when the block ends.

    On any exception what was at `path` is still there, and nothing beside it. Raises OutputError.
    """
    target = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    fresh = passing(target)
    try:
        sweep(target)
        yield fresh
        os.replace(fresh, target)
    except OSError as cause:
        text = f"cannot be written: {cause.strerror or cause}"
        raise OutputError(f"{str(path)!r}: {text}") from None
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """An empty folder beside `beside`, which is gone when the block ends. Raises OutputError."""
    folder = passing(Path(os.path.realpath(beside)))
    STAGED.add(folder)
    try:
        try:
            os.mkdir(folder)
        except OSError as cause:
            text = f"cannot be written: {cause.strerror or cause}"
            raise OutputError(f"{str(beside)!r}: {text}") from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        STAGED.discard(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else who asks for it changes the file at `path` within the block; waits for whoever does.

    The lock is the system's, on the file itself, and goes with the process. Raises UsageError where the
    file cannot be opened, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise UsageError("--update: needs the locks of a POSIX system") from None
    try:
        while True:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                here, there = os.fstat(fd), os.stat(path)
                if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                    continue  # somebody put another in its place while this waited
                yield
                return
            finally:
                os.close(fd)
    except OSError as cause:
        text = f"cannot be locked: {cause.strerror or cause}"
        raise UsageError(f"--update: {str(path)!r}: {text}") from None
