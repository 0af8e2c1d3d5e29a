"""Files from strangers: regular ones only, links by rule, read without mmap, checked for change.

A file is opened for the first time folder by folder, each relative to the descriptor of the one above
and none of them a link, whatever names are exchanged meanwhile. Then its bytes are hashed. Later it is
opened by name, and must be the very file that was hashed: of one device, inode, size and time of
writing. Where nothing but the inode's own time differs, as after a new hard link, it is hashed again.
Machines that share a file system have numbers of their own for it: on another machine than the one that
hashed the file the device counts for nothing. What was fetched is hashed again on every machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from clair_cli.cache import Cache
from clair_cli.cohort import InputFile
from clair_cli.errors import ChangedWhileRead, Unreadable, UnsafePath
from clair_cli.formats.deadline import check_time
from clair_cli.formats.remote import arrive, origin_of
from clair_cli.here import machine

FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
FOLDER = sum(getattr(os, n, 0) for n in ("O_PATH", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"))
BY_DESCRIPTOR = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
"""Not so on Windows, where files are opened by name: nothing else differs."""
CHUNK = 2**20
TICK = 20_000_000
"""Nanoseconds within which two changes of a file may bear the same time."""
REST = 2_000_000_000
"""Nanoseconds within which two changes of a file bear the same time on the coarsest of file systems."""
SHA256 = re.compile(r"[0-9a-f]{64}")
TRIES = 3
"""How often a file is hashed whose inode changes, but not its contents, before it is given up."""
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
    """`path`, or where it leads if it is a link to a file that may be followed: without links in it.

    A link may lead to a file below `root`, from snapshots/ to blobs/ of one Hugging Face cache, or
    `anywhere`. What is not a link itself is taken to lie below `root` as its name says: `hash_file`
    sees to that. Raises Unreadable on a dangling link or a loop, UnsafePath on one that may not be
    followed.
    """
    top = root.resolve()
    if not anywhere and not is_link(path):
        inside = path.is_relative_to(root)
        return top / path.relative_to(root) if inside else path.parent.resolve() / path.name
    try:
        target = path.resolve(strict=is_link(path))
    except (OSError, RuntimeError) as cause:  # RuntimeError: a loop, before Python 3.13
        reason = getattr(cause, "strerror", None) or "it is a loop"
        raise Unreadable(f"{shown(path.name)}: the link leads nowhere: {reason}") from None
    if anywhere or target.is_relative_to(top) or _in_hub_cache(path, target):
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
def opened(path: Path, by_descriptor: bool = False) -> Iterator[int]:
    """A descriptor of the regular file `path`, never of what a link leads to.

    With `by_descriptor` no folder above it may be a link either. Raises UnsafePath for a link, folder,
    FIFO, socket or device (none of which it waits for), ChangedWhileRead where a folder above has
    become a link, and Unreadable, with the words of the system, for every OSError, also of the reads
    within.
    """
    try:
        fd = _descend(path) if by_descriptor and BY_DESCRIPTOR else os.open(path, FLAGS)
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


def _descend(path: Path) -> int:
    """A descriptor of `path`, reached from the top of the file system without following a link."""
    top, *folders, name = path.absolute().parts
    at = os.open(top, FOLDER)
    try:
        for folder in folders:
            try:
                below = os.open(folder, FOLDER, dir_fd=at)
            except OSError as cause:
                if cause.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise ChangedWhileRead(_changed(path)) from None
                raise
            os.close(at)
            at = below
        return os.open(name, FLAGS, dir_fd=at)
    finally:
        os.close(at)


def _not_regular(path: Path) -> str:
    return f"{shown(path.name)}: not a regular file; replace it by the adapter's own file"


def identity(fd: int) -> tuple[int, ...]:
    """What tells one state of a file from another: device, inode, size, times of change in ns.

    The last is that of the inode, which nobody can set, and which also a new hard link changes.
    """
    s = os.fstat(fd)
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def hash_file(
    path: Path, name: str, look: Callable[[int, int], T], cache: Cache | None = None
) -> tuple[InputFile, T]:
    """The file with its sha256, and what `look(descriptor, size)` found before it was hashed.

    A file whose hash is in the `cache`, and whose identity has not changed since, is not hashed again.
    `path` has no links in it, as `follow` gives it. Looking comes first, so that garbage is refused
    before its gigabytes are read. Raises ChangedWhileRead when the file changed in between, and all
    that `opened` and `look` raise.
    """
    arrive(path)
    with opened(path, by_descriptor=True) as fd:
        for _ in range(TRIES):
            before = _at_rest(fd)
            found = look(fd, before[2])
            digest = _known_sha256(fd, path, before, cache)
            after = identity(fd)
            if digest is not None and after == before:
                where = machine(), origin_of(path)
                return InputFile(name, path, before[2], digest, before, *where), found
            if not _same_but_for_inode(before, after):
                break
    raise ChangedWhileRead(_changed(path))


def _at_rest(fd: int) -> tuple[int, ...]:
    """The identity of a file, once whatever is written to it from now on gives it another time."""
    found = identity(fd)
    age = time.time_ns() - found[-1]
    if 0 <= age < TICK:
        time.sleep((TICK - age) / 1e9)
        return identity(fd)
    return found


def _sha256(fd: int, size: int) -> str | None:
    """Of the first `size` bytes; None where there are fewer."""
    digest, left = hashlib.sha256(), size
    os.lseek(fd, 0, os.SEEK_SET)
    while left and (chunk := os.read(fd, min(CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
        check_time()
    return None if left else digest.hexdigest()


def _known_sha256(fd: int, path: Path, state: tuple[int, ...], cache: Cache | None) -> str | None:
    """Of an open file in this state: from the cache, or read and kept there.

    Kept is that of a file whose time of change nobody can set, and which has been at rest for REST.
    """
    at_rest = os.name == "posix" and time.time_ns() - state[-1] >= REST
    if cache is None or not at_rest:
        return _sha256(fd, state[2])
    key = ["sha256", str(path), *state]
    kept = bytes(cache.get(key) or b"").decode(errors="replace")
    if SHA256.fullmatch(kept):
        return kept
    digest = _sha256(fd, state[2])
    if digest is not None and identity(fd) == state:
        cache.put(key, digest.encode())
    return digest


def _same_but_for_inode(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[:-1] == other[:-1]


def read_range(file: InputFile, begin: int, end: int) -> bytearray:
    """Bytes [begin, end) of the very file that was hashed.

    Raises ChangedWhileRead when it has been replaced, truncated or written to, before or meanwhile.
    """
    arrive(file.path, file.origin, file.size)
    with opened(file.path) as fd:
        for _ in range(TRIES):
            state = _proved(fd, file)
            data = pread(fd, begin, end)
            if len(data) == end - begin and identity(fd) == state:
                return data
    raise ChangedWhileRead(_changed(file.path))


def _proved(fd: int, file: InputFile) -> tuple[int, ...]:
    """The state of an open file whose contents are those that were hashed. Raises ChangedWhileRead."""
    now = identity(fd)
    if now == file.identity or now in file.later:
        return now
    if file.machine != machine() and now[1:] == file.identity[1:]:
        return now  # on a shared file system, which has another number here
    same = file.origin is not None or _same_but_for_inode(now, file.identity)
    same = same and len(file.later) < TRIES
    if not same or _sha256(fd, file.size) != file.sha256:
        raise ChangedWhileRead(_changed(file.path))
    file.later.add(now)  # if it changes from here on, its identity will differ
    return now


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
