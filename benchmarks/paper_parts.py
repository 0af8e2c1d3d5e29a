"""Parts of pages, and their pictures, from kept runs: a function for each page, from where its run is.

Each gives the parts of the page by name. It gives none where nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import lines

Parts = dict[str, str]
Draw = Callable[[Path, Path], bool]
"""Where a run is, and the file to draw: whether there was anything to draw."""


@dataclass(frozen=True, slots=True)
class InPart:
    """A page whose marked parts `make` gives from where `run` is kept; `draw` makes its picture.

    `command` keeps the run. `by_hand` says what else than prose the page has and no run gives.
    """

    page: str
    run: str
    make: Callable[[Path], Parts]
    command: str
    by_hand: str = ""
    picture: str = ""
    draw: Draw | None = None


def check(run: Path) -> Parts:
    """Of benchmarks.check."""
    from benchmarks import check_tables

    rows, seconds = lines.kept(run / "rows.jsonl"), run / "speed.json"
    made = {"by size": check_tables.by_size(rows)} if rows else {}
    if found := check_tables.left_out(rows):
        made["left out"] = found
    if seconds.is_file():
        made["time"] = check_tables.speed(read(seconds))
    return made


def same_answers(run: Path) -> Parts:
    """Of benchmarks.same_answers."""
    from benchmarks import same_answers

    rows = lines.kept(run / "same.jsonl")
    return {"verdicts": same_answers.table(rows)} if rows else {}


def speed(run: Path) -> Parts:
    """Of benchmarks.speed_curves."""
    from benchmarks import speed_curves

    found = speed_curves.curves(run)
    picture = "\n![curves](speed-curves.png)" if speed_curves.drawable(found) else ""
    text = speed_curves.page(found) + picture
    return {"curves": text} if text else {}


def draw_speed(run: Path, file: Path) -> bool:
    """Seconds and memory along every curve that has two points."""
    from benchmarks import speed_curves

    return speed_curves.draw(speed_curves.curves(run), file)


def history(run: Path) -> Parts:
    """Of benchmarks.history, whose rounds are in the folder `rounds`."""
    if not (run / "rounds").is_dir():
        return {}
    from benchmarks import history

    return history.parts(run)


def flower(run: Path) -> Parts:
    """Of benchmarks.flower_rounds."""
    if not (run / "flower.json").is_file():
        return {}
    from benchmarks import flower_rounds

    runs, bad = flower_rounds.kept(run / "flower.json")
    return {task: flower_rounds.table(runs, task, count) for task, count in bad.items()}


def draw_flower(run: Path, file: Path) -> bool:
    """Losses by round."""
    from benchmarks import flower_rounds

    runs, bad = flower_rounds.kept(run / "flower.json")
    flower_rounds.draw(runs, [*bad], file)
    return True


def rounds(run: Path) -> Parts:
    """Of examples.federated_rounds, from every file of its rows in the folder."""
    rows = _rounds(run)
    if not rows:
        return {}
    from examples import federated_rounds

    return {" ".join(of): text for of, text in federated_rounds.tables(rows).items()}


def draw_rounds(run: Path, file: Path) -> bool:
    """Losses by round."""
    from examples import federated_rounds

    federated_rounds.draw(_rounds(run), file)
    return True


def _rounds(run: Path) -> list[lines.Row]:
    """The rows of all files, servers and panels in the order of the example."""
    rows = [row for file in sorted(run.glob("*.json")) for row in read(file)]
    if not rows:
        return rows
    from examples.federated_rounds import PANELS, SERVERS

    panels, servers = [*PANELS], [*SERVERS]
    return sorted(rows, key=lambda r: (panels.index(r["panel"]), servers.index(r["server"])))


def judging(run: Path) -> Parts:
    """Of benchmarks.judging."""
    rows = lines.kept(run)
    if not rows:
        return {}
    from benchmarks import judging

    return {"now": judging.page(rows)}


def faults(run: Path) -> Parts:
    """Of fuzz.kills."""
    from fuzz import tables

    return tables.kills(read(run)) if run.is_file() else {}


def fuzz(run: Path) -> Parts:
    """Of fuzz.run."""
    from fuzz import tables

    return tables.fuzzing(lines.kept(run))


def read(file: Path) -> Any:
    """A file of JSON."""
    return json.loads(file.read_text(encoding="utf-8"))


ROUNDS = "python -m examples.federated_rounds --seed 9001 9002 --panel identical family --json FILE"
IN_PART = (
    InPart(
        "check.md",
        "check",
        check,
        "python -m benchmarks.check --work DIR --left-out 10, hours, and --speed",
        "bytes and rounding: measured once, by no command",
    ),
    InPart(
        "faults.md",
        "faults.json",
        faults,
        "python -m fuzz.kills --kills 560 --scripts 30 --keep FILE",
    ),
    InPart(
        "federated_rounds.md",
        "federated_rounds",
        rounds,
        ROUNDS,
        picture="federated_rounds.png",
        draw=draw_rounds,
    ),
    InPart(
        "flower.md",
        "flower",
        flower,
        "python -m benchmarks.flower_rounds --work DIR --seeds 9001",
        picture="flower.png",
        draw=draw_flower,
    ),
    InPart(
        "fuzz.md",
        "fuzz.jsonl",
        fuzz,
        "python -m fuzz.run --seconds 4800 --keep FILE",
        "an early run by coverage, and what was found",
    ),
    InPart(
        "history.md",
        "history",
        history,
        "python -m benchmarks.history --work DIR --seeds reported, hours, and --seeds setting",
        "levels of the constant, which were tried by hand",
    ),
    InPart(
        "judging.md",
        "judging.jsonl",
        judging,
        "python -m benchmarks.judging --threads 1 --keep FILE",
        "seconds of an earlier clair",
    ),
    InPart(
        "same_answers.md",
        "same_answers",
        same_answers,
        "python -m benchmarks.same_answers --work DIR, ten minutes",
    ),
    InPart(
        "speed.md",
        "speed",
        speed,
        "python -m benchmarks.speed_curves --work DIR, on an idle machine",
        "seconds of earlier clairs, and of single modules",
        picture="speed-curves.png",
        draw=draw_speed,
    ),
)
"""Pages of which parts are made."""
