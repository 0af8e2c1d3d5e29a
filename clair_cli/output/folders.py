"""What the folders of an output are called."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from clair_cli.errors import UsageError
from clair_cli.output.manifest import MANIFEST, STATEMENT

GLOBAL = "global"
"""Folder of the mean of the benign clients in an output."""
REPORT, SELECTION = "report.json", "selection.json"
DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
"""File names that Windows keeps for itself, with whatever ending."""
RESERVED = {GLOBAL, REPORT, SELECTION, MANIFEST, STATEMENT}
"""All that clair itself writes at the top of an output."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")
HASHED_NAME = re.compile(r"client-[0-9a-f]{64}")


def folder_names(clients: Sequence[str]) -> dict[str, str]:
    """Client id -> the name of its folder, which no other client's is, on any file system.

    It is the id where that is plain, reserved for nobody, and no other plain id in upper or lower
    case; else client- and the sha256 of the id. Plain names of that very form are hashed, too, so that
    the two kinds never meet; all are ASCII, which has one Unicode form. Raises UsageError where two
    clients have one id.
    """
    if twice := sorted(c for c, n in Counter(clients).items() if n > 1):
        raise UsageError(f"{len(twice)} ids stand for several clients, {twice[0]!r} first; rename")
    keys = Counter(c.lower() for c in clients if is_plain(c))
    return {c: c if is_plain(c) and keys[c.lower()] == 1 else hashed_name(c) for c in clients}


def is_plain(client: str) -> bool:
    """Whether a folder may be called so on every file system, and is nothing that clair writes."""
    key = client.lower()
    taken = key in RESERVED or key.partition(".")[0] in DEVICES or HASHED_NAME.fullmatch(key)
    return bool(PLAIN_NAME.fullmatch(client)) and not taken


def hashed_name(client: str) -> str:
    """The folder of a client whose id cannot be one."""
    return f"client-{hashlib.sha256(client.encode('utf-8', 'surrogatepass')).hexdigest()}"


def strength_folder(strength: float | str) -> str:
    """The folder of one strength: strength-0.25, strength-auto."""
    return f"strength-{strength}" if isinstance(strength, str) else f"strength-{strength:.6g}"
