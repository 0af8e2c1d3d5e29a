"""How a folder differs from its manifest: one line per file, and the bottom line."""

from __future__ import annotations

import json

from clair_cli._version import __version__
from clair_cli.records import encode
from clair_cli.renderers.safe import safe_text
from clair_cli.results import Verification


def as_json(found: Verification) -> str:
    """One JSON document with a final newline."""
    head = {"schema_version": "1.0", "tool": {"name": "clair", "version": __version__}}
    return json.dumps(head | encode(found), indent=1) + "\n"


def as_text(found: Verification) -> str:
    """Every difference, then whether there is one."""
    lines = [f"{safe_text(d.name)}: {safe_text(d.what)}" for d in found.differences]
    if found.differences:
        lines.append(f"FAIL: {len(found.differences)} of {found.compared} files differ")
    elif found.checked:
        lines.append(f"PASS: {found.compared} files as they were signed")
    else:
        lines.append(f"PASS: {found.files} files as they were written")
        if found.signed:
            lines.append("note: there is a signature, which --key PUBLIC checks")
    return "".join(f"{line}\n" for line in lines)
