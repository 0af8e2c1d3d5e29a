"""manifest.json: what clair wrote into a folder, and how the folder differs from it now."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
STATEMENT = "statement.dsse.json"
"""What is signed, and the signature: written after the manifest, which therefore does not list it."""
MAX_BYTES = 64 * 2**20
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
"""There is no such file, or it is a link or anything else that clair does not write."""


def described(folder: Path, version: str) -> bytes:
    """The manifest of every file below `folder`: name, size and sha256. Raises OSError."""
    files = [{"name": name} | _facts(folder / name) for name in names(folder)]
    tool = {"name": "clair", "version": version}
    data = {"schema_version": "1.0", "tool": tool, "files": files}
    return json.dumps(data, indent=2).encode() + b"\n"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that clair wrote, None for any other and where it cannot be read."""
    try:
        return load_manifest(folder)
    except OSError:
        return None


def load_manifest(folder: Path) -> dict[str, Any] | None:
    """The same, but raises OSError where there is one that cannot be read."""
    try:
        with _opened(folder / MANIFEST) as fd, open(fd, "rb", closefd=False) as file:
            data = json.loads(file.read(MAX_BYTES))
        listed = [f["name"] for f in data["files"] if (f["size"], f["sha256"])]
        fine = data["tool"]["name"] == "clair" and all(isinstance(n, str) for n in listed)
        return data if fine and len(set(listed)) == len(listed) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    except OSError as cause:
        if cause.errno in ABSENT:
            return None
        raise


def is_whole(folder: Path) -> bool:
    """Whether clair wrote the folder, and it is still as it was written: nothing more, nothing less."""
    return read_manifest(folder) is not None and not differences(folder)


def verify(out: Path) -> list[str]:
    """How the folder differs from its manifest, one line each; empty where it does not."""
    return [f"{name}: {what}" for name, what in differences(out)]


def differences(out: Path) -> list[tuple[str, str]]:
    """Every name whose file is not what the manifest says, and how; no link is followed."""
    data = read_manifest(out)
    if data is None:
        return [(MANIFEST, "missing, or not of clair")]
    wanted = {f["name"]: {"size": f["size"], "sha256": f["sha256"]} for f in data["files"]}
    try:
        there = set(names(out)) - {MANIFEST}
    except OSError as cause:
        where = os.path.relpath(cause.filename or out, out)
        return [(where, f"cannot be read: {cause.strerror}")]
    found = [(name, "missing") for name in wanted.keys() - there]
    found += [(name, "not in the manifest") for name in there - wanted.keys()]
    for name in wanted.keys() & there:
        try:
            if _facts(out / name) != wanted[name]:
                found.append((name, "changed since it was written"))
        except OSError as cause:
            found.append((name, f"cannot be read: {cause.strerror}"))
    return sorted(found)


def names(folder: Path) -> list[str]:
    """Everything below `folder` but folders, links to folders included, as POSIX paths.

    Raises OSError where a folder cannot be listed.
    """

    def stop(cause: OSError) -> None:
        raise cause

    found = []
    for top, folders, files in os.walk(folder, onerror=stop):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        found += [Path(top, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


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


def _facts(path: Path) -> dict[str, Any]:
    """Size and sha256 of a regular file. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with _opened(path) as fd:
        while chunk := os.read(fd, 2**20):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}
