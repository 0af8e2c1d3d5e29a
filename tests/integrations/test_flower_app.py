"""The example for Flower, in its simulation engine and on a SuperLink with SuperNodes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs the extra [flower]")
pytest.importorskip("peft", reason="needs the extra [examples]")

from examples.flower_app.rounds import DEFAULTS, specs
from tests.helpers.commands import clair
from tests.helpers.superlink import ROOT, appeared, environment, federation, flwr_run

SIMULATE = "import json, sys; from examples.flower_app.rounds import simulate; "
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def bad(config: dict[str, Any]) -> set[str]:
    return {spec.name for spec in specs(DEFAULTS | config) if not spec.benign}


@pytest.mark.skipif(find_spec("ray") is None, reason="needs flwr[simulation]")
def test_three_rounds_in_the_simulation_engine_learn_and_leave_out_the_contaminated(
    tmp_path: Path,
) -> None:
    config = {"reports": str(tmp_path / "reports"), "out": str(tmp_path / "out.json")}
    command = [sys.executable, "-c", SIMULATE + "simulate(json.loads(sys.argv[1]))"]
    done = subprocess.run(
        [*command, json.dumps(config)],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rounds = json.loads((tmp_path / "out.json").read_text())
    assert [set(r["left_out"]) for r in rounds] == [bad(config)] * 3
    assert rounds[0]["loss"] > rounds[1]["loss"] > rounds[2]["loss"]
    assert rounds[2]["accuracy"] > 0.95
    reports = sorted((tmp_path / "reports").glob("round-*/report.json"))
    assert len(reports) == 3


def test_a_superlink_and_supernodes_carry_refined_adapters(tmp_path: Path) -> None:
    config = {
        "clients": 4,
        "rounds": 2,
        "steps": 5,
        "mode": "refined",
        "reports": str(tmp_path / "reports"),
        "out": str(tmp_path / "out.json"),
    }
    with federation(4, tmp_path) as env:
        flwr_run(ROOT / "examples" / "flower_app", config, env)
        appeared(tmp_path / "out.json", 800)
    rounds = json.loads((tmp_path / "out.json").read_text())
    assert [r["round"] for r in rounds] == [1, 2]
    assert [r["why"] for r in rounds] == [None, None]
    second = tmp_path / "reports" / "round-2"
    sent = {p.name for p in (second / "sent").iterdir() if p.is_dir()}
    clients = {p.name for p in (second / "clients").iterdir() if p.is_dir()}
    assert len(clients) == 4
    assert "global" in sent
    assert sent - {"global"} <= clients
    done = clair("detect", second / "clients", "--since", second / "sent", "--fail-on", "never")
    assert done.returncode == 0, done.stderr
