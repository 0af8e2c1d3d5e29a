"""Whether approximations change an answer: many clients judged and refined with `--exact` and without.

python -m benchmarks.same_answers --work DIR [--cohorts 120] [--refined 12] [--seed 4000] [--ready]

Cohorts are drawn as in check.py, but of so many clients and such widths that sketches stand for updates
and the mean is compressed. Rows go to DIR/same.jsonl; what is there is not made again. Nothing of
clair's was set by them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import check
from benchmarks.check import MIXES, drawn, said
from clair_cli import Settings, formats, pipeline
from clair_cli.settings import MIN_CLIENTS

Row = dict[str, Any]
SIZES = (70, 100, 140)
SHAPES = ((768, 640), (640, 640), (1280, 640), (640, 1280))
NEAR = 0.1
"""Of a limit: a score within counts as none that the approximation must keep on its side."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One cohort: how many clients, of which a tenth are as in MIXES[mix] and more, own A or shared."""

    clients: int
    mix: int
    own: bool
    seed: int

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind: the mix of ten, for as many tens as there are."""
        return {kind: n * self.clients // 10 for kind, n in MIXES[self.mix].items()}


def asked(seed: int) -> list[Asked]:
    """An endless row of cohorts, each kind in turn, as a list of what is wanted."""
    kinds = [(c, m, o) for m in range(len(MIXES)) for c in SIZES for o in (False, True)]
    return [Asked(*kinds[n % len(kinds)], seed + n) for n in range(10 * len(kinds))]


def compared(one: Asked, refined: bool) -> Row:
    """Verdicts and scores of one cohort in both ways, and how far the refined adapters are apart."""
    settings = Settings(threads=1)
    row: Row = asdict(one)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        check.SHAPES = SHAPES
        drawn(place / "round", one.clients, one.counts, one.own, one.seed)
        for name, way in (("exact", replace(settings, exact=True)), ("sketched", settings)):
            began = time.process_time()
            if refined:
                report = pipeline.refine(place / "round", place / name, way)
            else:
                report = pipeline.detect(place / "round", way)
            row[name] = {c: list(v) for c, v in said(report).items()}
            row[f"{name}_s"] = round(time.process_time() - began, 2)
            row["limits"] = {c.client: c.limit for c in report.clients}
            row[f"{name}_status"] = report.status
        if refined and (place / "exact").is_dir() and (place / "sketched").is_dir():
            row["apart"] = apart(place / "exact", place / "sketched")
    return row


def apart(one: Path, other: Path) -> float:
    """The largest relative distance between the updates of two adapters of one client."""
    largest = 0.0
    for folder in sorted(p for p in one.iterdir() if p.is_dir()):
        if not (other / folder.name).is_dir():
            continue
        a, b = (formats.open_adapter(p / folder.name, Settings()) for p in (one, other))
        for module in a.updates:
            x, y = (formats.read_update(v, module, "float64") for v in (a, b))
            dense = [u.up @ u.down * u.scale for u in (x, y)]
            size = float(torch.linalg.norm(dense[0]))
            if size > 0:
                largest = max(largest, float(torch.linalg.norm(dense[0] - dense[1])) / size)
    return largest


def differences(row: Row, suspicious: float) -> list[tuple[str, float, float, bool]]:
    """Clients whose verdicts differ: both scores, and whether the exact one is near a limit."""
    found = []
    for client, (verdict, score) in row["exact"].items():
        other, near = row["sketched"][client], False
        if verdict != other[0]:
            limits = [x for x in (row["limits"][client], suspicious) if x is not None]
            near = score is not None and any(abs(score - x) <= NEAR for x in limits)
            found.append((client, score, other[1], near))
    return found


def table(rows: Sequence[Row]) -> str:
    """What differs, over all cohorts."""
    suspicious = Settings().detection.suspicious
    head = "other verdict | of these far from a limit | score error, median | 99 % | worst"
    lines = [f"| clients | cohorts | judged | {head} |", "|---" * 8 + "|"]
    for size in SIZES:
        here = [r for r in rows if r["clients"] == size and len(r["exact"]) >= MIN_CLIENTS]
        errors = [
            abs(v[1] - r["sketched"][c][1])
            for r in here
            for c, v in r["exact"].items()
            if v[1] is not None and r["sketched"][c][1] is not None
        ]
        other = [d for r in here for d in differences(r, suspicious)]
        if errors:
            mid, most, worst = np.quantile(errors, (0.5, 0.99, 1))
            lines.append(
                f"| {size} | {len(here)} | {sum(len(r['exact']) for r in here)} | {len(other)} "
                f"| {sum(not near for *_, near in other)} | {mid:.3f} | {most:.3f} | {worst:.3f} |"
            )
    done = [r["apart"] for r in rows if "apart" in r]
    if done:
        lines += ["", f"Refined adapters of {len(done)} cohorts are at most {max(done):.1e} apart."]
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cohorts", type=int, default=120)
    parser.add_argument("--refined", type=int, default=12, help="Refine every so manieth as well.")
    parser.add_argument("--seed", type=int, default=4000)
    parser.add_argument("--ready", action="store_true", help="Judge nothing.")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    kept = given.work / "same.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(r["clients"], r["mix"], r["own"], r["seed"]) for r in rows}
    for number, one in zip(count(), islice(asked(given.seed), given.cohorts), strict=False):
        if given.ready or (one.clients, one.mix, one.own, one.seed) in known:
            continue
        rows.append(compared(one, number % given.refined == 0))
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))
    for row in rows:
        for client, *told in differences(row, Settings().detection.suspicious):
            print(row["clients"], row["mix"], row["own"], row["seed"], client, *told)


if __name__ == "__main__":
    main()
