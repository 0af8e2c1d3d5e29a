"""manifest.json: what clair wrote into a folder, and how the folder differs from it now."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clair_cli.errors import UsageError
from clair_cli.records import decode
from clair_cli.strict_json import parse_object

MANIFEST = "manifest.json"
STATEMENT = "statement.dsse.json"
"""What is signed, and the signature: written after the manifest, which therefore does not list it."""
MAX_BYTES = 64 * 2**20
LONGEST = 4096
"""Characters of a name: what Linux takes as a path."""
SHA256 = re.compile(r"[0-9a-f]{64}")
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
DEPTH = 8
"""Folders below an output's top that are looked into; clair makes two."""
AGAIN = 100
"""How often an output is looked at anew that is replaced by another meanwhile."""
Seen = TypeVar("Seen")
Differences = list[tuple[str, str]]
"""Names of files, and how each differs, in order."""
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
"""There is no such file, or it is a link or anything else that clair does not write."""


def described(folder: Path, version: str) -> bytes:
    """The manifest of every file below `folder`: name, size and sha256. Raises OSError."""
    files = [{"name": name} | facts(folder / name) for name in names(folder)]
    tool = {"name": "clair", "version": version}
    data = {"schema_version": "1.0", "tool": tool, "files": files}
    return json.dumps(data, indent=2).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Listed:
    """One file that clair wrote: its name below the folder, its size in bytes, its sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What clair wrote into a folder; no name is there twice."""

    schema_version: str
    tool: _Tool
    files: tuple[Listed, ...]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder that clair wrote, None for any other and where it cannot be read."""
    try:
        return load_manifest(folder)
    except OSError:
        return None


def load_manifest(folder: Path) -> Manifest | None:
    """The same, but raises OSError where there is one that cannot be read."""
    try:
        with _opened(folder / MANIFEST) as fd, open(fd, "rb", closefd=False) as file:
            return parse_manifest(file.read(MAX_BYTES + 1))
    except OSError as cause:
        if cause.errno in ABSENT:
            return None
        raise


def is_own(folder: Path, name: str, most: int) -> bool:
    """Whether clair wrote `folder` and in it the folder `name`, as they are now.

    All files below `folder`, and no others, are there in the sizes of the manifest; those in `name` have
    the sha256, too, and at most `most` bytes. Whoever can plant a manifest can make it fit: to read the
    other files would take time and prove nothing.
    """
    try:
        found = load_manifest(folder)
        listed = {f.name: f for f in found.files} if found else {}
        if listed.keys() != set(names(folder)) - {MANIFEST, STATEMENT}:
            return False
        if any(_size(folder / n) != f.size for n, f in listed.items()):
            return False
        own = [f for n, f in listed.items() if n.startswith(f"{name}/")]
        fits = bool(own) and sum(f.size for f in own) <= most
        return fits and all(facts(folder / f.name, f.size)["sha256"] == f.sha256 for f in own)
    except OSError:
        return False


def _size(path: Path) -> int:
    with _opened(path) as fd:
        return os.fstat(fd).st_size


def parse_manifest(data: bytes) -> Manifest | None:
    """The manifest in `data`, None where it is none that clair could have written."""
    if len(data) > MAX_BYTES:
        return None
    try:
        found = decode(Manifest, parse_object(data, MANIFEST, UsageError))
    except (UsageError, ValueError, RecursionError):
        return None
    names = {f.name for f in found.files}
    known = found.schema_version.startswith("1.")
    fine = known and found.tool.name == "clair" and len(names) == len(found.files)
    return found if fine and all(map(_possible, found.files)) else None


def _possible(file: Listed) -> bool:
    """Whether there could be such a file."""
    named = 0 < len(file.name) <= LONGEST and "\0" not in file.name
    return named and 0 <= file.size < 2**63 and SHA256.fullmatch(file.sha256) is not None


def verify(out: Path) -> list[str]:
    """How the folder differs from its manifest, one line each; empty where it does not."""
    return [f"{name}: {what}" for name, what in differences(out)]


def differences(out: Path) -> Differences:
    """Every name whose file is not what the manifest says, and how; no link is followed."""
    return compared(out)[1]


def compared(out: Path) -> tuple[int, Differences]:
    """How many files were compared with the manifest or are not in it, and those that differ."""
    return steady(out, _compared)


def _compared(out: Path) -> tuple[int, Differences]:
    data = read_manifest(out)
    if data is None:
        return 1, [(MANIFEST, "missing, or not of clair")]
    wanted = {f.name: {"size": f.size, "sha256": f.sha256} for f in data.files}
    return compared_with(out, wanted, {MANIFEST, STATEMENT}, ("in the manifest", "written"))


def compared_with(
    out: Path, wanted: Mapping[str, Mapping[str, Any]], apart: set[str], said: tuple[str, str]
) -> tuple[int, Differences]:
    """The same for files of which `wanted` says the facts, without those `apart`.

    `said` is where they are listed, and what they should be unchanged since.
    """
    try:
        there = set(names(out)) - apart
    except OSError as cause:
        where = os.path.relpath(cause.filename or out, out)
        return len(wanted) + 1, [(where, f"cannot be read: {cause.strerror}")]
    found = [(name, "missing") for name in wanted.keys() - there]
    found += [(name, f"not {said[0]}") for name in there - wanted.keys()]
    for name in wanted.keys() & there:
        try:
            found_facts = facts(out / name, wanted[name].get("size"))
            if any(found_facts[kind] != value for kind, value in wanted[name].items()):
                found.append((name, f"changed since it was {said[1]}"))
        except OSError as cause:
            found.append((name, f"cannot be read: {cause.strerror}"))
    return len(wanted.keys() | there), sorted(found)


def steady(folder: Path, look: Callable[[Path], Seen]) -> Seen:
    """What `look` finds in a folder that was the same before and after it looked.

    Another run may replace the whole folder at any moment, and then it saw some of each.
    """
    for _ in range(AGAIN):
        before, seen = _state(folder), look(folder)
        if before == _state(folder):
            break
    return seen


def _state(folder: Path) -> tuple[int, ...] | None:
    """What a folder of this name is just now; its inode's time changes as it gets the name."""
    try:
        info = os.stat(folder)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_ctime_ns


def names(folder: Path) -> list[str]:
    """Everything below `folder` but folders, as POSIX paths; links to folders, and folders deeper than
    clair makes any, are named like files and not looked into.

    Raises OSError where a folder cannot be listed.
    """
    found, waiting = [], [("", 0)]
    while waiting:
        above, depth = waiting.pop()
        with os.scandir(folder / above) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and depth < DEPTH:
                    waiting.append((f"{above}{entry.name}/", depth + 1))
                else:
                    found.append(f"{above}{entry.name}")
    return sorted(found)


def read_file(path: Path) -> bytes:
    """The first MAX_BYTES of a regular file. Raises OSError."""
    with _opened(path) as fd, open(fd, "rb", closefd=False) as file:
        return file.read(MAX_BYTES)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the regular file `path`; OSError for a link, a FIFO, or anything else."""
    fd = os.open(path, FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield fd
    finally:
        os.close(fd)


def facts(path: Path, expected: int | None = None) -> dict[str, Any]:
    """Size and sha256 of a regular file; a file of another size than `expected` is not read.

    Of one that grows meanwhile no more is read than shows it. Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    with _opened(path) as fd:
        if expected not in (None, there := os.fstat(fd).st_size):
            return {"size": there, "sha256": None}
        most = math.inf if expected is None else expected + 1
        while size < most and (chunk := os.read(fd, 2**20)):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}
