"""The four claims at small size: recovery, stability, sets, refinement gain, and where each ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import paper, theory
from benchmarks.theory import Grid, gain, offers, recovery, sets, stability
from benchmarks.theory_records import EXACT, Sets, as_json, breakdown, line
from benchmarks.theory_truth import Kind, Plan, plant
from clair_cli.detection.calibration import DETECTION, DetectionCalibration

# What is planted


@pytest.mark.parametrize("kind", ["random", "colluding", "shift"])
def test_the_truth_is_what_the_plan_says(kind: Kind) -> None:
    plan = Plan(clients=6, contaminated=2, kind=kind, size=(2.0, 2.0))
    clean, noisy = plant(plan, 3), plant(replace(plan, noise=0.1), 3)
    for t in clean:
        own = [d.dense() - t.common for d in t.updates]
        off = [x - t.basis @ (t.basis.T @ x) for x in own]
        assert float(t.common.norm()) == pytest.approx(1)
        assert [float(x.norm()) for x in own[:4]] == pytest.approx([0.6] * 4)
        assert max(float(x.norm()) for x in off[:4]) <= 1e-12
        assert min(float(x.norm()) for x in off[4:]) > 1
        assert (float((off[4] - off[5]).norm()) <= 1e-12) == (kind == "shift")
    for t in noisy:
        noise = [float((d.dense() - w).norm()) for d, w in zip(t.updates, t.wanted, strict=True)]
        assert noise == pytest.approx([0.1] * 6)


def test_coverage_leaves_every_direction_to_its_share_of_the_benign() -> None:
    [truth] = plant(Plan(clients=12, contaminated=2, rank=3, coverage=0.6, modules=1), 0)
    energies = [(truth.basis.T @ (d.dense() - truth.common)).norm(dim=1) for d in truth.updates]
    assert [sum(float(e[i]) > 1e-9 for e in energies[:10]) for i in range(3)] == [6, 6, 6]


# (a) Exact recovery


@pytest.mark.parametrize("kind", ["random", "colluding"])
@pytest.mark.parametrize(
    ("clients", "contaminated"),
    [(10, 0), (10, 4), (20, 8)],
)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_contaminated_minority_is_recovered_exactly(
    kind: Kind, clients: int, contaminated: int, rank: int
) -> None:
    plan = Plan(clients=clients, contaminated=contaminated, kind=kind, rank=rank)
    found = recovery(plan, offers(rank), trials=2, seed=0, verdicts=True)
    assert found.rates == {"chosen": 1, "known": 1, "verdicts": 1}
    assert found.ranks == 1
    assert found.largest is not None
    assert found.largest <= EXACT


@pytest.mark.parametrize("kind", ["random", "colluding", "shift"])
def test_half_is_never_recovered_and_fails_clearly(kind: Kind) -> None:
    plan = Plan(clients=10, contaminated=5, kind=kind)
    found = recovery(plan, offers(2), trials=2, seed=0, verdicts=True)
    assert set(found.rates.values()) == {0}
    assert found.least is not None
    assert found.least > 1e5 * EXACT


def test_a_common_shift_passes_for_a_shared_direction_where_predicted() -> None:
    """The verdicts, which compare whole updates, still find it."""
    plan = Plan(clients=20, contaminated=6, kind="shift")
    assert 6 / 20 < breakdown(0.75) < 8 / 20
    below = recovery(plan, offers(2), trials=2, seed=0)
    above = recovery(replace(plan, contaminated=8), offers(2), trials=2, seed=0, verdicts=True)
    assert below.rates["chosen"] == 1
    assert above.rates["chosen"] == 0
    assert above.rates["verdicts"] == 1


@pytest.mark.parametrize("breadth", [0.4, 0.75, 0.9])
def test_breakdown_is_where_a_shift_has_that_participation_ratio(breadth: float) -> None:
    share = breakdown(breadth)
    energies = np.array([share**2, (1 - share) ** 2])
    weights = np.array([1 - share, share])
    assert (weights @ energies) ** 2 / (weights @ energies**2) == pytest.approx(breadth)


def test_more_directions_than_a_majority_can_hold_are_not_recovered() -> None:
    inside = recovery(Plan(clients=10, rank=4), offers(4), trials=1, seed=0)
    beyond = recovery(Plan(clients=10, rank=5), offers(5), trials=1, seed=0)
    assert (inside.rates["known"], beyond.rates["known"]) == (1, 0)


def test_a_direction_of_half_of_the_clients_needs_another_breadth() -> None:
    breadths = {"0.75": DETECTION, "0.4": DetectionCalibration(breadth=0.4)}
    plan = Plan(clients=20, contaminated=4)
    for coverage, expected in ((1.0, 1), (0.5, 0)):
        found = recovery(replace(plan, coverage=coverage), breadths, trials=2, seed=0)
        assert found.rates == {"0.75": expected, "0.4": 1}


# (b) Stable recovery


def test_the_error_is_proportional_to_the_noise() -> None:
    few, many = (
        stability(
            Plan(clients=clients, contaminated=3 * clients // 10, modules=1, size=(2.0, 2.0)),
            noises=(1e-3, 1e-2, 0.1),
            law=0.1,
            trials=2,
            seed=0,
        )
        for clients in (10, 40)
    )
    for found in (few, many):
        for slope, error in found.slopes:
            assert slope == pytest.approx(1, abs=0.1)
            assert error < 0.05
        assert found.edge == pytest.approx(0.95, abs=0.15)
        assert found.members.tolist() == [1, 1, 1]
    assert np.median(few.settled[:, 0] / many.settled[:, 0]) == pytest.approx(2, rel=0.2)


# (c) Recovery of the collaborative set


def separated(noise: float, size: float) -> Sets:
    plan = Plan(clients=20, contaminated=4, noise=noise, size=(size, size))
    return sets(replace(plan, modules=4, shape=(40, 16)), trials=2, seed=0)


def test_the_benign_set_is_exact_once_separated() -> None:
    """Four times the noise is beyond doubt, but a sixteenth of the data leaves as much."""
    near, far, beyond = (separated(0.3, times * 0.3) for times in (1.5, 4, 11))
    assert (near.members, near.verdicts) == (0, 0)
    assert (far.members, far.verdicts) == (1, 0)
    assert (beyond.members, beyond.verdicts) == (1, 1)
    assert near.over_noise == pytest.approx(1.5)


def test_verdicts_ask_for_a_material_difference_not_only_for_a_clear_one() -> None:
    clear = separated(0.03, 10 * 0.03)
    assert (clear.members, clear.verdicts) == (1, 0)
    assert clear.over_update < 0.3


# (d) Refinement gain

REFINED = Plan(clients=8, noise=0.3, modules=1, shape=(30, 24))


def test_the_refined_error_falls_with_the_root_of_the_clients() -> None:
    counts = [2, 4, 8, 16, 32]
    found = [gain(replace(REFINED, clients=n), 0, trials=3, seed=0)[0] for n in counts]
    slope, error = line(np.array(counts, float), np.sqrt([g.refined for g in found]))
    assert slope == pytest.approx(-0.5, abs=0.02)
    assert error < 0.02
    assert [g.local for g in found] == pytest.approx([1] * 5, rel=0.05)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rank", [0, 2, 4])
def test_the_refined_error_is_as_predicted(strength: float, ratio: float, rank: int) -> None:
    plan = replace(REFINED, rank=rank)
    found, _ = gain(plan, ratio, trials=4, seed=1, strength=strength)
    assert found.refined == pytest.approx(found.predicted, rel=0.06)


def test_heterogeneity_is_the_floor() -> None:
    found, _ = gain(replace(REFINED, clients=64), 0.5, trials=1, seed=0)
    assert found.refined**0.5 == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("clients", [4, 16])
def test_the_local_adapter_wins_from_where_own_parts_exceed_noise(clients: int) -> None:
    plan = replace(REFINED, clients=clients)
    at, error = theory.crossover(plan, (0.8, 0.9, 1.0, 1.1, 1.2), trials=4, seed=0)
    assert at == pytest.approx(1, abs=0.03)
    assert error < 0.03


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_best_strength_is_the_share_of_noise(ratio: float) -> None:
    found = theory.best_strength(REFINED, ratio, trials=3, seed=0)
    assert found == pytest.approx(1 / (1 + ratio**2), abs=0.02)


# The report


SMALL = Grid(
    clients=(4, 6, 8),
    shares=(0, 0.2, 0.6),
    ranks=(2,),
    sizes=(1.0,),
    coverages=(1.0,),
    noises=(1e-3, 1e-2, 0.1),
    law=0.1,
    cohorts=(5,),
    levels=(("random", 0.3),),
    over_noise=(4.0,),
    over_update=(1.2,),
    averaged=(2, 4, 8),
    ratios=(0, 1),
    bests=(1,),
    around=(0.8, 1.2),
    trials=1,
    draws=2,
)


def test_the_report_has_every_table_and_its_pictures(tmp_path: Path) -> None:
    results = theory.collect(SMALL, seed=0)
    theory.report(results, "facts", tmp_path)
    text = (tmp_path / "theory.md").read_text()
    assert "nan" not in text
    assert "| 4 | shift |" in text
    assert "log-log slope" in text
    assert str(Path(theory.__file__).parent) not in text
    (tmp_path / "theory.json").write_text(as_json(results, "facts"))
    assert paper.theory(tmp_path / "theory.json", tmp_path / "again") is None
    assert (tmp_path / "again" / "theory.md").read_text() == text
    pytest.importorskip("matplotlib")
    names = [f"theory-{n}.png" for n in ("gain", "noise", "recovery", "sets")]
    assert sorted(f.name for f in tmp_path.glob("*.png")) == names
    assert all(f"({name})" in text for name in names)
    assert all(1000 < (tmp_path / name).stat().st_size < 200_000 for name in names)
