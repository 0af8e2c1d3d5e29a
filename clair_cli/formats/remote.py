"""Objects of a store, as files of a scratch folder: each is fetched once, whole, when it is first read.

The folder that stands for a URL holds a hole for every object: a file of its name and size, without
contents. What is looked at by name alone is never fetched. A hole has the sticky bit, which means
nothing of a file. What has arrived takes its name in one step. Any process that knows the origin of a
file can fetch it again, on any machine.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clair_cli.cohort import Origin
from clair_cli.errors import (
    AdapterError,
    ChangedWhileRead,
    ClairError,
    Unreadable,
    UnsafePath,
    UsageError,
    in_one_line,
)
from clair_cli.formats.deadline import check_time
from clair_cli.output.folders import GLOBAL
from clair_cli.output.publish import MANIFEST, STAGED
from clair_cli.report import Reason

URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.DOTALL)
"""A path that was a URL has lost one of its slashes."""
MISSING = "needs the library fsspec; install clair-cli[remote]"
HOLE = stat.S_ISVTX
PREFIX = "clair-fetched-"
DEEPEST = 8
"""Folders and file below the URL; of what lies deeper only the folders above are known."""
LONGEST = 255
"""Bytes of a name."""
CLAIMED = 2**40
"""Bytes that a hole is given at most, whatever its object is said to have."""
PIECE = 2**23
"""Bytes that are asked for at a time."""
SAID = 5
"""Objects that cannot be files of which each is named."""


@dataclass(frozen=True, slots=True)
class Objects:
    """Some objects below a URL, by their names from there on, with their sizes."""

    origin: Origin
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where clients lie: the folder to look at, its name in the report, and what it stands for."""

    folder: Path
    name: str
    objects: Objects | None = None
    findings: tuple[Reason, ...] = ()

    def of(self, entries: Mapping[str, str], shared: str) -> dict[str, Objects]:
        """Entry -> the objects that it may need: its own, those of its stem, and what all share.

        `entries` are the names of clients' folders and files, with their stems.
        """
        if self.objects is None:
            return {}
        tops: dict[str, dict[str, int]] = {}
        beside: dict[str, dict[str, int]] = {}
        for name, size in self.objects.sizes.items():
            top, slash, _ = name.partition("/")
            tops.setdefault(top, {})[name] = size
            if not slash:
                beside.setdefault(os.path.splitext(top)[0], {})[name] = size
        common = tops.get(shared, {})
        return {
            entry: Objects(
                self.objects.origin, {**common, **beside.get(stem, {}), **tops.get(entry, {})}
            )
            for entry, stem in entries.items()
        }


def url_of(path: Path | str) -> str | None:
    """The URL that `path` is; None where it is a path of this machine.

    Raises UsageError for one that holds more than a place: credentials are never part of a URL here.
    """
    found = URL.fullmatch(str(path))
    if found is None or os.path.lexists(path):
        return None
    url = f"{found[1]}://{found[2]}".rstrip("/")
    if "@" in urlsplit(url).netloc or "?" in url:
        text = "a URL with a user or a query; credentials belong into the environment"
        raise UsageError(f"{found[1]}://...: {text}")
    if "::" in url:
        raise UsageError(f"{url}: several stores in one URL; give the one that holds the clients")
    return url


@contextmanager
def at_hand(path: Path, most: int) -> Iterator[Place]:
    """The place that `path` names. That of a URL is a scratch folder, which is gone when the block ends.

    Objects beyond `most` bytes are never fetched. Raises UsageError where the URL cannot be listed.
    """
    url = url_of(path)
    if url is None:
        yield Place(path, str(path))
        return
    found, findings = _fitting(_listed(url))
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=PREFIX)))
    STAGED.add(folder)
    objects = Objects(Origin(url, folder, most), found)
    try:
        lay_out(objects)
        _fetch_own_mean(objects)
        yield Place(folder, url, objects, findings)
    except ClairError as error:
        if str(folder) not in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), url)) from None
    finally:
        discard(folder)
        STAGED.discard(folder)


def _fetch_own_mean(objects: Objects) -> None:
    """What tells whether a mean beside the clients is one that clair wrote: it is no client then."""
    own = [n for n in objects.sizes if n == MANIFEST or n.startswith(f"{GLOBAL}/")]
    for name in own if MANIFEST in own else ():
        with suppress(AdapterError):
            arrive(objects.origin.root / name)


def discard(folder: Path) -> None:
    """Remove a scratch folder of clair's own, where there is one on this machine."""
    if folder.name.startswith(PREFIX) and _is_own(folder):
        shutil.rmtree(folder, ignore_errors=True)
    _origins.pop(folder, None)


# --- which objects there are


def _listed(url: str) -> dict[str, int]:
    store, top = _store(url)
    try:
        store.invalidate_cache()  # another run of this process may have listed an earlier state
        found = store.find(top, detail=True)
    except Exception as error:
        raise UsageError(f"{url}: cannot be listed: {told(error)}") from None
    sizes = {str(n): int(o.get("size") or 0) for n, o in found.items() if o.get("type") == "file"}
    below = {n.removeprefix(f"{top}/"): size for n, size in sizes.items() if n != top}
    if not below:
        text = "is one object" if sizes else "no object below it"
        raise UsageError(f"{url}: {text}; give the part of the names that all clients share")
    return below


def _fitting(found: Mapping[str, int]) -> tuple[dict[str, int], tuple[Reason, ...]]:
    """The objects that can be files below a folder, and remarks on the others.

    A store takes any name, `../x` included, and one that is a folder of others as well.
    """
    named = {n: size for n, size in found.items() if not n.endswith("/")}  # marks of empty folders
    fit = {n for n in named if _is_path(n)}
    folders = {str(p) for n in fit for p in Path(n).parents}
    odd = [n for n in named if n not in fit or (n in folders and named[n])]
    texts = [
        f"{n[:200]!r}: an object that no file can be called like; not read" for n in odd[:SAID]
    ]
    if len(odd) > SAID:
        texts.append(f"{len(odd) - SAID} more objects that no file can be called like; not read")
    kept = {n: size for n, size in named.items() if n in fit and n not in folders}
    return kept, tuple(Reason(UnsafePath.code, text) for text in texts)


def _is_path(name: str) -> bool:
    parts = name.split("/")
    try:
        lengths = [len(os.fsencode(p)) for p in parts]
    except UnicodeEncodeError:
        return False
    plain = not {"", ".", ".."} & set(parts) and "\0" not in name
    return plain and max(lengths) <= LONGEST


# --- fetching

_origins: dict[Path, Origin] = {}
"""The scratch folders that this process knows, and what each stands for."""


def lay_out(objects: Objects) -> None:
    """Make a hole for every object that is not there. Raises UnsafePath, Unreadable."""
    origin = objects.origin
    _origins[origin.root] = origin
    with _written(origin.root.name):
        for name, size in objects.sizes.items():
            parts = name.split("/")
            folder = origin.root.joinpath(*parts[:-1][:DEEPEST])
            _make(folder, origin.root)
            if len(parts) <= DEEPEST:
                _hole(folder / parts[-1], size)


def _hole(path: Path, size: int) -> None:
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchmod(fd, 0o600 | HOLE)
            os.ftruncate(fd, min(size, CLAIMED))
        finally:
            os.close(fd)


def _make(folder: Path, root: Path) -> None:
    """The folder below `root`, which is this user's alone."""
    with suppress(FileExistsError):
        os.mkdir(root, 0o700)
    if not _is_own(root):
        raise UnsafePath(f"{root}: somebody else's folder, where objects were to be fetched to")
    os.makedirs(folder, mode=0o700, exist_ok=True)


def _is_own(folder: Path) -> bool:
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    alone = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return alone and found.st_uid == os.geteuid()


def origin_of(path: Path) -> Origin | None:
    """What the file stands for, where this process knows that it stands for an object."""
    return next((o for root, o in _origins.items() if path.is_relative_to(root)), None)


def arrive(path: Path, origin: Origin | None = None, size: int | None = None) -> None:
    """See that what an object holds is in the file `path`; of any other file nothing is done.

    `origin` and `size` are for who has them from a file that was read on another machine. Raises
    Unreadable, ChangedWhileRead, LimitExceeded after the deadline, UsageError where the disk is full.
    """
    origin = origin or (origin_of(path) if _origins else None)
    if origin is None or _is_here(path):
        return
    with _written(path.name):
        _make(path.parent, origin.root)
        with _alone_in(path.parent):
            if not _is_here(path):
                size = os.lstat(path).st_size if size is None else size
                if size <= origin.most:
                    _fetch(origin, path, size)


def _is_here(path: Path) -> bool:
    try:
        return not os.lstat(path).st_mode & HOLE
    except OSError:
        return False


def _fetch(origin: Origin, path: Path, size: int) -> None:
    store, top = _store(origin.url)
    key = f"{top}/{path.relative_to(origin.root).as_posix()}"
    fresh = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with open(fresh, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as target:
            for data in _pieces(store, key, path.name, size):
                target.write(data)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _pieces(store: Any, key: str, name: str, size: int) -> Iterator[bytes]:
    """The object, whose size is still that of the list. A ranged read asks for one version of it."""
    try:
        with store.open(key, "rb", block_size=PIECE, cache_type="readahead") as source:
            left = size if source.size == size else -1
            while left > 0 and (data := source.read(min(left, PIECE))):
                left -= len(data)
                check_time()
                yield data
    except ClairError:
        raise
    except Exception as error:
        raise Unreadable(f"{name}: cannot be fetched: {told(error)}") from None
    if left:
        text = "changed since it was listed; run again when nothing writes to it"
        raise ChangedWhileRead(f"{name}: {text}")


@contextmanager
def _written(name: str) -> Iterator[None]:
    """What goes wrong on this machine's own disk is no client's failure, where that is full."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "no room for the fetched objects; name another folder with TMPDIR"
            raise UsageError(f"{tempfile.gettempdir()}: {text}") from None
        raise Unreadable(f"{name}: cannot be fetched: {cause.strerror or cause}") from None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process of this machine fetches into the folder meanwhile."""
    import fcntl

    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# --- the store


@lru_cache(maxsize=8)
def _store(url: str) -> tuple[Any, str]:
    """The file system of fsspec behind a URL, and the name of the URL in it. Raises UsageError."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UsageError(f"{url}: {MISSING}") from None
    try:
        store, top = url_to_fs(url)
    except ImportError as error:
        raise UsageError(f"{url}: {told(error)}; see clair-cli[remote]") from None
    except Exception as error:
        raise UsageError(f"{url}: cannot be opened: {told(error)}") from None
    return store, str(top).rstrip("/")


def told(error: BaseException) -> str:
    """What an error of a library says, without what a signed URL in it would give away."""
    said = re.sub(r"\?[^\s'\"]*", "?...", in_one_line(error))
    return re.sub(r"//[^/\s@]*@", "//", said)
