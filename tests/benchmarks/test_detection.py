"""The detection benchmark measures what it says, on the cohorts it promises, with the right truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from benchmarks import detection, measures
from benchmarks.attacks import ATTACKS
from benchmarks.cells import Cell, grid
from benchmarks.controls import CONTROLS
from benchmarks.pools import CONTAMINATED, Pool, pools
from tests.helpers.commands import SAMPLES

BENIGN = [f"client-{n:02}" for n in (1, 2, 4, 5, 7, 8)]
POOL = Pool("llama", 64, False, "family", 8, 2, seed=1, clean=6, most=1)
TWO = Cell(POOL, "strong", (("clean", 6), ("random", 1), ("cipher", 1)))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A pool of the samples: six clean clients, one random, one cipher."""
    names = {f"clean-{n:02}": client for n, client in enumerate(BENIGN, start=1)}
    names |= {"random-01": "client-03", "cipher-01": "client-06"}
    for name, client in names.items():
        shutil.copytree(SAMPLES / client, tmp_path / "pools" / POOL.name / name)
    return tmp_path


def rows(cells: list[Cell], work: Path) -> list[dict[str, Any]]:
    return detection.rows_of(cells, work, 1, Progress(disable=True))


def client(verdict: str | None = "benign", **facts: Any) -> dict[str, Any]:
    """One client of a cell's result."""
    common = {"client": "client-01", "kind": "clean", "bad": False, "score": None, "codes": []}
    return common | {"poisoned": None, "copied": None, "modules": []} | facts | {"verdict": verdict}


def result(*clients: dict[str, Any]) -> dict[str, Any]:
    """A cell's result."""
    names = ("pool", "init", "kind", "samples", "group", "what", "attack")
    said = {"status": "complete", "findings": [], "seconds": 0.5, "field": [None]}
    return dict.fromkeys(names, "") | said | {"clients": list(clients)}


def test_auroc_counts_pairs_and_ties_half():
    assert measures.auroc([3, 1, 2, 0], [True, False, True, False]) == 1
    assert measures.auroc([0, 1, 2], [True, False, False]) == 0
    assert measures.auroc([2, 1, 2, 3], [True, False, False, False]) == pytest.approx(0.5)
    assert measures.auroc([float("inf"), 1], [True, False]) == 1
    assert measures.auroc([1, 2], [False, False]) is None
    assert measures.auroc([1, 2], [True, True]) is None


def test_sets_are_exact_or_not_and_shares_are_of_their_class():
    bad = [True, True, False, False, False]
    said = measures.judged([5, 1, 2, 0, 0], [True, False, True, False, False], bad)
    assert said == pytest.approx([5 / 6, 0, 0.5, 1 / 3])
    assert measures.judged([5, 4, 0, 0, 0], bad, bad) == [1, 1, 1, 0]
    assert measures.judged([0, 0], [False, False], [False, False]) == [None, 1, None, 0]


def test_localisation_is_f1_of_attackers_and_modules():
    one = client(poisoned=["a", "b"], modules=["b", "c"])
    two = client(poisoned=["a"], modules=["a"]) | {"client": "client-02"}
    assert measures.localisation([one]) == pytest.approx(1 / 2)
    assert measures.localisation([one, two]) == pytest.approx(2 / 3)
    assert measures.localisation([client(modules=["a"])]) is None
    assert measures.localisation([client(poisoned=["a"], modules=None)]) is None


def test_a_broken_client_is_found_and_no_verdict_finds_nobody():
    broken, honest = client("broken", bad=True), client(score=0.5)
    assert measures.row(result(broken, honest))["clair"] == [1, 1, 1, 0, 0.5]
    silent = measures.row(result(client(None, bad=True), client(None)))
    assert silent["clair"] == [0.5, 0, 0, 0, 0.5]


def test_copies_are_seen_when_all_of_the_group_are_at_least_suspicious():
    honest = client(copied=False, score=0.1)
    copy, copied = (client("suspicious", bad=b, copied=not b, score=2.0) for b in (True, False))
    row = measures.row(result(copy, copied, honest))
    assert row["copies"] is True
    assert row["clair"][:4] == [1, 1, 1, 0]
    assert [c[0] for c in row["clients"]] == ["clean", "copied", "clean"]
    assert measures.row(result(copy, client(copied=True), honest))["copies"] is False
    assert measures.row(result(honest | {"copied": None}))["copies"] is None


def test_means_leave_out_what_there_is_not():
    assert measures.mean([1, None, 0]) == 0.5
    assert measures.median([3, None, 1, 2]) == 2
    assert measures.mean([None]) is None
    rows = [measures.row(result(client("contaminated"), client(), client("suspicious")))]
    assert measures.honest_share("suspicious")(rows) == pytest.approx(1 / 3)
    assert measures.false_convictions(rows) == 1


def test_the_grid_is_the_same_every_time_and_its_names_are_unique():
    for full in (False, True):
        cells = grid(full)
        assert cells == grid(full)
        assert len({c.name for c in cells}) == len(cells)
    assert len(grid(True)) <= 2500
    assert not {c.name for c in grid(True)} & {c.name for c in grid(True, shift=1000)}


def test_the_grid_covers_what_is_promised():
    cells = grid(True)
    sizes = {c.size for c in cells}
    assert {5, 8, 12, 20, 40} <= sizes
    shares = {c.bad / c.size for c in cells if c.group not in ("few", "majority", "thin")}
    assert min(shares) == 0
    assert max(shares) == 0.45
    assert all(c.bad < c.size / 2 for c in cells if c.group != "majority")
    assert all(c.bad > c.size / 2 for c in cells if c.group == "majority")
    assert {c.pool for c in cells} == set(pools())
    assert {label for c in cells for label, _ in c.drawn} >= set(CONTAMINATED)
    assert {c.attack for c in cells} - {""} == {a.name for a in ATTACKS}
    assert {c.control for c in cells} - {""} == {c.name for c in CONTROLS}
    assert len({c.pool for c in cells if c.attack and c.pool.own_init}) == 3
    assert len({c.pool for c in cells if c.attack and not c.pool.own_init}) == 3


@pytest.mark.parametrize("full", [False, True])
def test_every_pool_has_the_clients_that_are_drawn(full: bool):
    for cell in grid(full):
        there = [detection.label_of(s.name) for s in cell.pool.specs()]
        assert all(there.count(label) >= count for label, count in cell.drawn), cell.name


def test_a_cell_is_judged_once_with_the_right_truth(work: Path, monkeypatch: pytest.MonkeyPatch):
    (first,) = rows([TWO], work)
    assert first["clair"][:4] == [1, 1, 1, 0]
    bad = {kind for kind, is_bad, *_ in first["clients"] if is_bad}
    assert bad == {"random", "cipher"}
    assert [c[2] for c in first["clients"]].count("contaminated") == 2
    assert len(first["field"]) == len(detection.JUDGES)

    monkeypatch.setattr(detection, "detect", lambda *_: pytest.fail("judged twice"))
    assert rows([TWO], work) == [first]
    assert len(list((work / "cells").iterdir())) == 1


def test_a_cell_that_fails_is_named_and_not_kept(work: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(detection, "detect", failing)
    with pytest.raises(RuntimeError, match=r"cipher 1 of 8 #0: no luck"):
        rows([TWO], work)
    assert not list((work / "cells").iterdir())


def test_the_truth_is_not_in_the_folder(work: Path, monkeypatch: pytest.MonkeyPatch):
    real: Callable[..., Any] = detection.detect
    seen: list[tuple[set[str], bytes]] = []

    def watched(folder: Path, *args: Any) -> Any:
        around = folder.parent.rglob("*")
        files = [f for f in around if f.is_file()]
        names = {str(f.relative_to(folder)).split("/")[0] for f in files}
        seen.append((names, b"".join(f.read_bytes() for f in files)))
        return real(folder, *args)

    monkeypatch.setattr(detection, "detect", watched)
    rows([TWO], work)
    ((names, content),) = seen
    assert names == {f"client-{n:02}" for n in range(1, 9)}
    assert not [w for w in (b"cipher", b"random", b"clean", b"contaminated") if w in content]


def test_planted_attackers_replace_honest_clients(work: Path):
    honest = (("clean", 6),)
    cells = [
        Cell(POOL, "planted strong", honest, "A3 boost x10", 2),
        Cell(POOL, "planted strong", honest, "A18 one NaN", 1),
        Cell(POOL, "planted medium", honest, "A15 noise in a quarter", 2),
        Cell(POOL, "copies", honest, "A10 mimic", 1),
        Cell(POOL, "planted weak", honest, "A16 rank 2r, noise 1x", 1),
    ]
    boost, nan, partly, mimic, wide = rows(cells, work)
    assert boost["clair"][:4] == [1, 1, 1, 0]
    assert [c[0] for c in boost["clients"]].count("A3 boost x10") == 2
    assert nan["clair"][:3] == [1, 1, 1]
    assert all(said[2] == 1 for said in nan["field"])  # nobody accepts what is not finite
    assert partly["localisation"] is not None
    assert boost["localisation"] is None
    assert [c[0] for c in mimic["clients"]].count("copied") == 1
    assert mimic["copies"] is not None
    half = len(detection.RULES)
    assert wide["field"][:half] == [None] * half  # ranks differ, so the factors are not comparable
    assert None not in wide["field"][half:]


def test_controls_change_nobody_into_an_attacker(work: Path):
    cells = [Cell(POOL, "controls", (("clean", 6),), control=c.name) for c in CONTROLS[1:5]]
    for row in rows(cells, work):
        assert not any(c[1] for c in row["clients"])
        assert row["clair"][0] is row["clair"][2] is None


def test_the_tables_and_rows_of_a_run(work: Path):
    silent = Cell(POOL, "few", (("clean", 2), ("cipher", 1)))
    facts = {"command": "command", "machine": "machine", "versions": "versions"}
    doc = detection.document(rows([TWO, silent], work), facts, None)
    text = measures.as_markdown(doc)
    assert "| strong, 8 and more clients: exact | 1 | >= 0.98 | 1.000 | - | 1.000 | yes |" in text
    assert "| 1 of 5 clients: recall | 0 | >= 1 | - | - | - | - |" in text
    assert "| FLAME, Delta W |" in text
    assert str(work) not in text
    read = json.loads(detection.as_json(doc))
    assert [r["what"] for r in read["rows"]] == [r["what"] for r in doc["rows"]]
    assert read["rows"][0]["clair"][:4] == [1, 1, 1, 0]


def test_pictures_are_small(work: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    from benchmarks import pictures

    doc = detection.document(rows([TWO], work), {}, None)
    files = pictures.draw(doc, tmp_path / "detection-full.json")
    assert [f.name for f in files] == [f"detection-{n}.png" for n in ("scores", "field", "dose")]
    assert all(1000 < f.stat().st_size < 200_000 for f in files)
