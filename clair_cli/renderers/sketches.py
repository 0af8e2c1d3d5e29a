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
        above = "" if found.margin is None else (
            f"; the contaminated score at least {found.margin:.1f} more than all others (margin)"
        )  # fmt: skip
        error = f"{percent(found.sketch_error)} of the inner products that clients are compared by"
        lines += [f"  limit {found.limit:.1f}{above}", f"  error of the sketches: {error}"]
    return _joined([*lines, *(f"  note: {said}" for said in found.unsure)])


def checked_as_text(found: Checked, verbose: bool = False, update: bool = False) -> str:
    """The verdict and the first reason; all reasons and remarks where `verbose`. With `update` it says
    whether the upload was taken in."""
    said = found.verdict
    reasons = [f"{r.code} {r.message}" for r in said.reasons]
    lines = [verdict_line(found)]
    if said.verdict not in ("broken", "benign") and reasons and not verbose:
        more = f"; {many(len(reasons) - 1, 'more reason')} with -v" if reasons[1:] else ""
        lines.append(f"  {said.reasons[0].message}{more}")
    if found.in_place_of:
        names = ", ".join(found.in_place_of)
        lines.append(f"  in place of {names}, of the same name or made of the same file")
    if said.verdict != "broken" and verbose:
        lines += [f"  {text}" for text in reasons]
        lines += [f"  note: {r.code} {r.message}" for r in found.findings]
    if found.updated:
        lines.append(f"  is in {found.against} now")
    elif update:
        lines.append(f"  was not taken into {found.against}, which takes what passes")
    return _joined(lines)


def verdict_line(found: Checked) -> str:
    """The upload and its verdict, or why there is none."""
    return safe_text(f"{found.verdict.client}: {_verdict(found)}")


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
