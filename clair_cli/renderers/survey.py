"""A folder that was judged in groups: the report of each, then who is in none, and the bottom line."""

from __future__ import annotations

import json

from clair_cli.renderers import text
from clair_cli.renderers.clients import NARROWEST
from clair_cli.renderers.safe import safe_text, visible
from clair_cli.renderers.words import aligned, folded, many
from clair_cli.report import VERDICTS, Reason, failing, to_dict
from clair_cli.results import Apart, Survey
from clair_cli.settings import failing_verdicts

FEW_OTHERS = {
    "base": "no two others have its base and its shapes",
    "shapes": "no two others have its shapes",
}


def as_json(found: Survey) -> str:
    """One JSON document with a final newline; every `report` keeps to the schema of a report."""
    return json.dumps(_document(found), indent=1, allow_nan=False) + "\n"


def _document(found: Survey) -> dict[str, object]:
    return {
        "folder": found.folder,
        "group_by": found.by,
        "exit_code": found.exit_code,
        "counts": found.counts,
        "groups": [{"name": g.name, "report": to_dict(g.report)} for g in found.groups],
        "not_comparable": [
            {
                "id": a.client,
                "base": a.base,
                "code": a.reason and a.reason.code,
                "why": _why(a, found.by),
            }
            for a in found.apart
        ],
        "broken": [{"id": c, "code": r.code, "why": r.message} for c, r in found.broken],
        "findings": [{"code": r.code, "message": r.message} for r in found.findings],
    }


def as_text(found: Survey, color: bool = False, verbose: int = 0, width: int | None = None) -> str:
    """A table per group as a report has it, with the options of `text.render`."""
    shown = [text.render(g.report, color=color, verbose=verbose, width=width) for g in found.groups]
    rest: list[str] = []
    if found.apart:
        rows = [(a.client, a.base or "unknown", _why(a, found.by)) for a in found.apart]
        rest += [*aligned([("not comparable", "base", "why"), *rows]), ""]
    if found.broken:
        rest += [*aligned([("broken", "why"), *((c, _said(r)) for c, r in found.broken)]), ""]
    if found.findings:
        rest += [*(safe_text(f"note: {_said(r)}") for r in found.findings), ""]
    rest += [accounted(found), safe_text(verdict_line(found))]
    room = width if width is not None and width >= NARROWEST else None
    lines = [part for line in rest for part in (folded(line, room) or [""] if room else [line])]
    return "\n".join([*shown, visible("\n".join(lines))]) + "\n"


def _why(apart: Apart, by: str) -> str:
    return FEW_OTHERS[by] if apart.reason is None else _said(apart.reason)


def _said(reason: Reason) -> str:
    return f"{reason.code} {reason.message}"


def accounted(found: Survey) -> str:
    """How many clients and groups there are, and of which verdict."""
    counts = found.counts
    said = [f"{counts.get(v, 0)} {v}" for v in VERDICTS if counts.get(v) or v != "minority"]
    said.append(f"{len(found.apart)} not comparable")
    unsaid = counts["clients"] - len(found.apart) - sum(counts.get(v, 0) for v in VERDICTS)
    said += [f"{unsaid} without a verdict"] if unsaid else []
    groups = many(len(found.groups), "group")
    return f"{counts['clients']} clients in {groups} by {found.by}: {', '.join(said)}."


def verdict_line(found: Survey) -> str:
    """The one line that says it all."""
    if found.exit_code == 3:
        return "NO VERDICT: no group of the folder could be judged"
    failed = [(g.name, text.counted(failing(g.report, found.fail_on))) for g in found.groups]
    said = [f"{', '.join(clients)} in {name}" for name, clients in failed if clients]
    if found.broken and "broken" in failing_verdicts(found.fail_on):
        said.append(f"{len(found.broken)} broken")
    if found.exit_code == 1:
        return f"FAIL: {'; '.join(said)}"
    unjudged = [g.name for g in found.groups if g.report.exit_code == 3]
    left = f"; no verdict in {', '.join(unjudged)}" if unjudged else ""
    return f"PASS: no client of any group at --fail-on {found.fail_on}{left}"
