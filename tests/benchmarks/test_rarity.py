"""The table of honest scores counts who is honest, in cohorts with a verdict, and says of which."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import detection, rarity, real
from benchmarks.cells import Cell, grid
from benchmarks.real_cells import digest, keep
from clair_cli.detection.calibration import DETECTION
from clair_cli.rarity import Table
from clair_cli.rarity import digest as of_constants
from clair_cli.records import decode


def client(score: float | None, bad: bool = False, **more: Any) -> dict[str, Any]:
    return {"score": score, "bad": bad, "copied": None, "verdict": "benign"} | more


def kept(cell: Cell, work: Path, status: str, *clients: dict[str, Any]) -> None:
    """A result of the cell, as if this very code had judged it."""
    path = detection.place(work, asdict(cell), detection.sources())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"status": status, "clients": clients}))


def first(group: str, even: bool = True) -> Cell:
    return next(c for c in grid(False) if c.group == group and rarity.is_even(c) == even)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """One cell of each kind, and one real cohort of each kind."""
    two, three = client(2.0), client(3.0, True)
    kept(first("strong"), tmp_path, "complete", two, three, client(None, verdict="broken"))
    kept(first("copies"), tmp_path, "complete", client(0.5), client(9.0, copied=True))
    kept(first("clean"), tmp_path, "no_verdict", client(None, verdict=None))
    kept(first("majority"), tmp_path, "complete", client(9.0))
    kept(first("controls", False), tmp_path, "complete", client(1.0), client(1.001))
    reports = tmp_path / "reports" / digest(rarity.PACKAGE)
    reports.mkdir(parents=True)
    cohorts = real.selected("held-out")
    for condition, score in (("even", 4.0), ("few-10", 5.0)):
        cohort = next(
            c for c in cohorts
            if c.condition == condition and any(not k.honest for k in c.clients.values())
        )  # fmt: skip
        said = [
            {"id": name, "verdict": "benign", "score": score if who.honest else 99.0}
            for name, who in cohort.clients.items()
        ]
        keep(cohort, reports, {"report": {"status": "complete", "clients": said}, "seconds": 1})
    return tmp_path


def made(work: Path, *more: str) -> Table:
    out = work / "table.json"
    rarity.main(["--work", str(work), "--out", str(out), *more])
    return decode(Table, json.loads(out.read_text()))


def test_only_honest_usable_clients_that_nobody_copied_count(work: Path) -> None:
    found = made(work)
    even, uneven = (dict(zip(s.scores, s.clients, strict=True)) for s in (found.even, found.uneven))
    assert (even.pop(4.0), uneven.pop(5.0)) > (2, 2)
    assert (even, uneven) == ({0.5: 1, 2.0: 1}, {1.0: 2})
    assert found.constants == of_constants(DETECTION)


def test_the_table_says_what_it_was_made_from(work: Path) -> None:
    found = made(work)
    theirs, cells = found.made_from
    assert (theirs["benchmark"], theirs["seeds"], theirs["cohorts"]) == ("real", "held-out", 2)
    assert theirs["source"] == digest(rarity.PACKAGE)
    assert (cells["benchmark"], cells["mode"]) == ("detection", "quick")
    assert (cells["cohorts"], cells["silent"], cells["honest_clients"]) == (4, 1, 4)
    total = sum(found.even.clients) + sum(found.uneven.clients)
    assert total == theirs["honest_clients"] + cells["honest_clients"]


def test_results_of_another_clair_are_not_counted_and_nothing_is_written(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "sources", lambda: "another")
    monkeypatch.setattr(rarity, "digest_of", lambda _: "another")
    with pytest.raises(SystemExit, match="nothing is kept there of this clair"):
        made(work)
    assert not (work / "table.json").exists()
