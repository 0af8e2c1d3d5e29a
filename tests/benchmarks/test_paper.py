"""Every page of results is made from a kept run, whole or in part, or named with the way to make it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.progress import Progress

from benchmarks import detection, marks, measures, paper
from tests.benchmarks.test_detection import TWO, work

__all__ = ["work"]


def test_every_table_and_figure_is_made_or_named() -> None:
    there = {p.name for p in paper.RESULTS.iterdir() if p.suffix in (".md", ".png")}
    whole = [name for one in paper.KEPT for name in one.files]
    parts = [name for one in paper.IN_PART for name in (one.page, one.picture) if name]
    named = [*whole, *parts, *paper.ANEW]
    assert len(named) == len(set(named))
    assert {*named} <= there
    assert there <= {*named}
    assert paper.COMMANDS.keys() <= {*whole}
    assert all(paper.marked(one)[1] for one in paper.IN_PART)


def test_marks_stand_in_pages_that_are_made_in_part_alone() -> None:
    """A mark in another page would promise what nobody keeps."""
    pages = {p.name for p in paper.RESULTS.glob("*.md") if marks.names(p.read_text("utf-8"))}
    assert pages == {one.page for one in paper.IN_PART}


def test_pages_are_made_from_kept_runs_and_others_are_left_alone(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    facts = {"command": "command", "machine": "machine", "versions": "versions"}
    rows = detection.rows_of([TWO], work, 1, Progress(disable=True))
    runs, out = tmp_path / "runs", tmp_path / "out"
    (runs / "text_copy").mkdir(parents=True)
    kept = runs / "detection-full-2000.json"
    kept.write_text(detection.as_json(detection.document(rows, facts, None)))
    out.mkdir()
    (out / "theory.md").write_text("as it was")
    paper.main(["--work", str(runs), "--out", str(out)])
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    names = {n for one in paper.KEPT for n in one.files} | paper.ANEW.keys()
    assert said.keys() == names | {n for p in paper.IN_PART for n in (p.page, p.picture) if n}
    made = {name for name, how in said.items() if how == "made"}
    assert made == {p.name for p in out.iterdir()} - {"theory.md"} == {*paper.KEPT[0].files}
    text = measures.as_markdown(json.loads(kept.read_text()))
    assert (out / "detection-full-2000.md").read_text() == text
    assert (out / "theory.md").read_text() == "as it was"
    assert said["text_copy.md"] == "left alone, nothing in text_copy that this clair has made"
    assert said["real.md"] == "left alone, no folder real"
    assert said["theory.md"].startswith("left alone, no theory.json; python -m benchmarks.theory")
    assert said["flower.png"].startswith(
        "left alone, no run in flower; python -m benchmarks.flower"
    )
    assert said["refinement-real.md"].startswith("left alone, no run is kept; by hand")


KILLS = {
    "one writer, at random": {"kills": 7, "torn": 0, "looks": 8, "torn_looks": 0, "ends": {}},
}
CHECKED = {
    "name": "drawn",
    "status": "complete",
    "exact": {"a": ["benign", 1.0]},
    "by": {"64": {"clients": {"a": ["benign", 1.5]}, "status": "complete"}},
    "checked": {},
}


def made(work: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was said of each file."""
    paper.main(["--work", str(work), "--out", str(out)])
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_prose_is_kept_and_parts_without_a_run_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "check").mkdir(parents=True)
    (tmp_path / "runs" / "check" / "rows.jsonl").write_text(json.dumps(CHECKED) + "\n")
    (tmp_path / "runs" / "faults.json").write_text(json.dumps(KILLS))
    said = made(tmp_path / "runs", tmp_path / "out", capsys)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"check.md", "faults.md"}
    assert said["check.md"].startswith(
        "made in part: by size; left alone, not kept: left out, time"
    )
    assert said["faults.md"] == "made in part: counts, kills, ends"
    for page, parts in (("check.md", {"by size"}), ("faults.md", {"counts", "kills", "ends"})):
        before, after = (
            marks.pieces((folder / page).read_text("utf-8"))
            for folder in (paper.RESULTS, tmp_path / "out")
        )
        changed = {b[0] for b, a in zip(before, after, strict=True) if b != a}
        assert changed == parts
    text = (tmp_path / "out" / "check.md").read_text("utf-8")
    assert "| 64 | 1 | 1 | 1.0000 | 0 | 0.50 | 0.50 | 0.50 | 0.50 | 0.00 (0) | 0 |" in text


def test_pages_are_made_over_themselves_and_the_second_time_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is without --out."""
    results = tmp_path / "results"
    shutil.copytree(paper.RESULTS, results)
    monkeypatch.setattr(paper, "RESULTS", results)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "faults.json").write_text(json.dumps(KILLS))
    before = {p.name: p.read_bytes() for p in results.iterdir()}
    made(tmp_path / "runs", results, capsys)
    first = {p.name: p.read_bytes() for p in results.iterdir()}
    assert {name for name in before if before[name] != first.get(name)} == {"faults.md"}
    made(tmp_path / "runs", results, capsys)
    assert {p.name: p.read_bytes() for p in results.iterdir()} == first


def test_a_mark_without_an_end_is_an_error_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    shutil.copytree(paper.RESULTS, results)
    monkeypatch.setattr(paper, "RESULTS", results)
    page = results / "judging.md"
    page.write_text(page.read_text("utf-8").replace(marks.END, ""))
    (tmp_path / "faults.json").write_text(json.dumps(KILLS))
    with pytest.raises(SystemExit, match=r"nothing is made\. judging\.md: `now` has no end"):
        paper.main(["--work", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_page_of_pages_is_what_its_run_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures as a run would be kept."""
    figures = ((32, 224, 141, 88, 96), (200, 448, 409, 107, 118), (1000, 448, 1530, 279, 317))
    names = ("clients", "modules", "kb", "least", "median")
    rows = [dict(zip(names, row, strict=True)) | {"loads": 9} for row in figures]
    found = {"rows": rows, "browser": "150.0.7871.100", "machine": "Linux x86_64, 2 cores"}
    (tmp_path / "page.json").write_text(json.dumps(found | {"load": 1.5}))
    assert made(tmp_path, tmp_path / "out", capsys)["page.md"] == "made"
    again = (tmp_path / "out" / "page.md").read_text("utf-8")
    assert again == (paper.RESULTS / "page.md").read_text("utf-8")
