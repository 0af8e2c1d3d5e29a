"""Who counts how much, and who keeps how much, on planted clients."""

from __future__ import annotations

import numpy as np
import pytest

from clair_cli.detection.agreement import Array
from clair_cli.refinement import spectra
from clair_cli.refinement.calibration import REFINEMENT as R
from clair_cli.refinement.spectra import leading_eigenpair
from clair_cli.refinement.uneven import _spread, bounded, capped, even, standing

DIM = 4000


def planted(noise: list[float], content: list[float] | None = None, seed: int = 0) -> Array:
    """Clients (K, DIM): a common vector of norm 1 by `content`, and noise of these norms."""
    draw = np.random.default_rng(seed)
    common = draw.standard_normal(DIM) / DIM**0.5
    own = draw.standard_normal((len(noise), DIM)) / DIM**0.5
    share = np.array(content or [1.0] * len(noise))
    return share[:, None] * common + np.array(noise)[:, None] * own


def stand(clients: Array, givers: list[bool] | None = None):
    who = np.ones(len(clients), bool) if givers is None else np.array(givers)
    return standing(clients @ clients.T, who)


def shift(direction: Array, share: float, count: int, of: int) -> Array:
    """What `count` of `of` clients add together."""
    found = np.zeros((of, DIM))
    found[:count] = share * direction / np.linalg.norm(direction)
    return found


# --- error and strength


def test_error_grows_with_the_noise_and_strength_falls_with_it() -> None:
    found = stand(planted([0.5] * 6 + [0.8, 1.2, 2.0, 4.0]))
    assert (np.diff(found.error[5:]) > 0).all()
    for sure in (True, False):
        kept = found.strengths(sure)
        assert (kept[:6] == 1).all()
        assert (np.diff(kept[5:]) <= 0).all()
        assert 0 < kept[-1] < 0.1
    assert (found.strengths(True) <= found.strengths(False)).all()


def test_errors_are_in_units_of_the_usual_one() -> None:
    found = stand(planted([0.5] * 9 + [1.5]))
    assert found.error[:9].max() < 1.2
    assert found.error[9] == pytest.approx(9, rel=0.15)
    assert stand(7 * planted([0.5] * 9 + [1.5])).error == pytest.approx(found.error, rel=1e-6)


def test_a_client_trained_too_little_is_told_by_its_size() -> None:
    clients = planted([0.5] * 8)
    clients[7] *= 0.5 * R.trained_size
    found = stand(clients)
    assert found.short.tolist() == [False] * 7 + [True]
    assert found.error[7] == pytest.approx(4, rel=0.2)
    assert found.company[7] == 0


def test_what_two_have_beside_the_rest_is_company_and_noise_is_not() -> None:
    clients = planted([0.5] * 8)
    aside = np.random.default_rng(9).standard_normal(DIM)
    found = stand(clients + shift(aside, 0.8, 2, 8))
    assert found.company[:2].min() > 0.5 > R.company_spared > found.company[2:].max()
    assert stand(clients).company.max() < 0.1


def test_where_nothing_is_shared_all_count_alike() -> None:
    clients = np.random.default_rng(3).standard_normal((2, DIM))
    clients[1] = -clients[0]
    found = stand(clients)
    assert (found.weights == 0.5).all()
    assert (found.strengths(True) == 1).all()
    assert even(np.array([True, False, True])).weights.tolist() == [0.5, 0, 0.5]


def test_who_only_receives_changes_nobody() -> None:
    clients = planted([0.5] * 8)
    alone = stand(clients[:7])
    copy = stand(np.concatenate([clients[:7], 3 * clients[:1]]), [True] * 7 + [False])
    assert copy.weights[:7] == pytest.approx(alone.weights)
    assert copy.weights[7] == 0
    assert copy.error[:7] == pytest.approx(alone.error)


# --- weights


def test_weights_fall_with_the_error_and_none_is_above_the_largest() -> None:
    for noise in ([0.5] * 10, [0.5] * 5 + [2.0] * 5):
        weights = stand(planted(noise)).weights
        assert weights.sum() == pytest.approx(1)
        assert weights.max() <= 1 / ((1 - R.most_left_out) * 10) * 1.1
        assert weights[0] >= weights[-1] * 0.9
    assert stand(planted([0.5] * 6 + [2.0] * 4)).weights[6:].sum() < 0.1


def test_equal_clients_count_nearly_alike() -> None:
    assert 10 * stand(planted([1.0] * 10)).weights == pytest.approx(np.ones(10), abs=0.25)


def test_capped_weights_are_proportional_below_the_cap() -> None:
    found = capped(np.array([8.0, 4.0, 2.0, 1.0, 1.0]), 0.3)
    assert found == pytest.approx([0.3, 0.3, 0.2, 0.1, 0.1])
    assert capped(np.ones(4), 0.25) == pytest.approx(np.full(4, 0.25))


@pytest.mark.parametrize("size", [1.0, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("way", ["aside", "along", "against"])
def test_one_client_moves_the_mean_by_no_more_than_its_largest_weight(
    way: str, size: float
) -> None:
    """Wherever one client goes, the mean stays within that weight times the size it counts with."""
    clients = planted([0.7] * 10)
    usual = float(np.median(np.linalg.norm(clients, axis=1)))
    directions = {"aside": clients[0] - clients[1], "along": clients.mean(0)}
    direction = directions.get(way, -clients.mean(0))
    before = stand(clients[1:]).weights @ clients[1:]
    clients[0] = size * direction / np.linalg.norm(direction) * usual
    moved = np.linalg.norm(stand(clients).weights @ clients - before)
    cap = 1 / ((1 - R.most_left_out) * 10)
    assert moved <= (R.largest_size + 1) * cap / (1 - cap) * usual


@pytest.mark.parametrize("noise", [0.4, 1.0, 2.5])
def test_a_coherent_third_moves_the_mean_by_a_fraction_of_what_it_pulls(noise: float) -> None:
    """Six of sixteen that pull one way as hard as they like plant a quarter of the mean at most."""
    clients = planted([noise] * 16)
    aside = np.random.default_rng(5).standard_normal(DIM)
    pulls = np.array([0.2, 0.4, 0.8, 1.2, 2.0, 4.0, 50.0])
    planted_there = [
        pull * stand(clients + shift(aside, pull, 6, 16)).weights[:6].sum() for pull in pulls
    ]
    assert max(planted_there) <= 0.25
    assert planted_there[-1] < 0.05
    assert max(pulls[:4] * 6 / 16) > 0.4  # what the plain mean would hold


def test_a_pull_in_one_direction_costs_more_than_noise() -> None:
    """The minority gets less weight than its share though its own noise is the same."""
    shared = np.zeros((10, 10))
    side = np.where(np.arange(10) < 4, 0.6, -0.4)
    weights = bounded(shared + 3 * np.outer(side, side), np.ones(10))
    assert weights[:4].sum() < 0.1
    assert bounded(shared, np.ones(10)) == pytest.approx(np.full(10, 0.1))


@pytest.mark.parametrize("table", ["clients", "flat", "zero", "one"])
def test_the_largest_eigenvalue_of_many_is_that_of_the_whole(table: str) -> None:
    draw = np.random.default_rng(3)
    clients = draw.standard_normal((240, 90)) + draw.standard_normal(90)
    flat = draw.standard_normal((240, 4000))
    found = {
        "clients": clients @ clients.T,
        "flat": flat @ flat.T,
        "zero": np.zeros((240, 240)),
        "one": np.eye(240),
    }[table]
    value, vector = leading_eigenpair(found, np.zeros(240))
    most = np.linalg.eigvalsh(found)[-1]
    assert value == pytest.approx(most, rel=1e-6, abs=1e-12)
    assert vector @ found @ vector == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert table == "zero" or np.linalg.norm(vector) == pytest.approx(1)


def test_weights_of_many_cost_as_little_error_as_by_whole_decompositions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(4)
    clients = draw.uniform(0.3, 1.2, 240)[:, None] * draw.standard_normal((240, 400))
    clients[:30] += 0.5 * draw.standard_normal(400)
    shared, error = clients @ clients.T / 400 + 1, draw.uniform(1, 5, 240)

    def loss(weights: np.ndarray) -> float:
        top = np.linalg.eigvalsh(_spread(shared, weights))[-1]
        return float(weights**2 @ error + R.direction_cost * top)

    found = loss(bounded(shared, error))
    monkeypatch.setattr(spectra, "WHOLE", 10**6)
    whole = loss(bounded(shared, error))
    assert found == pytest.approx(whole, rel=1e-3)
    assert whole < 0.9 * loss(np.full(240, 1 / 240))
