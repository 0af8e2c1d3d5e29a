"""What was sketched, fitted and checked: a line or a few, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Sequence

from clair_cli._version import __version__
from clair_cli.records import encode
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import many, percent
from clair_cli.report import VERDICTS
from clair_cli.results import Checked, Fitted, SketchWritten

HEAD = {"schema_version": "1.0", "tool": {"name": "clair", "version": __version__}}


def as_json(found: SketchWritten | Fitted | Checked) -> str:
    """One JSON document."""
    return json.dumps(HEAD | encode(found), indent=1) + "\n"


def written_as_text(found: SketchWritten) -> str:
    """What it is of, how large it is, and a line for each thing that is not in it."""
    what = f"{many(found.modules, 'module')}, size {found.size}, seed {found.seed}"
    first = f"sketch of {found.client}: {what}, {_size(found.bytes)}: {found.path}"
    return _joined([first, *(f"  not in it: {said}" for said in found.left_out)])


def fitted_as_text(found: Fitted) -> str:
    """What it is of, the verdicts on its clients, and what they cannot tell apart."""
    what = f"{many(found.modules, 'module')}, size {found.size}, seed {found.seed}"
    who = many(found.counts["clients"] - found.counts["broken"], "client")
    counts = ", ".join(f"{found.counts[v]} {v}" for v in VERDICTS)
    lines = [f"reference of {who}: {what}, {_size(found.bytes)}: {found.path}", f"  {counts}"]
    if found.limit is not None:
        margin = "" if found.margin is None else f", margin {found.margin:.1f}"
        error = percent(found.sketch_error)
        lines.append(f"  limit {found.limit:.1f}{margin}; inner products are off by {error}")
    return _joined([*lines, *(f"  note: {said}" for said in found.unsure)])


def checked_as_text(found: Checked, verbose: bool = False) -> str:
    """The verdict on one line; with its reasons and all remarks where `verbose`."""
    said = found.verdict
    reasons = [f"{r.code} {r.message}" for r in said.reasons]
    lines = [f"{said.client}: {_verdict(found)}"]
    if found.in_place_of:
        names = ", ".join(found.in_place_of)
        lines.append(f"  in place of {names}, of the same name or made of the same file")
    if said.verdict != "broken" and verbose:
        lines += [f"  {text}" for text in reasons]
        lines += [f"  note: {r.code} {r.message}" for r in found.findings]
    if found.updated:
        lines.append(f"  is in {found.against} now")
    return _joined(lines)


def _verdict(found: Checked) -> str:
    said = found.verdict
    if said.verdict == "broken":
        return f"broken: {said.reasons[0].code} {said.reasons[0].message}"
    if said.verdict is None:
        why = f"{found.findings[-1].code} {found.findings[-1].message}" if found.findings else ""
        return f"no verdict: {why}"
    points = "" if said.score is None else f" {said.score:.1f}"
    limit = "" if said.limit is None else f" (limit {said.limit:.1f})"
    decided = f"; accepted: {said.accepted.reason}" if said.accepted is not None else ""
    return f"{said.verdict}{points}{limit}{decided}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{safe_text(line)}\n" for line in lines)
