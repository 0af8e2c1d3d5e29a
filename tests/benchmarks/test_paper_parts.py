"""The parts of every page, from small runs that are made up: in the form that the page has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check_tables, marks, paper, speed_curves
from benchmarks.flower_rounds import SERVERS
from benchmarks.paper_parts import IN_PART, InPart
from fuzz import kills, run, tables
from tests.benchmarks.test_speed import row

PARTS = {one.page: one for one in IN_PART}


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))


def check(work: Path) -> None:
    exact = {"a": ["benign", 1.0], "b": ["contaminated", 5.0]}
    near = {"a": ["benign", 1.25], "b": ["contaminated", 4.5]}
    by = {
        size: {"clients": clients, "status": "complete"}
        for size, clients in (("32", near), ("256", exact))
    }
    checked = {"a": ["benign", 1.0, 0.5], "b": ["suspicious", 2.0, 0.5]}
    one = {"name": "drawn", "status": "complete", "exact": exact, "by": by, "checked": checked}
    lines(work / "rows.jsonl", [one])
    spent = {"detect DIR": [2.0, 4.0], "check UPLOAD --against FILE": [1.0, 1.0]}
    found = {"seconds": spent, "adapters_mb": 100.2, "reference_mb": 1.12}
    (work / "speed.json").write_text(json.dumps(found))


def faults(file: Path) -> None:
    ends = {"at the old output, staging left": 3, "at the new output, nothing left": 1}
    tally = {"kills": 600, "torn": 1, "looks": 1200, "torn_looks": 2, "ends": ends}
    file.write_text(json.dumps(dict.fromkeys(tables.PARTS, tally)))


def flower(work: Path) -> None:
    rounds = [
        {"loss": 2.0, "accuracy": 0.5},
        {"loss": 1.0, "accuracy": 0.75},
        {"loss": 0.5, "accuracy": 1},
    ]
    left = {"contaminated": 3, "right": 2, "wrong": 1}
    rows = [
        {"task": task, "server": server, "seed": 1, "bad": 3}
        | {"rounds": [r | left for r in rounds] if server.startswith("clair") else rounds}
        for task in ("none", "family")
        for server in SERVERS
    ]
    work.mkdir()
    (work / "flower.json").write_text(json.dumps(rows))


def fuzzed(file: Path) -> None:
    plain = {"target": "header", "seconds": 5, "engine": "plain", "inputs": 1500, "findings": 0}
    guided = plain | {"engine": "atheris", "findings": 1}
    lines(file, [plain, plain, guided])


def judged(file: Path) -> None:
    spent = {"peak_gb": 0.05, "tables_gb": 0.0}
    lines(file, [{"clients": 10**n, "cpu_seconds": 10.0 ** (n - 3), **spent} for n in (2, 3, 4)])


def compared(work: Path) -> None:
    exact = {"a": ["benign", 1.0], "b": ["contaminated", 5.0], "c": ["benign", 0.5]}
    one = {"clients": 70, "mix": 0, "own": False, "seed": 1, "limits": dict.fromkeys("abc", 3.0)}
    sketched = exact | {"a": ["suspicious", 2.0]}
    lines(work / "same.jsonl", [one | {"exact": exact, "sketched": sketched, "apart": 2e-4}])


def curves(work: Path) -> None:
    points = dict.fromkeys(p for points in speed_curves.CURVES.values() for p in points)
    lines(work / "curves.jsonl", [row(point, 1.0) for point in points])


def federated(work: Path) -> None:
    from examples.federated_rounds import PANELS
    from examples.federated_servers import SERVERS as STEPS

    work.mkdir()
    counts = {"contaminated_averaged": 1, "benign_left_out": 0, "no_verdict": False}
    for server in reversed(STEPS):  # some servers apart, as the page says
        rows = [
            {"panel": panel, "seed": seed, "server": server, "round": number, **counts}
            | {when: {"loss": 1 / number, "accuracy": 0.1 * number} for when in ("sent", "local")}
            for panel in PANELS
            for seed in (1, 2)
            for number in (1, 2, 3, 4, 5)
        ]
        (work / f"{server}.json").write_text(json.dumps(rows))


def history(work: Path) -> None:
    from benchmarks.history_rounds import Federation

    for seed in (301, 2011):
        for scenario in ("honest", "half-strength"):
            one = Federation(scenario, "none", seed)
            names = [spec.name for spec in one.specs()]
            bad = names[12 - one.attackers :]
            said = {n: ["contaminated", 9.0] if n in bad else ["benign", 0.5] for n in names}
            rounds = [{"round": n, "status": "complete", "clients": said} for n in (1, 2, 3)]
            lines(work / "rounds" / f"{one.name}.jsonl", rounds)


RUNS: dict[str, Callable[[Path], None]] = {
    "check.md": check,
    "faults.md": faults,
    "federated_rounds.md": federated,
    "flower.md": flower,
    "fuzz.md": fuzzed,
    "history.md": history,
    "judging.md": judged,
    "same_answers.md": compared,
    "speed.md": curves,
}
NEEDS = {"federated_rounds.md": "peft", "history.md": "peft", "flower.md": ""}
"""What makers import beside what the suite has."""
pages = pytest.mark.parametrize("one", IN_PART, ids=lambda one: one.page)


def kept(one: InPart, work: Path) -> Path:
    """A run that is made up."""
    if NEEDS.get(one.page):
        pytest.importorskip(NEEDS[one.page])
    RUNS[one.page](work / one.run)
    return work / one.run


def heads(text: str) -> list[str]:
    """The first line of every table, spaces apart."""
    found = re.findall(r"^(\|.*\|)\n\|[-| ]+\|$", text, re.MULTILINE)
    return [re.sub(r" +", " ", head) for head in found]


def test_every_page_has_a_run_that_is_made_up() -> None:
    assert RUNS.keys() == PARTS.keys()


@pages
def test_a_run_gives_every_part_that_the_page_marks_in_its_form(
    one: InPart, tmp_path: Path
) -> None:
    page, names = paper.marked(one)
    made = one.make(kept(one, tmp_path))
    assert sorted(made) == sorted(names)
    assert names
    for name, text in marks.pieces(page):
        if name and heads(text):
            assert heads(made[name])[0] == heads(text)[0], name
    again = marks.replaced(page, made)
    assert [t for n, t in marks.pieces(again) if n is None] == [
        t for n, t in marks.pieces(page) if n is None
    ]


@pages
def test_without_a_run_there_are_no_parts(one: InPart, tmp_path: Path) -> None:
    assert one.make(tmp_path / one.run) == {}


@pages
def test_a_picture_is_drawn_from_the_run(one: InPart, tmp_path: Path) -> None:
    assert (one.draw is None) == (one.picture == "")
    if one.draw:
        pytest.importorskip("matplotlib")
        assert one.draw(kept(one, tmp_path), tmp_path / one.picture)
        assert (tmp_path / one.picture).stat().st_size > 1000


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    found = {
        name: PARTS[name].make(kept(PARTS[name], tmp_path)) for name in RUNS if name not in NEEDS
    }
    assert "| 32 | 1 | 2 | 1.0000 | 0 | 0.38 |" in found["check.md"]["by size"]
    assert "to 1e-6 | 0.500 |\n" in found["check.md"]["left out"]
    assert "whole adapters (wanted 0.98) | 0.500 |" in found["check.md"]["left out"]
    assert "| detect DIR | 3.0 | 1.00 |" in found["check.md"]["time"]
    assert "--against FILE | 1.0 | 0.38 |\n\nThe adapters take 100 MB" in found["check.md"]["time"]
    same = found["same_answers.md"]["verdicts"]
    assert "| 70 | 1 | 3 | 1 | 1 | 0.000 | 0.980 | 1.000 |" in same
    assert "Refined adapters of 1 cohorts are at most 2.0e-04 apart." in same
    assert found["faults.md"]["counts"].startswith("**2 400 kills, 4 torn outputs; 4 800 looks")
    ends = found["faults.md"]["ends"]
    assert "| the old output, staging left beside it | 9 |" in ends  # not those before every call
    assert (
        "| `header` | bytes of a safetensors file | 10 | 3 000 | none |"
        in found["fuzz.md"]["plain"]
    )
    assert found["fuzz.md"]["guided"].endswith("| `header` | 5 | 1 500 | 1 |")
    assert "| 10 000 | 10.00 s | 0.05 GB | 0.00 GB |" in found["judging.md"]["now"]
    assert (
        "The exponent is 1.00 between the last two, and 1.00 over all."
        in found["judging.md"]["now"]
    )
    assert "| exponent | 1.00 |" in found["speed.md"]["curves"]
    assert "(speed-curves.png)" in found["speed.md"]["curves"]


def test_servers_that_were_run_apart_stand_in_one_order(tmp_path: Path) -> None:
    one = PARTS["federated_rounds.md"]
    made = one.make(kept(one, tmp_path))
    page = dict(marks.pieces(paper.marked(one)[0]))
    for name, text in made.items():
        shown, there = (
            [line.split(" | ")[0] for line in t.splitlines() if line] for t in (text, page[name])
        )
        assert [server for server in shown if server in there] == there
    assert "| 0.100 | 0.200 | 0.300 | 0.400 | 0.500 | 0.200 | 10 | 0 | 0 |" in made["family local"]


def test_of_one_point_a_curve_has_no_exponent_and_no_picture(tmp_path: Path) -> None:
    lines(tmp_path / "speed" / "curves.jsonl", [row(speed_curves.CURVES["rank"][-1], 1.0)])
    one = PARTS["speed.md"]
    text = one.make(tmp_path / "speed")["curves"]
    assert "### By rank" in text
    assert "exponent" not in text
    assert "png" not in text
    assert one.draw is not None
    assert not one.draw(tmp_path / "speed", tmp_path / "none.png")


def test_a_tally_of_kills_is_kept_as_the_tables_want_it() -> None:
    tally = kills.Tally(kills=2)
    tally.ends["at the new output, nothing left"] += 2
    made = tables.kills(json.loads(json.dumps({"one writer, at random": vars(tally)})))
    assert made["ends"].endswith("| the new output, nothing left | 2 |")


@pytest.mark.parametrize(
    ("text", "failed", "found"),
    [
        ("x\nfuzz: npz: 12 inputs, nothing found\n", False, ("plain", 12, 0)),
        ("fuzz: npz: input 3, kept as f: K\nfuzz: npz: 3 inputs, 1 found\n", True, ("plain", 3, 1)),
        (
            "stat::number_of_executed_units: 1424\nstat::average_exec_per_sec: 3\n",
            False,
            ("atheris", 1424, 0),
        ),
        ("==1== ERROR\nstat::number_of_executed_units: 7\n", True, ("atheris", 7, 1)),
        ("killed\n", True, ()),
    ],
)
def test_what_a_target_did_is_taken_from_what_it_says(
    text: str, failed: bool, found: tuple[Any, ...]
) -> None:
    assert tuple(run.told(text, failed).values()) == found


def test_nothing_left_out_is_no_table() -> None:
    assert check_tables.left_out([]) == ""
