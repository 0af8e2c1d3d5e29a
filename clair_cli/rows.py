"""A report as a table, one row per client, and what tells the rows of one run from those of others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Kind = Literal["text", "texts", "number", "count", "truth"]
COLUMNS: dict[str, Kind] = {
    "run": "text",
    "id": "text",
    "verdict": "text",
    "score": "number",
    "limit": "number",
    "rarity_as_high": "count",
    "rarity_of": "count",
    "stability": "number",
    "depends_on": "texts",
    "codes": "texts",
    "reasons": "texts",
    "cause": "text",
    "content": "number",
    "error": "number",
    "size": "number",
    "company": "number",
    "nearest": "text",
    "head": "number",
    "worst_module": "text",
    "worst_module_score": "number",
    "refined_path": "text",
    "refined_rank": "count",
    "refined_strength": "number",
    "refined_weight": "number",
    "refined_deviation": "number",
    "refined_averaged_away": "number",
    "refined_change": "number",
    "refined_truncation_error": "number",
    "refined_unchanged": "truth",
    "refined_group": "count",
}
"""The columns in order, and what their cells hold; a cell is None where the report says nothing."""
FLAT = ("id", "verdict", "score", "limit", "stability", "depends_on")
CAUSE = ("content", "error", "size", "company", "nearest", "head")
REFINED = "refined_"


def identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """Which run a report, as JSON-ready values, is of.

    `id` is the same for equal inputs, settings and version, whenever and wherever the run was.
    """
    same = {"tool": data["tool"], "settings": data["settings"]}
    same |= {"clients": data["inputs"].get("clients", [])}
    text = json.dumps(same, sort_keys=True)
    return {
        "id": hashlib.sha256(text.encode()).hexdigest()[:16],
        "started_at": data["run"].get("started_at"),
        "version": data["tool"].get("version"),
        "root": data["inputs"].get("root"),
        "status": data["status"],
        "exit_code": data["exit_code"],
    }


def rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per client of a report, as JSON-ready values, with a cell for each of COLUMNS.

    With several strengths, what was refined is that of the first.
    """
    run, done = identity(data)["id"], refined(data)
    return [
        dict.fromkeys(COLUMNS) | {"run": run} | _of_client(c, done.get(c["id"], ()))
        for c in data["clients"]
    ]


def refined(data: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Client -> what was written for it, one entry per strength."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in (data.get("refinement") or {}).get("clients", ()):
        found.setdefault(entry["id"], []).append(entry)
    return found


def _of_client(client: Mapping[str, Any], written: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cause, rarity = client.get("cause") or {}, client.get("rarity") or {}
    worst: Mapping[str, Any] = max(client["modules"], key=lambda m: m["score"], default={})
    reasons = client["reasons"]
    row = {name: client.get(name) for name in FLAT} | {name: cause.get(name) for name in CAUSE}
    row |= {
        "rarity_as_high": rarity.get("as_high"),
        "rarity_of": rarity.get("of"),
        "codes": [r["code"] for r in reasons],
        "reasons": [r["message"] for r in reasons],
        "cause": cause.get("kind"),
        "worst_module": worst.get("name"),
        "worst_module_score": worst.get("score"),
    }
    if written:
        names = [c for c in COLUMNS if c.startswith(REFINED)]
        row |= {name: written[0].get(name.removeprefix(REFINED)) for name in names}
    return row
