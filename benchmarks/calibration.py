"""What each constant of clair's verdicts changes: all cohorts judged at half and at double its value.

python -m benchmarks.calibration --cohorts FILE [--out DIR] [--keep FILE]

FILE is a JSON list of cohorts whose truth is known, each {"dir", "contaminated", "kind", "init"}: a
folder of PEFT adapters (from where FILE is), the names of its contaminated clients, what they are, and
whether the clients' first A was one ("shared") or their own ("own"). Every cohort is read once. A
constant that a cohort never asks for cannot change it, so it keeps its result; the others are judged
again from the first step that asks. Writes calibration.md, and with --keep the counts as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.calibration_tables import Row, Run, Told, as_json, document
from benchmarks.measures import CONVICTED
from benchmarks.saved import Saved, read
from clair_cli import Settings, __version__
from clair_cli.detection import agreement
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.detection.solver import Decomposition, decompose, refit
from clair_cli.detection.stacks import ModuleStack, stack_module, tables
from clair_cli.detection.tables import Tables
from clair_cli.detection.verdicts import judge
from clair_cli.errors import SettingError
from clair_cli.update import LowRankUpdate

HERE = Path(__file__).resolve().parent
NAMES = [f.name for f in fields(DETECTION)]
INITS = {"shared": "shared", "own": "independent"}
"""How the clients began -> what clair calls it."""


# One cohort


@dataclass(frozen=True, slots=True)
class Outcome:
    """What clair says of one cohort: client -> verdict, None without one; the codes of its remarks;
    how it thinks the clients began; and the shared rank of each module, both None without a consensus.
    """

    verdicts: dict[str, str | None]
    findings: tuple[str, ...]
    init: str | None
    ranks: tuple[int, ...] | None


class Watched(DetectionCalibration):
    """The same numbers, which note that they were asked for."""

    __slots__ = ()
    asked: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in NAMES:
            Watched.asked.add(name)
        return object.__getattribute__(self, name)


class Cohort:
    """One cohort in memory, and what it says at the delivered numbers."""

    def __init__(self, folder: Path, contaminated: Iterable[str], kind: str, init: str) -> None:
        self.contaminated, self.kind, self.init = {*contaminated}, kind, init
        adapters = {p.name: read(p) for p in sorted(folder.iterdir()) if p.is_dir()}
        self.adapters = {n: a for n, a in adapters.items() if _finite(a)}
        self.broken = [n for n in adapters if n not in self.adapters]
        self.stacks, self.found = self._watched()

    def _watched(self) -> tuple[list[ModuleStack], Decomposition]:
        """Judge once and note which numbers each step asked for."""
        numbers = Watched(**DETECTION.as_dict())
        self.asked: list[set[str]] = []
        stacks = self._noting(lambda: self.stacked(numbers))
        found = self._noting(lambda: decompose(stacks, numbers))
        self.usual = self._noting(lambda: self.judged(stacks, found, numbers))
        return stacks, found

    def _noting(self, step: Callable[[], Any]) -> Any:
        Watched.asked.clear()
        result = step()
        self.asked.append({*Watched.asked})
        return result

    def stacked(self, numbers: DetectionCalibration) -> list[ModuleStack]:
        """The modules that all clients adapt."""
        clients = [*self.adapters.values()]
        common = [m for m in clients[0].factors if all(m in c.factors for c in clients)]
        stacks = [
            stack_module(m, [_update(c, m) for c in clients], numbers.max_columns) for m in common
        ]
        return [s for s in stacks if bool((s.energies > 0).any())]

    def judged(
        self, stacks: list[ModuleStack], found: Decomposition, numbers: DetectionCalibration
    ) -> Outcome:
        """Verdicts, and what the report says of the clients they agree on."""
        names = (*self.adapters,)
        inner, overlap, d_out, d_in = tables(stacks)
        modules = tuple(s.module for s in stacks)
        what = names, modules, inner, overlap, d_out, d_in, found.members, names
        known = Tables(*what, unexplained=found.unexplained())
        said = judge(known, Settings(detection=numbers))
        verdicts = {v.client: v.verdict for v in said.verdicts}
        verdicts |= dict.fromkeys(self.broken, "broken")
        findings = tuple(sorted({r.code for r in said.findings}))
        if not said.identified:
            return Outcome(verdicts, findings, None, None)
        rows = np.stack([s.rows.numpy() for s in stacks])
        began, _ = agreement.initialisation(rows, said.consensus, numbers)
        settled = (said.consensus == found.members).all()
        found = found if settled else refit(stacks, said.consensus, numbers)
        return Outcome(verdicts, findings, began, tuple(s.rank for s in found.subspaces))

    def outcome(self, name: str, numbers: DetectionCalibration) -> Outcome:
        """What it says when the number `name` is another one."""
        stacking, solving, judging = (name in asked for asked in self.asked)
        if not (stacking or solving or judging):
            return self.usual
        stacks = self.stacked(numbers) if stacking else self.stacks
        found = decompose(stacks, numbers) if stacking or solving else self.found
        return self.judged(stacks, found, numbers)


def _finite(adapter: Saved) -> bool:
    return all(bool(torch.isfinite(f).all()) for both in adapter.factors.values() for f in both)


def _update(adapter: Saved, module: str) -> LowRankUpdate:
    up, down = adapter.factors[module]
    return LowRankUpdate(up.float(), down.float(), adapter.scale)


# All cohorts


def row(name: str, value: float, cohorts: Sequence[Cohort]) -> Row:
    """Judge all cohorts with one other constant; the delivered value gives the usual outcomes."""
    numbers = changed(name, value)
    counts: Counter[str] = Counter()
    for cohort in cohorts:
        usual, said = cohort.usual, cohort.outcome(name, numbers)
        convicted = {n for n, verdict in said.verdicts.items() if verdict in CONVICTED}
        counts["asked"] += any(name in asked for asked in cohort.asked)
        counts["changed"] += sum(said.verdicts[n] != v for n, v in usual.verdicts.items())
        counts["honest"] += len(convicted - cohort.contaminated)
        counts["found"] += len(convicted & cohort.contaminated)
        counts["exact"] += convicted == cohort.contaminated
        counts["remarks"] += said.findings != usual.findings
        counts["inits"] += said.init == INITS[cohort.init]
        counts["ranks"] += said.ranks != usual.ranks
    return Row(name, value, **{f.name: counts[f.name] for f in fields(Row)[2:]})


def changed(name: str, value: float) -> DetectionCalibration:
    """The delivered numbers but for one. Raises SettingError for a value that is not allowed."""
    return DetectionCalibration(**DETECTION.as_dict() | {name: value})


def around(name: str) -> list[float]:
    """Half and double the delivered value; the middle of it and its bound where double is beyond 1 or
    the bound; nearer to it by halves while another constant forbids the value."""
    (about,) = [f for f in fields(DETECTION) if f.name == name]
    usual, (low, high) = getattr(DETECTION, name), about.metadata["range"]
    whole = isinstance(usual, int)
    wanted = [max(usual / 2, low), 2 * usual if 2 * usual < high else (usual + high) / 2]
    found = []
    for value in wanted:
        value = int(value) if whole else float(value)
        while value != usual and not _allowed(name, value):
            value = int((value + usual) / 2) if whole else (value + usual) / 2
        found += [value] if value != usual else []
    return found


def _allowed(name: str, value: float) -> bool:
    try:
        changed(name, value)
    except SettingError:
        return False
    return True


def rows(cohorts: Sequence[Cohort]) -> Iterator[Row]:
    """The delivered numbers first, then two rows for each constant."""
    yield row(NAMES[0], getattr(DETECTION, NAMES[0]), cohorts)
    for name in NAMES:
        for value in around(name):
            yield row(name, value, cohorts)


# Results


def told(cohort: Cohort) -> Told:
    """What the page says of a cohort."""
    said = cohort.usual
    size, bad = len(said.verdicts), len(cohort.contaminated)
    return Told(size, bad, cohort.kind, cohort.init, said.ranks is None)


def load(path: Path) -> list[Cohort]:
    """The cohorts that the JSON file lists."""
    listed = json.loads(path.read_text())
    return [Cohort(path.parent / c["dir"], c["contaminated"], c["kind"], c["init"]) for c in listed]


def facts_of() -> str:
    """How the results were made."""
    return (
        f"`python -m benchmarks.calibration --cohorts FILE`, {date.today()}, "
        f"{process_time() / 60:.0f} minutes of one core; {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores; clair {__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cohorts", type=Path, required=True, help="JSON: the cohorts, their truth"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="for calibration.md")
    parser.add_argument("--keep", type=Path, help="file of the counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cohorts, found = load(given.cohorts), []
    for r in rows(cohorts):
        found.append(r)
        print(f"{process_time():6.0f} s  {r.name} {r.value:g}", file=sys.stderr, flush=True)
    run = Run([told(c) for c in cohorts], found, DETECTION.as_dict(), facts_of())
    if given.keep:
        given.keep.write_text(as_json(run))
    text = document(run)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "calibration.md").write_text(text)


if __name__ == "__main__":
    main()
