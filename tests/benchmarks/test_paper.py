"""Every page of results is made again from a kept run, or named with the way to make it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.progress import Progress

from benchmarks import detection, measures, paper
from tests.benchmarks.test_detection import TWO, work

__all__ = ["work"]


def test_every_table_and_figure_is_made_or_named() -> None:
    there = {p.name for p in paper.RESULTS.iterdir() if p.suffix in (".md", ".png")}
    made = [name for one in paper.KEPT for name in one.files]
    assert len(made) == len(set(made))
    assert not set(made) & paper.ANEW.keys()
    assert {*made, *paper.ANEW} == there


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
    assert said.keys() == {n for one in paper.KEPT for n in one.files} | paper.ANEW.keys()
    made = {name for name, how in said.items() if how == "made"}
    assert made == {p.name for p in out.iterdir()} - {"theory.md"} == {*paper.KEPT[0].files}
    text = measures.as_markdown(json.loads(kept.read_text()))
    assert (out / "detection-full-2000.md").read_text() == text
    assert (out / "theory.md").read_text() == "as it was"
    assert said["text_copy.md"] == "left alone, nothing in text_copy that this clair has made"
    assert said["real.md"] == "left alone, no folder real"
    assert said["theory.md"].startswith("left alone, no run is kept; python -m benchmarks.theory")
