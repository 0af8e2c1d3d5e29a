"""What the folders of an output are called."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from clair_cli.output.manifest import MANIFEST

GLOBAL = "global"
"""Folder of the mean of the benign clients in an output."""
DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
"""File names that Windows keeps for itself."""
SELECTION = "selection.json"
"""What clair select writes beside the chosen adapters."""
RESERVED = {GLOBAL, "report.json", MANIFEST, SELECTION} | DEVICES
PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")


def folder_names(clients: Sequence[str]) -> dict[str, str]:
    """A folder name per client: its id where that is plain and alone, else client- and a hash of it."""
    folded = [c.casefold() for c in clients]
    names = {}
    for client, key in zip(clients, folded, strict=True):
        plain = PLAIN_NAME.fullmatch(client) and key not in RESERVED and folded.count(key) == 1
        digest = hashlib.sha256(os.fsencode(client)).hexdigest()[:8]
        names[client] = client if plain else f"client-{digest}"
    return names


def strength_folder(strength: float | str) -> str:
    """The folder of one strength: strength-0.25, strength-auto."""
    return f"strength-{strength}" if isinstance(strength, str) else f"strength-{strength:.6g}"
