"""Where the file of an operator's decisions is: above the working folder, never among adapters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

FILE, PROJECT = "clair.toml", "pyproject.toml"
"""The file itself, and the one that may have a table for clair."""
TOP = ".git"
"""What a folder holds at which the search ends."""


def find(among: Sequence[Path], has_table: Callable[[Path], bool]) -> tuple[Path | None, list[str]]:
    """The nearest file from the working folder upwards, and what is to be said of others.

    No file counts that lies in a folder of `among` or below, or is a link to one there: adapters come
    from strangers. Nor one that belongs to another user, as anybody can put one into /tmp. The search
    ends at a repository's top, or at the root. Of two in one folder clair.toml counts.
    """
    try:
        start = Path.cwd()
        users = {0, os.geteuid(), os.stat(start).st_uid}
    except OSError:  # the folder has been removed
        return None, []
    places = [Path(os.path.realpath(p)) for p in among]
    ignored = [str(p / FILE) for p in among if os.path.isfile(p / FILE)]
    told = [_among(path) for path in ignored]
    seen = {os.path.realpath(path) for path in ignored}
    for folder in (start, *start.parents):
        strange = lies_among(folder, places)
        for path in (folder / FILE, folder / PROJECT):
            if not os.path.isfile(path) or (strange and path.name == PROJECT):
                continue
            if strange or lies_among(path, places):
                told += [] if os.path.realpath(path) in seen else [_among(str(path))]
            elif os.stat(path).st_uid not in users:  # nor is it read: it may be no TOML at all
                told += [_strangers(str(path))] if path.name == FILE else []
            elif path.name == FILE or has_table(path):
                return path, told
        if not strange and os.path.lexists(folder / TOP):
            break
    return None, told


def lies_among(path: Path, places: Sequence[Path]) -> bool:
    """Whether it is, or leads to, something in one of the folders `places`, which have no links."""
    return any(Path(os.path.realpath(path)).is_relative_to(place) for place in places)


def _strangers(path: str) -> str:
    text = f"{path!r} belongs to another user, and is not obeyed"
    return f"{text}; name it with --config if you trust it"


def _among(path: str) -> str:
    return f"{path!r} lies among the adapters, and is not obeyed"
