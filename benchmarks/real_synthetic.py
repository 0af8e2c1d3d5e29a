"""The synthetic cohorts of detection.py as real.py counts its own: one line per cell becomes a cohort.

Left out are cohorts too small for a verdict, those whose majority is contaminated, and copies, which
convict nobody by design.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measures import Row
from benchmarks.real_cohorts import HELD_OUT, Client, Cohort
from benchmarks.real_judges import Judged
from benchmarks.real_pools import Pool
from benchmarks.real_tables import STRONG

LEFT_OUT = ("few", "majority", "copies")
LABELS = {
    "corrupt-50": "half",
    "backdoor-30": "trigger-30",
    "A11 collusion rho=0.3": "colluder-third",
    "A11 collusion rho=0.5": "colluder-half",
}
"""Kinds of detection.py that a kind of here is like."""
NOTES = {"short": "length"}


def cohorts(path: Path) -> list[Judged]:
    """Of the JSON that detection.py wrote."""
    rows = json.loads(path.read_text())["rows"]
    return [cohort(row) for row in rows if row["group"] not in LEFT_OUT]


def cohort(row: Row) -> Judged:
    """One of them. A strong kind keeps its label; the cohort is one of a strong kind."""
    said: dict[str, list[Any]] = {f"client-{n:02d}": c for n, c in enumerate(row["clients"], 1)}
    clients = {
        name: Client(kind, not bad, LABELS.get(kind, kind), note(row, kind, bad))
        for name, (kind, bad, *_) in said.items()
    }
    labels = {c.label for c in clients.values() if not c.honest}
    several = "mixed" if len(labels) > 1 else next(iter(labels), "none")
    kind = STRONG[0] if row["group"] == "strong" and len(labels) == 1 else several
    condition = "thin majority" if row["group"] == "thin" else row["group"]
    pool = Pool("language", "all", row["init"] == "own", HELD_OUT)
    return Judged(
        Cohort(f"{row['pool']}: {row['what']}", pool, condition, kind, clients),
        {name: None if row["status"] == "no_verdict" else c[2] for name, c in said.items()},
        {name: c[3] or 0.0 for name, c in said.items()},
        row["clair"][-1],
    )


def note(row: Row, kind: str, bad: bool) -> str:
    """In what an honest client differs from the majority: personal tasks are each one's own."""
    if bad:
        return ""
    return "domain" if row["kind"] == "personal" else NOTES.get(kind, "")
