"""Where a client's plain matrices lie: one .safetensors or .npz file, flat or in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from clair_cli.cohort import natural_key
from clair_cli.errors import Unreadable, Unsupported
from clair_cli.formats.files import follow, opened, shown
from clair_cli.formats.layout import (
    IGNORED,
    PICKLES,
    Layout,
    check_folder,
    find_pickles,
    is_replicate,
    pickle_notes,
    pickle_only,
)
from clair_cli.settings import Settings

SUFFIXES = (".safetensors", ".npz")
KINDS = "a .safetensors or .npz file"


def locate_plain(path: Path, root: Path | None, settings: Settings) -> Layout:
    """The file of one client: `path`, or the only one of its kind in the folder `path`.

    `root` is the folder that was scanned; None if `path` was named by the user. Raises Unreadable
    where there is none or more than one, PickleFound, Unsupported or UnsafePath.
    """
    anywhere = settings.follow_symlinks
    try:
        if not os.path.isdir(path):
            return _flat(path, root or path.parent, anywhere)
        if root is not None:
            check_folder(path, anywhere)
        return _folder(path, root or path, anywhere)
    except (OSError, ValueError) as cause:
        raise Unreadable(f"{shown(path.name)}: cannot be read: {cause}") from None


def _flat(path: Path, root: Path, anywhere: bool) -> Layout:
    if path.suffix in PICKLES:
        raise pickle_only(path.name)
    target = follow(path, root, anywhere)
    if path.suffix not in SUFFIXES:
        with opened(target):  # a special file or a missing one is refused as such
            text = f"{shown(path.name)}: not {KINDS}"
        raise Unsupported(f"{text}; convert it, or move it out of the folder")
    twins = [path.stem + s for s in PICKLES if (path.parent / (path.stem + s)).exists()]
    return Layout(path, ((path.name, target),), None, pickle_notes(twins))


def _folder(path: Path, root: Path, anywhere: bool) -> Layout:
    names = sorted(os.listdir(path))
    found = [n for n in names if n.endswith(SUFFIXES) and not IGNORED.fullmatch(n)]
    if not found and (only := find_pickles(names)):
        raise pickle_only(only[0])
    if not found and (more := [n for n in names if is_replicate(path / n)]):
        chosen = path / min(more, key=natural_key)
        check_folder(chosen, anywhere)
        return _folder(chosen, root, anywhere)
    if not found:
        raise Unreadable(f"{shown(path.name)}: no matrices here; expected {KINDS}")
    if len(found) > 1:
        text = f"{len(found)} files ({shown(found[0])}, {shown(found[1])}, ...), expected one"
        raise Unreadable(f"{shown(path.name)}: {text}; put all tensors into one, or one per client")
    target = follow(path / found[0], root, anywhere)
    return Layout(path, ((found[0], target),), None, pickle_notes(find_pickles(names)))
