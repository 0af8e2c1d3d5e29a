"""A folder of what was computed before: entries by name, each of them whole or not there.

Law: whatever becomes of the folder, torn, filled up, read-only or gone, a run goes on as without it. An
entry is a file named by the sha256 of its key. It holds MAGIC, the sha256 of that name and of the data,
and the data. Several processes may use one folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from clair_cli.errors import SettingError
from clair_cli.settings import Settings

log = logging.getLogger(__name__)

MAGIC = b"clair-c1"
HEAD = len(MAGIC) + hashlib.sha256().digest_size
NAME = re.compile(r"[0-9a-f]{2}/(?:[0-9a-f]{62}|\.[0-9a-f]{62}\.[0-9]+-[0-9]+)")
"""Of the files that are clair's own: entries, and such as are being written. Nothing else is touched."""
READ = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
NEW = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
)
BLOCK = 4096
"""Bytes that a file takes at least, and in steps of which it grows."""
PARTS = 16
"""The size of the folder is looked at after every such part of its limit."""
MOST = 2**30
"""Bytes of one entry: the system reads as much in one call."""
USED = 60
"""Seconds after which another use of an entry is written down."""
ABANDONED = 3600
"""Seconds after which what nobody goes on writing is removed."""
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# clair's cache; safe to delete\n"
"""What tells programs of backup that a folder is a cache: Cache Directory Tagging Specification."""


class Cache:
    """Entries below `folder`, of at most `limit` bytes together. Never raises what the system says."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.room = 0
        self._lock, self._numbers = Lock(), count()
        self._used, self._kept = True, True
        self._begin()

    def _begin(self) -> None:
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if not _trusted(os.stat(self.folder)):
                self._stop("others can write to it: chmod go-w, or give a folder of your own")
                self._used = False
        except OSError as cause:
            self._used = False
            self._stop(f"cannot be used: {cause.strerror or cause}")

    def get(self, key: Any) -> bytearray | None:
        """What was kept under this key, JSON-ready; None where there is nothing, or nothing whole."""
        if not self._used:
            return None
        name = _name(key)
        path = self.folder / name
        try:
            data = _read(path, self.limit)
        except OSError:
            return None
        if data[:HEAD] == _head(name, memoryview(data)[HEAD:]):
            del data[:HEAD]
            return data
        with suppress(OSError):
            os.unlink(path)
        return None

    def put(self, key: Any, *data: bytes | bytearray | memoryview) -> None:
        """Keep the data under this key, if that is possible."""
        name, size = _name(key), HEAD + sum(map(len, data))
        if not self._kept or _blocks(size) > min(self.limit // PARTS, MOST):
            return
        with self._lock:
            try:
                if self.room < _blocks(size):
                    self._make_room()
                self.room -= _blocks(size)
                self._write(name, _head(name, *data), *data)
            except OSError as cause:
                self._stop(f"cannot be written: {cause.strerror or cause}")

    def discard(self, key: Any) -> None:
        """Forget what was kept under this key."""
        with suppress(OSError):
            os.unlink(self.folder / _name(key))

    def _stop(self, why: str) -> None:
        """Keep nothing more, and say so once."""
        if self._kept:
            log.warning("--cache %r: %s; the run goes on without", str(self.folder), why)
        self._kept = False

    def _write(self, name: str, *data: bytes | bytearray | memoryview) -> None:
        path = self.folder / name
        fresh = path.with_name(f".{path.name}.{os.getpid()}-{next(self._numbers)}")
        try:
            fd = os.open(fresh, NEW, 0o600)
        except FileNotFoundError:  # the first of its folder; DIR itself is not made anew
            with suppress(FileExistsError):
                os.mkdir(path.parent, 0o700)
            fd = os.open(fresh, NEW, 0o600)
        try:
            with open(fd, "wb") as file:
                for part in data:
                    file.write(part)
            os.replace(fresh, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh)
            raise

    def _make_room(self) -> None:
        """Remove those used longest ago, until a part of the limit is free."""
        part = self.limit // PARTS
        with suppress(FileExistsError), open(self.folder / "CACHEDIR.TAG", "xb") as file:
            file.write(TAG)
        found = sorted(_entries(self.folder))
        total = sum(size for _, size, _ in found)
        now = time.time()
        for used, size, path in found:
            left_behind = os.path.basename(path)[0] == "." and used < now - ABANDONED
            if total + part > self.limit or left_behind:
                with suppress(OSError):
                    os.unlink(path)
                total -= size
        self.room = part


_open: dict[tuple[Path, int], Cache] = {}


def cache_of(settings: Settings) -> Cache | None:
    """The cache that the settings name, one for all threads of this process; None without."""
    if settings.cache is None:
        return None
    key = (settings.cache, settings.cache_size)
    if key not in _open:
        _open[key] = Cache(*key)
    return _open[key]


def begin(settings: Settings, *kept: Path) -> None:
    """Look anew at the cache that the settings name, which may not lie in the folders `kept`.

    Nor may these lie in it: it may be removed at any moment. Raises SettingError.
    """
    if settings.cache is None:
        return
    _open.pop((settings.cache, settings.cache_size), None)
    shown = repr(str(settings.cache))
    try:
        if settings.cache.exists() and not settings.cache.is_dir():
            raise SettingError(f"cache: {shown} is no folder; give one, or a name for a new one")
        for path in kept:
            if _lies_in(settings.cache, path):
                text = f"lies in {str(path)!r}, which is read or written; give a place of its own"
                raise SettingError(f"cache: {shown} {text}")
            if _lies_in(path, settings.cache):
                text = f"may be removed at any moment, and {str(path)!r} lies in it"
                raise SettingError(f"cache: {shown} {text}; give a place of its own")
    except (OSError, ValueError, RuntimeError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise SettingError(f"cache: {shown} cannot be used: {why}") from None


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether `path`, which need not exist, is or lies in `folder`, by whatever names."""
    real, by_name = Path(os.path.realpath(path)), Path(os.path.abspath(path))
    if real.is_relative_to(os.path.realpath(folder)):
        return True
    if not folder.exists():
        return False
    own = os.stat(folder)
    above = (p for q in (real, by_name) for p in (q, *q.parents) if p.exists())
    return any(os.path.samestat(os.stat(p), own) for p in above)


def _name(key: Any) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"


def _head(name: str, *data: bytes | bytearray | memoryview) -> bytes:
    digest = hashlib.sha256(name.encode())
    for part in data:
        digest.update(part)
    return MAGIC + digest.digest()


def _trusted(found: os.stat_result) -> bool:
    """Whether only this user, or root, can have written it. Where users are no numbers, always."""
    if not hasattr(os, "geteuid"):
        return True
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid in (0, os.geteuid()) and not writable


def _read(path: Path, limit: int) -> bytearray:
    """The bytes of a regular file of this user; empty where it is none. Raises OSError."""
    fd = os.open(path, READ)
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not _trusted(found) or found.st_size > limit:
            return bytearray()
        data = bytearray(found.st_size)
        done = file.readinto(data) or 0
        if time.time() - found.st_mtime > USED:
            with suppress(OSError):
                os.utime(path)
    return data[:done] if done < len(data) else data


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _entries(folder: Path) -> Iterator[tuple[float, int, str]]:
    """When each file of clair's own was last used, the bytes that it takes, and its path."""
    names: Sequence[str] = [f"{n:02x}" for n in range(256)]
    for name in names:
        with suppress(OSError), os.scandir(folder / name) as found:
            for entry in found:
                with suppress(OSError):
                    if NAME.fullmatch(f"{name}/{entry.name}"):
                        told = entry.stat(follow_symlinks=False)
                        yield told.st_mtime, _blocks(told.st_size), entry.path
