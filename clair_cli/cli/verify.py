"""clair verify: whether a folder is still what clair has written."""

from __future__ import annotations

import os
from pathlib import Path

from clair_cli.cli import options as o
from clair_cli.cli.streams import print_out
from clair_cli.errors import UsageError
from clair_cli.output.manifest import MANIFEST, differences, read_manifest
from clair_cli.renderers import RENDERERS
from clair_cli.results import Difference, Verification


def verify(folder: o.Written, format: o.Format = "text", quiet: o.Quiet = False) -> int:
    """Compare a folder that clair has written with its manifest."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if not os.path.lexists(folder / MANIFEST):
        raise UsageError(f"{folder}: has no {MANIFEST}; give a folder that clair has written")
    found = _compared(folder)
    if format != "text" or not quiet:
        print_out(RENDERERS[format](found))
    return int(bool(found.differences))


def _compared(folder: Path) -> Verification:
    found = tuple(Difference(name, what) for name, what in differences(folder))
    listed = read_manifest(folder)
    return Verification(str(folder), len(listed.files) if listed else 0, found)
