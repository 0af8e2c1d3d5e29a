"""What was written as a sketch."""

from __future__ import annotations

import json

from clair_cli._version import __version__
from clair_cli.records import encode
from clair_cli.renderers.safe import safe_text
from clair_cli.results import SketchWritten

HEAD = {"schema_version": "1.0", "tool": {"name": "clair", "version": __version__}}


def written_as_text(found: SketchWritten) -> str:
    """What it is of, how large it is, and a line for each thing that is not in it."""
    text = (
        f"sketch of {found.client}: {found.modules} modules, size {found.size}, seed {found.seed}"
    )
    lines = [f"{text}, {found.bytes / 1e6:.2f} MB: {found.path}"]
    lines += [f"  not in it: {said}" for said in found.left_out]
    return "".join(f"{safe_text(line)}\n" for line in lines)


def as_json(found: SketchWritten) -> str:
    """One JSON document."""
    return json.dumps(HEAD | encode(found), indent=1) + "\n"
