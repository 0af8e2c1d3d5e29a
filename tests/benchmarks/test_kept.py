"""What a benchmark measures it keeps, where `make paper` looks for it. Nothing is measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import (
    adaptive,
    adaptive_tables,
    calibration,
    check,
    flower_rounds,
    judging,
    page,
    theory,
    theory_records,
)
from benchmarks import paper_parts as parts
from fuzz import kills
from tests import ROOT
from tests.helpers.commands import ENVIRONMENT


def started(monkeypatch: pytest.MonkeyPatch, main: Any, *words: object) -> None:
    """Run a command line."""
    monkeypatch.setattr(sys, "argv", ["it", *map(str, words)])
    main()


def test_check_keeps_every_cohort_and_the_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"a": ("benign", 1.0)}
    by = {"256": {"clients": said, "status": "complete"}}
    one = {"status": "complete", "exact": said, "by": by, "checked": {"a": ("benign", 1.0, 0.1)}}
    found = {"seconds": {"detect DIR": [2.0]}, "adapters_mb": 1.0, "reference_mb": 1.0}
    monkeypatch.setattr(check, "cohorts", lambda *_: [("x", None), ("y", None)])
    monkeypatch.setattr(check, "judged", lambda name, *_: {"name": name, **one})
    monkeypatch.setattr(check, "speed", lambda _: found)
    started(monkeypatch, check.main, "--work", tmp_path)
    started(monkeypatch, check.main, "--work", tmp_path, "--speed")
    made = parts.check(tmp_path)
    shown = capsys.readouterr().out
    assert made.keys() == {"by size", "left out", "time"}
    assert all(text in shown for text in made.values())
    assert "| 256 | 2 | 2 | 1.0000 |" in made["by size"]
    monkeypatch.setattr(check, "judged", lambda *_: pytest.fail("judged again"))
    started(monkeypatch, check.main, "--work", tmp_path)


def test_flower_keeps_the_rounds_of_all_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    client = SimpleNamespace(name="bad", benign=False)
    app = SimpleNamespace(DEFAULTS={}, specs=lambda _: [client])
    monkeypatch.setitem(sys.modules, "examples.flower_app.rounds", app)
    rounds = [
        {"loss": 2.0, "accuracy": 0.5, "contaminated": 1, "left_out": {"bad": "contaminated"}}
    ]
    monkeypatch.setattr(flower_rounds, "run", lambda *_: rounds)
    words = ["--work", tmp_path, "--tasks", "family", "--plot", tmp_path / "flower.png"]
    started(monkeypatch, flower_rounds.main, *words)
    made = parts.flower(tmp_path)
    assert made.keys() == {"family"}
    assert "| clair, mean | 2.000 | 0.500 | 1 of 1 | 0 |" in made["family"]
    assert made["family"] in capsys.readouterr().out
    assert parts.draw_flower(tmp_path, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "flower.png").read_bytes()


def test_judging_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"clients": 100, "cpu_seconds": 0.5, "peak_gb": 0.1, "tables_gb": 0.0}
    done = SimpleNamespace(stdout=json.dumps(row) + "\n")
    monkeypatch.setattr(judging.subprocess, "run", lambda *_, **__: done)
    started(monkeypatch, judging.main, "--clients", 100, "--keep", tmp_path / "rows")
    made = parts.judging(tmp_path / "rows")
    assert "| 100 | 0.50 s | 0.10 GB | 0.00 GB |" in made["now"]
    assert made["now"] in capsys.readouterr().out


def test_what_is_timed_in_a_browser_is_all_that_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter(range(10, 100))
    context = SimpleNamespace(close=lambda: None)
    tab = SimpleNamespace(evaluate=lambda _: next(taken), context=context)
    monkeypatch.setattr(page, "opened", lambda *_: tab)
    monkeypatch.setattr(page, "SIZES", ((3, 2),))
    found = page.timed(SimpleNamespace(version="1.2"), tmp_path)
    text = page.document(json.loads(json.dumps(found)))
    size = (tmp_path / "large.html").stat().st_size / 1000
    assert f"| 3 x 2 | {size:.0f} | 10 | 14 |" in text
    assert "Chromium 1.2 is" in text
    assert "over 9 loads" in text


def test_kills_keep_their_tallies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = kills.Tally(kills=3, looks=4)
    tally.ends["at the old output, staging left"] += 3
    found = {"one writer, at random": tally, "one writer, before every call": kills.Tally(kills=2)}
    monkeypatch.setattr(kills, "campaign", lambda *_, **__: found)
    started(monkeypatch, kills.main, "--keep", tmp_path / "faults.json")
    made = parts.faults(tmp_path / "faults.json")
    assert made["counts"].startswith("**5 kills, 0 torn outputs; 4 looks")
    shown = capsys.readouterr().out
    assert all(text in shown for text in made.values())


def test_every_end_of_a_kill_has_a_word_on_the_page() -> None:
    """No tally may be lost because the table has no row for it."""
    from fuzz import tables

    outputs = ("old", "new")
    wanted = {f"at the {o} output, {left} left" for o in outputs for left in ("staging", "nothing")}
    assert tables.ENDS.keys() == wanted


def test_a_fuzzed_target_is_kept(tmp_path: Path) -> None:
    words = ["--target", "header", "--engine", "plain", "--seconds", "1", "--keep", "rows.jsonl"]
    command = [sys.executable, "-m", "fuzz.run", *words]
    env = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert (row["target"], row["engine"], row["findings"]) == ("header", "plain", 0)
    assert f"fuzz: header: {row['inputs']} inputs, nothing found" in done.stdout
    assert 0 < row["seconds"] <= 1
    assert parts.fuzz(tmp_path / "rows.jsonl").keys() == {"plain"}


def test_the_adaptive_attacker_theory_and_calibration_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "chosen", lambda _: [])
    monkeypatch.setattr(adaptive, "document", lambda *_: "")
    started(monkeypatch, adaptive.main, "--work", tmp_path, "--out", tmp_path)
    rows, facts = adaptive_tables.from_json((tmp_path / "adaptive.json").read_text())
    assert (rows, facts[:31]) == ([], "`python -m benchmarks.adaptive ")
    gain = theory_records.Gain(2, 0.5, 1.0, 1.0, 0.9, 0.8)
    monkeypatch.setattr(theory, "collect", lambda *_: {"gain": [gain], "strength": [(2, 0.5, 0.8)]})
    monkeypatch.setattr(theory, "report", lambda *_: None)
    started(monkeypatch, theory.main, "--keep", tmp_path / "theory.json")
    results, facts = theory_records.from_json((tmp_path / "theory.json").read_text())
    assert results == {"gain": [gain], "strength": [(2, 0.5, 0.8)]}
    assert facts.startswith("`python -m benchmarks.theory`")
    monkeypatch.setattr(calibration, "load", lambda _: [])
    monkeypatch.setattr(calibration, "rows", lambda _: [])
    monkeypatch.setattr(calibration, "document", lambda _: "")
    words = ["--cohorts", "none", "--out", tmp_path, "--keep", tmp_path / "calibration.json"]
    started(monkeypatch, calibration.main, *words)
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert kept["delivered"]["limit"] == 3
