"""Peers are run as their users run them, as whole processes, and ended where they do not end."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import beside, beside_peers
from benchmarks.beside_commands import CLAIR
from benchmarks.beside_table import hits
from benchmarks.field import delta_view, factors_view
from benchmarks.outlier_pursuit import outlier_pursuit
from benchmarks.processes import Run, measured
from benchmarks.saved import read
from benchmarks.speed import make_adapters

SHAPES = {"self_attn.q_proj": (24, 32), "self_attn.k_proj": (16, 32)}
CLIENTS, MODULES, RANK = 7, 4, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("beside") / "adapters"
    return root, make_adapters(root, CLIENTS, MODULES, RANK, layer=SHAPES)


def test_the_last_are_contaminated(made: tuple[Path, list[str]]) -> None:
    root, bad = made
    assert bad == ["client-0007"] == beside_peers.clients(root)[-1:]


def test_peers_see_the_adapters_as_they_are(made: tuple[Path, list[str]]) -> None:
    cohort = [read(made[0] / name) for name in beside_peers.clients(made[0])]
    exact = torch.from_numpy(delta_view(cohort))
    rows = beside_peers.dense(made[0])
    size = sum(out * into for out, into in SHAPES.values()) * MODULES // len(SHAPES)
    assert rows.shape == exact.shape == (CLIENTS, size)
    # the order of the modules is another; bfloat16 products are exact here and rounded there
    assert torch.allclose(rows @ rows.T, exact @ exact.T, rtol=2e-2)
    joined = torch.cat(list(beside_peers.columns(made[0])))
    assert torch.allclose(joined.T, rows, rtol=1e-5)
    flat, theirs = beside_peers.flat(made[0]), torch.from_numpy(factors_view(cohort))
    assert torch.allclose(flat @ flat.T, theirs @ theirs.T, rtol=1e-5)


def test_pefts_merge_is_the_mean_at_the_rank(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with torch.no_grad():
        assert beside_peers.WORK["peft-svd"](made[0], tmp_path, 1) is None
    merged = load_file(tmp_path / "all" / "adapter_model.safetensors")
    modules = zip(beside_peers.shapes(made[0]), beside_peers.columns(made[0]), strict=True)
    for name, columns in modules:
        up, down = (merged[name + side] for side in (beside_peers.UP, beside_peers.DOWN))
        assert up.shape[1] == RANK
        mean = columns.mean(dim=1).reshape(len(up), down.shape[1])
        u, s, v = torch.linalg.svd(mean, full_matrices=False)
        best = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
        assert float((up @ down - best).norm()) <= 0.02 * float(best.norm())


def test_outlier_pursuit_parts_what_was_put_together() -> None:
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(300, 2, generator=draw) @ torch.randn(2, 20, generator=draw)
    common[:, 17:] = 0
    planted = torch.zeros(300, 20)
    planted[:, 17:] = 2 * torch.randn(300, 3, generator=draw)
    low, outliers, steps = outlier_pursuit(common + planted, 3 / 20)
    assert 1 < steps < 200
    shares = outliers.norm(dim=0) / (common + planted).norm(dim=0)
    assert float(shares[:17].max()) < 0.5
    assert float(shares[17:].min()) > 0.95
    assert float((low + outliers - common - planted).norm()) <= 1e-5 * float(low.norm())


def test_pursuit_names_who_was_planted(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, bad = made
    beside_peers.main("pursuit", str(root), str(tmp_path), "1")
    assert json.loads((tmp_path / "answer.json").read_text()) == bad


def test_a_process_is_measured_and_ended() -> None:
    def run(code: str, seconds: float = 60, gigabytes: float = 4) -> Run:
        return measured([sys.executable, "-c", code], 1, seconds, gigabytes)

    fine = run("x = bytearray(200 * 2**20); sum(range(10**6))")
    assert fine.ended == ""
    assert fine.wall > 0
    assert fine.cpu > 0
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # a child begins with as much
    assert 0.19 < fine.memory <= max(own, 1)
    assert run("import time; time.sleep(60)", seconds=0.3).ended == "not done after 0 s"
    assert run("import time; x = b'1' * 2**29; time.sleep(60)", gigabytes=0.3).ended.startswith(
        "took more than"
    )
    assert run("raise ValueError('no')").ended == "failed: ValueError: no"
    threads = "import os; assert os.environ['OMP_NUM_THREADS'] == '1'"
    assert run(threads).ended == ""


def test_hits() -> None:
    assert hits(None, ["a"]) == "names nobody"
    assert hits([], ["a", "b"]) == "0 of 2, 0 honest"
    assert hits(["a", "c", "d"], ["a", "b"]) == "1 of 2, 2 honest"


@pytest.mark.slow
def test_every_peer_that_is_here_stands_in_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are left out, and it is said."""
    pytest.importorskip("peft")
    monkeypatch.setitem(beside.SETS, "tiny", SHAPES)
    kept = tmp_path / "found.json"
    words = ["--shapes", "tiny", "--modules", "4", "--clients", "7", "--rank", "3"]
    words += ["--repeat", "1", "--json", str(kept), "--scratch", str(tmp_path)]
    beside.main([*words, "--peers", "peft-dare", "pursuit", "mergekit"])
    told = capsys.readouterr()
    found = json.loads(kept.read_text())
    rows = {row["peer"]: row for row in found["rows"]}
    names = [*(p.name for p in CLAIR.values()), "PEFT dare_linear"]
    assert {*names, "outlier pursuit per module"} <= rows.keys()
    assert ("mergekit: not installed" in told.err) != ("mergekit linear" in rows)
    assert rows["clair detect"]["detect_cpu"] == 1
    assert rows["PEFT dare_linear"]["named"] == "names nobody"
    assert not any(row["ended"] for row in rows.values())
    lines = [line for line in told.out.splitlines() if line.startswith("| ")]
    assert len(lines) == len(rows) + 1
    assert list(tmp_path.iterdir()) == [kept]  # nothing is left behind
