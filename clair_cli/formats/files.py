"""Files from strangers: regular ones only, links by rule, read without mmap, checked for change."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from clair_cli.cohort import InputFile
from clair_cli.errors import ChangedWhileRead, Unreadable, UnsafePath
from clair_cli.formats.deadline import check_time

FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
CHUNK = 2**20
PIECE = 2**22
"""Bytes in memory of what is only passed through."""

AT_ONCE = 2**26
"""Bytes asked of the system in one call, which nothing interrupts."""

T = TypeVar("T")


def shown(name: str) -> str:
    """A file name on one line of a message."""
    return name if name.isprintable() else repr(name)


def is_link(path: Path) -> bool:
    """Whether the last part of `path` is a symbolic link; False where it cannot be looked at."""
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def follow(path: Path, root: Path, anywhere: bool = False) -> Path:
    """`path`, or where it leads if it is a link to a file that may be followed.

    A link may lead to a file below `root`, from snapshots/ to blobs/ of one Hugging Face cache, or
    `anywhere`. Raises Unreadable on a dangling link or a loop, UnsafePath on one that may not be
    followed.
    """
    if not is_link(path):
        return path
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as cause:  # RuntimeError: a loop, before Python 3.13
        reason = getattr(cause, "strerror", None) or "it is a loop"
        raise Unreadable(f"{shown(path.name)}: the link leads nowhere: {reason}") from None
    if anywhere or target.is_relative_to(root.resolve()) or _in_hub_cache(path, target):
        return target
    raise UnsafePath(
        f"{shown(path.name)}: a link that leaves the scanned folder; "
        "replace it by the file, or pass --follow-symlinks"
    )


def _in_hub_cache(path: Path, target: Path) -> bool:
    """models--org--name/snapshots/<revision>/... -> models--org--name/blobs/<hash>."""
    parents = Path(os.path.abspath(path)).parents
    cache = next((p.parent for p in parents if p.name == "snapshots"), None)
    return cache is not None and target.parent == cache.resolve() / "blobs"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the regular file `path`, never of what a link leads to.

    Raises UnsafePath for a link, folder, FIFO, socket or device (none of which it waits for), and
    Unreadable, with the words of the system, for every OSError, also of the reads within.
    """
    try:
        fd = os.open(path, FLAGS)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UnsafePath(_not_regular(path))
            yield fd
        finally:
            os.close(fd)
    except OSError as cause:
        if cause.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise UnsafePath(_not_regular(path)) from None
        raise Unreadable(f"{shown(path.name)}: cannot be read: {cause.strerror or cause}") from None


def _not_regular(path: Path) -> str:
    return f"{shown(path.name)}: not a regular file; replace it by the adapter's own file"


def identity(fd: int) -> tuple[int, ...]:
    """What tells one state of a file from another: device, inode, size, times of change in ns."""
    s = os.fstat(fd)
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def hash_file(path: Path, name: str, look: Callable[[int, int], T]) -> tuple[InputFile, T]:
    """The file with its sha256, and what `look(descriptor, size)` found before it was hashed.

    Looking comes first, so that garbage is refused before its gigabytes are read. Raises
    ChangedWhileRead when the file changed in between, and all that `opened` and `look` raise.
    """
    with opened(path) as fd:
        before = identity(fd)
        size = before[2]
        found = look(fd, size)
        digest, left = hashlib.sha256(), size
        while left and (chunk := os.read(fd, min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
            check_time()
        if left or identity(fd) != before:
            raise ChangedWhileRead(_changed(path))
    return InputFile(name, path, size, digest.hexdigest(), before), found


def read_range(file: InputFile, begin: int, end: int) -> bytearray:
    """Bytes [begin, end) of the very file that was hashed.

    Raises ChangedWhileRead when it has been replaced, truncated or written to, before or meanwhile.
    """
    with opened(file.path) as fd:
        data = pread(fd, begin, end)
        if len(data) != end - begin or identity(fd) != file.identity:
            raise ChangedWhileRead(_changed(file.path))
    return data


def read_pieces(file: InputFile, begin: int, end: int) -> Iterator[bytearray]:
    """The same in pieces of at most PIECE bytes."""
    for at in range(begin, end, PIECE):
        yield read_range(file, at, min(at + PIECE, end))


def _changed(path: Path) -> str:
    return f"{shown(path.name)}: changed while being read; run again when nothing writes to it"


def pread(fd: int, begin: int, end: int) -> bytearray:
    """Bytes [begin, end) of an open file, fewer where it ends before."""
    data = bytearray(end - begin)
    view, done = memoryview(data), 0
    while done < len(data) and (
        count := os.preadv(fd, [view[done : done + AT_ONCE]], begin + done)
    ):
        done += count
        check_time()
    view.release()
    del data[done:]
    return data
