"""A report as a table, one row per client, and what tells the rows of one run from those of others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from clair_cli.errors import UsageError
from clair_cli.records import encode, shortened

if TYPE_CHECKING:
    import pandas

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
    "accepted": "text",
    "accepted_until": "text",
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
    if since := data["inputs"].get("since"):
        same |= {"since": since.get("adapters")}
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


def storable(value: Any) -> Any:
    """UTF-8 has no lone surrogates, which names of files may hold: they are escaped."""
    if isinstance(value, list):
        return [storable(v) for v in value]
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def refined(data: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Client -> what was written for it, one entry per strength."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in (data.get("refinement") or {}).get("clients", ()):
        found.setdefault(entry["id"], []).append(entry)
    return found


def _of_client(client: Mapping[str, Any], written: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cause, rarity = client.get("cause") or {}, client.get("rarity") or {}
    accepted = client.get("accepted") or {}
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
        "accepted": accepted.get("reason"),
        "accepted_until": accepted.get("until"),
    }
    if written:
        names = [c for c in COLUMNS if c.startswith(REFINED)]
        row |= {name: written[0].get(name.removeprefix(REFINED)) for name in names}
    return row


class Tabular:
    """What a report shows of itself in a session: one line, a short table, or a data frame."""

    __slots__ = ()

    def to_pandas(self) -> pandas.DataFrame:
        """One row per client, with the columns that docs/how-to/outputs.md lists.

        `attrs["run"]` says which run it was. Raises UsageError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            text = "to_pandas needs the library pandas; install clair-cli[pandas]"
            raise UsageError(text) from None
        data = encode(self)
        found = [{name: storable(value) for name, value in row.items()} for row in rows(data)]
        frame = pandas.DataFrame(found, columns=list(COLUMNS))
        frame = frame.astype({n: TYPES[k] for n, k in COLUMNS.items() if k in TYPES})
        frame.attrs["run"] = identity(data)
        return frame

    def __repr__(self) -> str:
        data = encode(self)
        return f"Report({data['status']}, exit_code={data['exit_code']}, {_counted(data)})"

    def _repr_html_(self) -> str:
        """A table of at most MOST clients, the worst first, and the line that __repr__ gives."""
        data = encode(self)
        found = sorted(data["clients"], key=lambda c: -BADNESS.get(c["verdict"], 9))
        lines = "".join(map(_html_row, found[:MOST]))
        head = "<tr><th>client</th><th>verdict</th><th>score</th><th>why</th></tr>"
        more = f"<p>and {len(found) - MOST} more</p>" if len(found) > MOST else ""
        return f"<p>{_html(repr(self))}</p><table>{head}{lines}</table>{more}"


TYPES = {"number": "float64", "count": "Int64", "truth": "boolean"}
"""Types of pandas that keep what is missing apart."""
MOST = 20
"""Clients that a session shows."""
BADNESS = {"benign": 0, "suspicious": 1, "minority": 2, "broken": 3, "contaminated": 4}


def _counted(data: Mapping[str, Any]) -> str:
    said = [c["verdict"] or "no verdict" for c in data["clients"]]
    counts = ", ".join(f"{said.count(v)} {v}" for v in dict.fromkeys(said))
    return f"{len(said)} clients: {counts}" if said else "no clients"


def _html_row(client: Mapping[str, Any]) -> str:
    score = "" if client["score"] is None else f"{client['score']:.1f}"
    why = "; ".join(r["message"] for r in client["reasons"])
    cells = (client["id"], client["verdict"] or "no verdict", score, why)
    return f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in cells)}</tr>"


def _html(text: str) -> str:
    """Text that a browser shows as it is, in one piece of at most 80 characters."""
    return escape(shortened(repr(text)[1:-1]))
