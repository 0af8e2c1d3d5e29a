"""The tutorial that trains: its cells run, find the truth, and end with better adapters."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests import ROOT


@pytest.mark.slow
def test_the_cells_find_the_truth_and_refined_adapters_are_no_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    told = runpy.run_path(str(ROOT / "examples" / "tutorial.py"))
    assert len(told["truth"]) == 2
    assert told["found"] == told["truth"]
    assert {c.verdict for c in told["report"].clients if c.client not in told["truth"]} == {
        "benign"
    }
    assert len(told["table"]["refined"]) == 4
    assert told["losses"]["refined"] <= told["losses"]["local"]
