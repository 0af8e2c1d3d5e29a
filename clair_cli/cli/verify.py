"""clair verify: whether a folder is still what clair has written."""

from __future__ import annotations

import os

from clair_cli.cli import options as o
from clair_cli.cli.streams import print_out, tell
from clair_cli.errors import UsageError
from clair_cli.output.manifest import MANIFEST, STATEMENT, compared, read_manifest
from clair_cli.output.signature import compared as signed
from clair_cli.output.signature import public_key
from clair_cli.renderers import RENDERERS
from clair_cli.renderers.verification import verdict_line
from clair_cli.results import Difference, Verification


def verify(
    folder: o.Written,
    key: o.PublicKey = None,
    format: o.Format = "text",
    quiet: o.Quiet = False,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Compare a folder that clair has written with its manifest.

    With --key it is compared with what the holder of that key has signed instead.
    """
    signer = public_key(key) if key is not None else None
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if not os.path.lexists(folder / MANIFEST):
        raise UsageError(f"{folder}: has no {MANIFEST}; give a folder that clair has written")
    count, found = compared(folder) if signer is None else signed(folder, signer)
    listed = read_manifest(folder)
    said = Verification(
        folder=str(folder),
        files=len(listed.files) if listed else 0,
        differences=tuple(Difference(name, what) for name, what in found),
        compared=count,
        signed=os.path.lexists(folder / STATEMENT),
        checked=signer is not None,
    )
    if format != "text" or not quiet:
        print_out(RENDERERS[format](said))
    if quiet and said.differences:
        tell(verdict_line(said))
    return int(bool(said.differences))
