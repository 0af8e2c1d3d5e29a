"""Verdicts on trained cohorts whose truth is known: false alarms, misses, exact sets.

python benchmarks/detection.py --work DIR [--shift 0] [--only NAME] [--out FILE.md]

Trains (once, into DIR) the cohorts of the grid below with examples/text_copy, each with a shared and
with independent initialisations, and runs clair on every one. `--shift` moves every seed: the floors of
the verdict were set on shift 0, so another shift is a check on cohorts they have not seen.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "text_copy")]

import train  # noqa: E402
from task import CohortPlan  # noqa: E402

from clair_cli import Report, Settings, detect  # noqa: E402


def grid() -> dict[str, tuple[CohortPlan, train.Recipe]]:
    """Name of each cohort, what its clients do, and how they train; both inits of each."""
    small, large = train.Recipe(rank=4, alpha=8), train.Recipe(rank=8, alpha=16)
    clean = {
        "none, r 8": (CohortPlan(12, (), "none", 3, seed=3), large),
        "none, r 4": (CohortPlan(10, (), "none", 0, seed=3), small),
        "family 2, r 4": (CohortPlan(10, (), "family", 2, seed=3), small),
        "family 3, r 4": (CohortPlan(12, (), "family", 3, seed=8), small),
        "personal 2, r 4": (CohortPlan(12, (), "personal", 2, seed=4), small),
        "personal 5, r 4": (CohortPlan(10, (), "personal", 5, seed=3), small),
        "personal 6, r 4": (CohortPlan(12, (), "personal", 6, seed=10), small),
    }
    bad: dict[str, tuple[CohortPlan, train.Recipe]] = {
        "random + cipher of 8, a": (CohortPlan(8, ("random", "cipher"), seed=1), large),
        "random + cipher of 8, b": (CohortPlan(8, ("random", "cipher"), seed=11), large),
        "random + cipher of 8, c": (CohortPlan(8, ("random", "cipher"), seed=14), small),
        "cipher 6 of 20": (CohortPlan(20, ("cipher",) * 6, seed=5), large),
        "common cipher 8 of 20": (CohortPlan(20, ("common_cipher",) * 8, seed=6), small),
        "random 6 of 20": (CohortPlan(20, ("random",) * 6, seed=12), small),
        "other task 6 of 20": (CohortPlan(20, ("other_task",) * 6, seed=16), small),
        "half corrupted 6 of 20": (CohortPlan(20, ("corrupt",) * 6, fraction=0.5, seed=7), large),
        "backdoor 6 of 20": (CohortPlan(20, ("backdoor",) * 6, fraction=0.3, seed=9), large),
        "3 kinds, 8 of 20": (
            CohortPlan(
                20, ("reverse",) * 3 + ("common_cipher",) * 3 + ("other_task",) * 2, seed=13
            ),
            large,
        ),
        "common cipher 5 of 11": (CohortPlan(11, ("common_cipher",) * 5, seed=15), large),
        "random 1 of 5": (CohortPlan(5, ("random",), seed=2), small),
    }
    both = {}
    for name, (plan, recipe) in (clean | bad).items():
        for init in (False, True):
            label = f"{name}, {'own' if init else 'shared'} init"
            both[label] = (replace(plan, different_init=init), recipe)
    return both


def cohort(name: str, plan: CohortPlan, recipe: train.Recipe, work: Path) -> tuple[Path, set[str]]:
    """The folder of a trained cohort and its contaminated clients; trained unless it is there."""
    folder = work / "".join(c if c.isalnum() else "-" for c in f"{name}-{plan.seed}")
    truth = train.truth_path(folder)
    if not truth.exists():
        train.make_cohort(folder, plan, recipe)
    return folder, set(json.loads(truth.read_text())["contaminated"])


def row(name: str, report: Report, bad: set[str], seconds: float) -> dict[str, Any]:
    """What the report says, beside the truth."""
    said = {c.client: c.verdict for c in report.clients}
    scores = {c.client: c.score or 0.0 for c in report.clients}
    flagged = {c for c, v in said.items() if v == "contaminated"}
    return {
        "cohort": name,
        "clients": len(said),
        "contaminated": len(bad),
        "found": len(flagged & bad),
        "false alarms": len(flagged - bad),
        "suspicious, honest": sum(said[c] == "suspicious" for c in said if c not in bad),
        "exact": flagged == bad,
        "largest honest score": round(max(scores[c] for c in said if c not in bad), 2),
        "smallest contaminated score": round(min((scores[c] for c in bad), default=0.0), 2),
        "status": report.status,
        "seconds": round(seconds, 2),
    }


def as_markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """One line per cohort, then the totals and how they were made."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(r[n]) for n in names) + " |" for r in rows]
    total = Counter[str]()
    for r in rows:
        total.update({n: r[n] for n in ("clients", "contaminated", "found", "false alarms")})
        total["suspicious, honest"] += r["suspicious, honest"]
        total["exact"] += r["exact"]
    honest = total["clients"] - total["contaminated"]
    head = [
        f"# Verdicts on {len(rows)} trained cohorts, seeds shifted by {facts['shift']}",
        "",
        (
            f"{honest} honest clients: {total['false alarms']} called contaminated, "
            f"{total['suspicious, honest']} suspicious. {total['contaminated']} contaminated "
            f"clients: {total['found']} found. Exact sets: {total['exact']} of {len(rows)}."
        ),
        "",
        f"`{facts['command']}` on {facts['machine']}, {facts['versions']}.",
        "",
    ]
    return "\n".join(head + lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="trained cohorts are kept here")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed")
    parser.add_argument("--only", default="", help="cohorts whose name holds this")
    parser.add_argument("--out", type=Path, help="write the table here too")
    given = parser.parse_args()
    train.one_thread()
    rows = []
    for name, (plan, recipe) in grid().items():
        if given.only in name:
            shifted = replace(plan, seed=plan.seed + given.shift)
            folder, bad = cohort(name, shifted, recipe, given.work)
            began = time.perf_counter()
            report = detect(folder, Settings(threads=1))
            rows.append(row(name, report, bad, time.perf_counter() - began))
            print(json.dumps(rows[-1]), flush=True)
    shift = f" --shift {given.shift}" if given.shift else ""
    facts = {
        "shift": given.shift,
        "command": f"python benchmarks/detection.py --work DIR{shift}",
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }
    table = as_markdown(rows, facts)
    print(table)
    if given.out:
        given.out.write_text(table)


if __name__ == "__main__":
    main()
