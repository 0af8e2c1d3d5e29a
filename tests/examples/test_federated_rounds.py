"""Rounds of federated LoRA: every server's step, and a run with `clair refine` as a command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import field
from benchmarks.saved import read
from examples import federated_servers as servers
from tests import ROOT
from tests.helpers.commands import CLIENTS, CONTAMINATED, ENVIRONMENT, SAMPLES, WEIGHTS

BOTH = ["FedAvg of Delta W", "clair, personal, since"]
FIVE = [f"client-{n:02}" for n in range(1, 6)]
BENIGN = sorted({*CLIENTS} - CONTAMINATED)


def given(tmp_path: Path, start: str = "client-01") -> servers.Round:
    """The sample adapters as a round, as if each had been trained from one of them."""
    held = dict.fromkeys(CLIENTS, SAMPLES / start)
    return servers.Round(SAMPLES, tmp_path / "sent", held, bad=frozenset(CONTAMINATED))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sample adapters alone."""
    for name in CLIENTS:
        shutil.copytree(SAMPLES / name, tmp_path / "round" / name)
    return tmp_path / "round"


def mean_delta(names: list[str]) -> servers.Update:
    updates = [servers.update(SAMPLES / name) for name in names]
    return {m: torch.stack([u[m] for u in updates]).mean(0) for m in updates[0]}


def cut(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest of rank 8."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :8] * s[:8] @ vt[:8]


def test_the_means_are_those_of_the_products_and_of_the_factors(tmp_path: Path) -> None:
    sent = servers.mean_of_updates(given(tmp_path / "products"))
    assert {*sent.adapters} == {*CLIENTS} == {*sent.averaged}
    found, mean = servers.update(sent.adapters["client-01"]), mean_delta([*CLIENTS])
    for module, matrix in mean.items():
        torch.testing.assert_close(found[module], cut(matrix), atol=1e-5, rtol=1e-4)
    sent = servers.mean_of_factors(given(tmp_path / "factors"))
    found = servers.load_file(sent.adapters["client-01"] / WEIGHTS)
    files = [servers.load_file(SAMPLES / name / WEIGHTS) for name in CLIENTS]
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, torch.stack([f[key] for f in files]).mean(0))


def test_multi_krum_keeps_whom_the_field_keeps(tmp_path: Path) -> None:
    sent = servers.multi_krum(given(tmp_path))
    flags = field.multi_krum(field.delta_view([read(SAMPLES / n) for n in CLIENTS]), 2)[1]
    assert sent.averaged == [n for n, bad in zip(CLIENTS, flags, strict=True) if not bad]
    assert len(sent.averaged) == 6
    found, mean = servers.update(sent.adapters["client-01"]), mean_delta(sent.averaged)
    for module, matrix in mean.items():
        torch.testing.assert_close(found[module], cut(matrix), atol=1e-5, rtol=1e-4)


def test_who_is_told_averages_the_benign_alone(tmp_path: Path) -> None:
    sent = servers.mean_without_attackers(given(tmp_path))
    assert sent.averaged == BENIGN


def test_what_was_sent_is_one_adapter_or_the_folder_of_all(tmp_path: Path) -> None:
    assert servers.since(given(tmp_path)) == SAMPLES / "client-01"
    own = {name: tmp_path / "sent" / name for name in CLIENTS}
    assert servers.since(servers.Round(SAMPLES, tmp_path, own, frozenset())) == tmp_path / "sent"


def test_who_is_left_out_goes_on_from_the_mean_of_the_benign(folder: Path, tmp_path: Path) -> None:
    held = dict.fromkeys(CLIENTS, folder)
    round_ = servers.Round(folder, tmp_path / "sent", held, frozenset(CONTAMINATED))
    sent = servers.clair_personal(round_)
    assert sent is not None
    assert sent.averaged == BENIGN
    for name, path in sent.adapters.items():
        assert path == tmp_path / "sent" / ("global" if name in CONTAMINATED else name)
        assert (path / WEIGHTS).is_file()


def test_without_a_verdict_nothing_is_sent(folder: Path, tmp_path: Path) -> None:
    for name in CLIENTS[2:]:
        shutil.rmtree(folder / name)
    held = {name: SAMPLES / name for name in CLIENTS[:2]}
    assert servers.clair_global(servers.Round(folder, tmp_path / "sent", held, frozenset())) is None


def test_without_a_verdict_clients_keep_what_they_had(
    text_copy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples import federated_rounds

    answers = iter((servers.mean_of_updates, lambda given: None, servers.mean_of_updates))
    seen: list[servers.Round] = []

    def server(given: servers.Round) -> servers.Sent | None:
        seen.append(given)
        return next(answers)(given)

    monkeypatch.setitem(servers.SERVERS, "sometimes", server)
    plan = text_copy.CohortPlan(3, ("cipher",), "none", seed=1)
    recipe = federated_rounds.Recipe(steps=1, batch=2)
    rows = [*federated_rounds.panel(plan, recipe, ["sometimes"], 3, tmp_path)]
    assert [r["no_verdict"] for r in rows] == [False, True, False]
    assert [r["contaminated_averaged"] for r in rows] == [1, 0, 1]
    assert {*seen[0].held.values()} == {tmp_path / "start"}
    assert {*seen[1].held.values()} == {tmp_path / "sometimes" / "sent-01" / "global"}
    assert seen[2].held == seen[1].held
    assert rows[1]["sent"] == rows[0]["sent"] != rows[2]["sent"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two rounds of five clients, one of them contaminated, as a user starts them."""
    work = tmp_path_factory.mktemp("rounds")
    options = ["--rounds", 2, "--clients", 5, "--work", work / "work", "--json", work / "rows.json"]
    command = [sys.executable, "-m", "examples.federated_rounds", *options, "--server", *BOTH]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads((work / "rows.json").read_text())
    return SimpleNamespace(
        work=work / "work" / "seed-9001" / "identical", rows=rows, said=done.stdout
    )


@pytest.mark.slow
def test_a_run_leaves_every_adapter_and_counts_every_round(run: SimpleNamespace) -> None:
    assert [(r["server"], r["round"]) for r in run.rows] == [(s, n) for s in BOTH for n in (1, 2)]
    for server in BOTH:
        for number in ("01", "02"):
            home = run.work / server.replace(",", "").replace(" ", "-")
            sent = [p.parent.name for p in (home / f"sent-{number}").glob(f"*/{WEIGHTS}")]
            trained = [p.parent.name for p in (home / f"round-{number}").glob(f"*/{WEIGHTS}")]
            assert sorted(trained) == FIVE
            assert "global" in sent
    for when in ("sent", "local"):
        assert all(0 < r[when]["accuracy"] <= 1 and r[when]["loss"] > 0 for r in run.rows)
    lines = [
        line for line in run.said.splitlines() if line.startswith(tuple(f"| {s} |" for s in BOTH))
    ]
    assert len(lines) == 4
    for line in lines[:2]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        mine = [f"{r['sent']['accuracy']:.3f}" for r in run.rows if r["server"] == cells[0]]
        assert cells[1:3] == mine


@pytest.mark.slow
def test_clair_never_averages_the_contaminated_client_that_the_mean_takes(
    run: SimpleNamespace, text_copy: SimpleNamespace
) -> None:
    specs = text_copy.CohortPlan(5, ("cipher",), "none", seed=9001).specs()
    good = [spec.name for spec in specs if spec.benign]
    bad = {*FIVE} - {*good}
    assert len(bad) == 1
    assert [bad <= {*r["averaged"]} for r in run.rows] == [True, True, False, False]
    reports = sorted(run.work.glob("clair-*/sent-*/report.json"))
    assert len(reports) == 2
    for path in reports:
        report = json.loads(path.read_text())
        verdicts = servers.read_verdicts(path)
        assert sorted(verdicts) == FIVE
        assert {n for n in FIVE if verdicts[n] == "contaminated"} == bad
        assert {p.parent.name for p in path.parent.glob(f"*/{WEIGHTS}")} == {"global", *good}
        assert [c["id"] for c in report["refinement"]["clients"]] == good
        assert report["inputs"]["since"]["adapters"]
