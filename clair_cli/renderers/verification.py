"""How a folder differs from its manifest: one line per file, and the bottom line."""

from __future__ import annotations

import json

from clair_cli._version import __version__
from clair_cli.output.manifest import STATEMENT
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
    lines.append(verdict_line(found))
    if found.signed and not (found.differences or found.checked):
        lines.append("note: there is a signature, which --key PUBLIC checks")
    return "".join(f"{line}\n" for line in lines)


def verdict_line(found: Verification) -> str:
    """The one line that says it all: without a signature that holds, why it does not."""
    differ = [d for d in found.differences if d.name != STATEMENT]
    unsigned = [d for d in found.differences if d.name == STATEMENT]
    if unsigned:
        others = found.compared - len(unsigned)
        rest = f"{len(differ)} of {others} files differ" if differ else f"{others} files as written"
        return f"FAIL: {STATEMENT} is {safe_text(unsigned[0].what)}; {rest}"
    if differ:
        return f"FAIL: {len(differ)} of {found.compared} files differ"
    if found.checked:
        return f"PASS: {found.compared} files as they were signed"
    return f"PASS: {found.files} files as they were written"
