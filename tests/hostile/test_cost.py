"""One hostile client costs the others at most as much again as they cost, and a constant."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import ENVIRONMENT, SCRIPT
from tests.hostile.costly import COSTLY, HOSTILE, SAME, save_honest

SECONDS, MEMORY = 6.0, 256 * 2**20
"""The constant: what any one client may cost, of one core and of memory."""
TIMES = 2


@dataclass(frozen=True)
class Cost:
    """What a run of the command took: seconds of the processor, and bytes at its peak."""

    seconds: float
    memory: int
    report: dict[str, Any]


def run(*args: object) -> Cost:
    """clair in a process of its own, which is measured."""
    command = [str(SCRIPT), *map(str, args), "-f", "json"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=2) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode in (0, 1), said[-500:]
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, json.loads(said))


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {c["id"]: c["verdict"] for c in report["clients"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    """What detecting and refining the honest clients costs."""
    folder = tmp_path_factory.mktemp("alone")
    save_honest(folder / "round")
    return {
        "detect": run("detect", folder / "round"),
        "refine": run("refine", folder / "round", "--out", folder / "out", "--global"),
    }


@pytest.mark.parametrize("command", ["detect", "refine"])
@pytest.mark.parametrize("name", COSTLY)
def test_a_hostile_client_costs_at_most_as_much_again_and_a_constant(
    name: str, command: str, alone: dict[str, Cost], tmp_path: Path
) -> None:
    names = save_honest(tmp_path / "round")
    COSTLY[name](tmp_path / "round")
    out = ["--out", tmp_path / "out", "--global"] if command == "refine" else []
    found, base = run(command, tmp_path / "round", *out), alone[command]
    print(
        f"{name}: {command} {found.seconds:.1f} of {base.seconds:.1f} s, {found.memory >> 20} MiB"
    )
    assert found.seconds <= TIMES * base.seconds + SECONDS
    assert found.memory <= TIMES * base.memory + MEMORY
    said = verdicts(found.report)
    assert {said[n] for n in names} == {"benign"}, said
    assert any(client.startswith(HOSTILE) for client in said)
    assert name not in SAME or said[HOSTILE] == "benign"
