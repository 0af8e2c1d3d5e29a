"""How high honest clients score: the table behind "none of 4508 honest clients scored as high".

python -m benchmarks.rarity --work DIR [--work DIR ...] [--seeds held-out] [--full] [--out FILE]

Trains and judges nothing. It counts what this very clair said of the cohorts of benchmarks.real
(DIR/reports) and benchmarks.detection (DIR/cells), whichever a DIR has. Left out are cohorts without
a verdict and with a majority of colluders, broken clients, and those whom attackers have copied.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import detection
from benchmarks.cells import Cell, grid
from benchmarks.real import SEEDS, selected
from benchmarks.real_cells import digest as digest_of
from benchmarks.real_cohorts import Cohort
from benchmarks.real_judges import Judged, said_of
from clair_cli import rarity
from clair_cli._version import __version__
from clair_cli.detection.calibration import DETECTION
from clair_cli.records import encode

PACKAGE = Path(rarity.__file__).parent
EVEN = ("even", "thin majority")
"""Conditions of real cohorts in which honest clients are alike in data, domain and training."""


@dataclass(slots=True)
class Counted:
    """What one benchmark has: the scores of honest clients by whether their cohort is even."""

    facts: dict[str, Any]
    cohorts: int = 0
    silent: int = 0
    scores: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    def add(self, even: bool, scores: list[float] | None) -> None:
        """One cohort; None where it has no verdict."""
        self.cohorts += 1
        self.silent += scores is None
        self.scores[even] += scores or []

    def as_dict(self) -> dict[str, Any]:
        """What the table says of where it is from."""
        clients = sum(map(len, self.scores.values()))
        counts = {"cohorts": self.cohorts, "silent": self.silent, "honest_clients": clients}
        return self.facts | counts


def of_real(work: Path, seeds: str, code: str) -> Counted:
    """The honest clients of what is kept of real cohorts."""
    found = Counted({"benchmark": "real", "seeds": seeds, "clair": __version__, "source": code})
    for cohort in selected(seeds):
        said = said_of(cohort, work / "reports" / code)
        if said is not None:
            found.add(cohort.condition in EVEN, None if said.silent else honest_of(cohort, said))
    return found


def honest_of(cohort: Cohort, said: Judged) -> list[float]:
    """The scores of the honest clients that are judged alone: of a minority, the group is judged."""
    return [
        said.scores[name]
        for name, client in cohort.clients.items()
        if client.honest and said.verdicts[name] not in ("broken", "minority")
    ]


def of_cells(work: Path, full: bool, shift: int) -> Counted:
    """The honest clients of what is kept of trained and planted cohorts."""
    code, mode = detection.sources(), "full" if full else "quick"
    facts = {"benchmark": "detection", "mode": mode, "seeds": f"shifted by {shift}"}
    found = Counted(facts | {"clair": __version__, "source": code[:12]})
    for cell in grid(full, shift):
        path = detection.place(work, asdict(cell), code)
        if cell.group != "majority" and path.exists():
            found.add(is_even(cell), scores_of(json.loads(path.read_text())))
    return found


def is_even(cell: Cell) -> bool:
    """Honest clients are alike in task, data and training."""
    return cell.group != "controls" and cell.pool.heterogeneity != "personal"


def scores_of(result: dict[str, Any]) -> list[float] | None:
    """The scores of honest clients of one cell; None without a verdict."""
    if result["status"] == "no_verdict":
        return None
    honest = [c for c in result["clients"] if not c["bad"] and not c["copied"]]
    return [c["score"] for c in honest if c["verdict"] not in ("broken", "minority")]


def counted(given: argparse.Namespace) -> Iterator[Counted]:
    """Everything that the folders hold of this clair."""
    for work in given.work:
        if (work / "reports").is_dir():
            yield of_real(work, given.seeds, digest_of(PACKAGE))
        if (work / "cells").is_dir():
            yield of_cells(work, given.full, given.shift)


def table(found: list[Counted]) -> rarity.Table:
    """One table of all that was counted."""
    even, uneven = ([s for f in found for s in f.scores[kind]] for kind in (True, False))
    return rarity.Table(
        tuple(f.as_dict() for f in found),
        rarity.digest(DETECTION),
        rarity.counted(even),
        rarity.counted(uneven),
    )


def write(made: rarity.Table, path: Path) -> None:
    """Whole or not at all; one line per list."""
    lines = [f' "{name}": {json.dumps(value)}' for name, value in encode(made).items()]
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    staging.replace(path)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, action="append", required=True, help="where results are kept")
    add("--seeds", choices=SEEDS, default="held-out", help="of real cohorts")
    add("--full", action="store_true", help="the full grid of cells, not the quick one")
    add("--shift", type=int, default=0, help="of the seeds of the cells")
    add("--out", type=Path, default=rarity.TABLE, help="default: the table of the package")
    given = parser.parse_args(words)
    made = table(found := [c for c in counted(given) if c.cohorts])
    if not made.even.clients or not made.uneven.clients:
        sys.exit(
            "nothing is kept there of this clair; let benchmarks.real or detection judge first"
        )
    write(made, given.out)
    for one in found:
        print(json.dumps(one.as_dict()))
    for limit in (DETECTION.suspicious, DETECTION.limit):
        said = made.rarity(limit)
        print(f"score {limit:g} and more: {said.as_high} of {said.of}")


if __name__ == "__main__":
    main()
