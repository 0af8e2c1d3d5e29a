"""Names of what is being written, and the removal of what killed processes left under them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path

from clair_cli.output.manifest import read_manifest

STALE = 24 * 3600
"""Seconds without a change after which what a dead process was writing is removed."""

log = logging.getLogger(__name__)


def passing(path: Path) -> Path:
    """A new name beside `path` that says which process of which host writes under it."""
    return path.parent / f".{path.name}.clair-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def aside(staging: Path) -> Path:
    """Where what was at OUT waits until the new output is there, if the two cannot be exchanged."""
    return staging.with_name(staging.name + ".old")


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def sweep(path: Path) -> None:
    """Remove what processes of this host that are no more left beside `path` a day ago or earlier.

    Nothing else: no other name, no link, no other user's, nothing that has changed since, and no
    old output while there is no new one. What cannot be removed is left.
    """
    own = rf"\.{re.escape(path.name)}\.clair-{_host()}-(\d{{1,9}})-[0-9a-f]{{12}}(\.old)?"
    with suppress(OSError):
        for name in os.listdir(path.parent):
            match, found = re.fullmatch(own, name), path.parent / name
            if match is None or _alive(int(match[1])) or not _stale(found):
                continue
            if match[2] is None or read_manifest(path) is not None:
                log.info("%s: left by a process that is no more; removed", found)
                _remove(found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is another user's
    return True


def _stale(top: Path) -> bool:
    """Whether this is a folder or file of this user in which nothing has changed for a day."""
    try:
        info = os.lstat(top)
        if info.st_uid != os.getuid() or stat.S_IFMT(info.st_mode) not in (
            stat.S_IFDIR,
            stat.S_IFREG,
        ):
            return False
        inside = [os.path.join(at, n) for at, ds, fs in os.walk(top) for n in (*ds, *fs)]
        newest = max(os.lstat(path).st_mtime for path in (str(top), *inside))
    except OSError:  # somebody is removing it just now
        return False
    return time.time() - newest > STALE
