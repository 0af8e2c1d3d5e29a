"""What each constant of clair's verdicts changes: all cohorts judged at half and at double its value.

python -m benchmarks.calibration (--cohorts FILE | --grid DIR) [--out DIR] [--keep FILE]

FILE is a JSON list of cohorts whose truth is known, each {"dir", "contaminated", "kind", "init"}: a
folder of adapters (from where FILE is), the names of its contaminated clients, what they are, and
whether the clients' first A was one ("shared") or their own ("own"). With --grid they are every 40th
cohort of detection.py's full grid, drawn from the pools trained in DIR. Every cohort is judged by
clair's own steps. A constant that a cohort never asks for cannot change it, so it keeps its result;
where only the joint steps ask, nothing is read again. Writes calibration.md, and with --keep the counts
as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any, ClassVar

import torch

from benchmarks.calibration_tables import Row, Run, Told, as_json, document
from benchmarks.cells import draw, grid, put
from benchmarks.measures import CONVICTED
from clair_cli import Settings, __version__, pipeline
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.detection.full import read_full
from clair_cli.detection.judging import judged
from clair_cli.detection.later import later_round
from clair_cli.detection.reading import numerics, read_modules
from clair_cli.detection.record import Detection
from clair_cli.detection.reporting import population
from clair_cli.errors import SettingError

HERE = Path(__file__).resolve().parent
SETTINGS = Settings(threads=1)
EVERY = 40
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
    """One cohort in memory, and what clair says of it at the delivered numbers."""

    def __init__(self, folder: Path, contaminated: Iterable[str], kind: str, init: str) -> None:
        self.contaminated, self.kind, self.init = {*contaminated}, kind, init
        self.opened = pipeline.opened(folder, SETTINGS)
        numbers = Watched(**DETECTION.as_dict())
        self.asked: list[set[str]] = []
        self._noting(lambda: self._read(numbers))
        self.usual = self._noting(lambda: self._judged(numbers))

    def _noting(self, step: Callable[[], Any]) -> Any:
        Watched.asked.clear()
        result = step()
        self.asked.append({*Watched.asked})
        return result

    def _read(self, numbers: DetectionCalibration) -> None:
        """All that is read of the clients."""
        settings = replace(SETTINGS, detection=numbers)
        with numerics(self.opened, settings) as self.machine:
            self.cohort, self.stacks = read_modules(self.opened, settings, self.machine)
            remark = later_round(self.cohort, self.stacks, numbers)
            said = (remark,) if remark else ()
            self.cohort = replace(self.cohort, findings=(*self.cohort.findings, *said))
            self.full = read_full(self.cohort, settings, self.machine.device)

    def _judged(self, numbers: DetectionCalibration) -> Outcome:
        """What clair says of those read."""
        settings = replace(SETTINGS, detection=numbers)
        return _outcome(
            judged(self.cohort, self.stacks, self.full, settings, self.machine), settings
        )

    def outcome(self, name: str, numbers: DetectionCalibration) -> Outcome:
        """What it says when the number `name` is another one."""
        reading, judging = (name in asked for asked in self.asked)
        if reading:
            settings = replace(SETTINGS, detection=numbers)
            return _outcome(pipeline.examined(self.opened, settings), settings)
        return self._judged(numbers) if judging else self.usual


def _outcome(found: Detection, settings: Settings) -> Outcome:
    said = population(found, settings)
    broken = {client.client: "broken" for client in found.cohort.broken}
    codes = tuple(sorted({f.code for f in said.findings}))
    if found.judgement is None:
        return Outcome(broken, codes, None, None)
    verdicts = {v.client: v.verdict for v in found.judgement.verdicts} | broken
    if said.consensus is None:
        return Outcome(verdicts, codes, None, None)
    ranks = tuple(m.shared_rank for m in said.modules)
    return Outcome(verdicts, codes, said.consensus.initialisation, ranks)


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


def drawn(work: Path, shift: int, scratch: Path) -> Iterator[Cohort]:
    """Every 40th cohort of the full grid, from the pools in `work`, written into `scratch`."""
    for number, cell in enumerate(grid(True, shift)[::EVERY]):
        folder = scratch / str(number)
        truth = put(draw(cell, work / "pools"), folder)
        bad = [name for name, client in truth.items() if client.bad]
        yield Cohort(folder, bad, cell.group, "own" if cell.pool.own_init else "shared")


def facts_of(words: str) -> str:
    """How the results were made."""
    return (
        f"`python -m benchmarks.calibration {words}`, {date.today()}, "
        f"{process_time() / 60:.0f} minutes of one core; {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores; clair {__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--cohorts", type=Path, help="JSON: the cohorts, their truth")
    which.add_argument("--grid", type=Path, help="folder of the trained pools of detection.py")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed of the pools")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="for calibration.md")
    parser.add_argument("--keep", type=Path, help="file of the counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    words = "--cohorts FILE" if given.cohorts else f"--grid DIR --shift {given.shift}"
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        made = drawn(given.grid, given.shift, Path(scratch)) if given.grid else load(given.cohorts)
        cohorts = list(made)
        for r in rows(cohorts):
            found.append(r)
            print(f"{process_time():6.0f} s  {r.name} {r.value:g}", file=sys.stderr, flush=True)
    run = Run([told(c) for c in cohorts], found, DETECTION.as_dict(), facts_of(words))
    if given.keep:
        given.keep.write_text(as_json(run))
    text = document(run)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "calibration.md").write_text(text)


if __name__ == "__main__":
    main()
