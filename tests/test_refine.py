"""Refined updates equal the dense formula, and truncation says what it loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.refine import auto_strength, refine_module
from clair_cli.stack import LowRankUpdate
from tests.builders import planted, regauge
from tests.reference import refined


def module(clients: int = 6, noise: float = 0.3, **kwargs: object) -> list[LowRankUpdate]:
    truth = planted(clients, modules=1, shape=(20, 16), noise=noise, **kwargs)  # type: ignore[arg-type]
    return [c[0] for c in truth.updates]


def even(count: int) -> list[float]:
    return [1 / count] * count


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("s", [0, 2, 5])
def test_full_rank_output_is_the_dense_formula(strength: float, s: int) -> None:
    updates, weights = module(), [0.1, 0.1, 0.2, 0.2, 0.2, 0.2]
    done = refine_module(updates, weights, [16] * 6, s, strength)
    dense = [u.dense().numpy() for u in updates]
    mean = sum(w * d for w, d in zip(weights, dense, strict=True))
    covariance = sum(w * (d - mean) @ (d - mean).T for w, d in zip(weights, dense, strict=True))
    basis = np.linalg.eigh(covariance)[1][:, ::-1][:, :s]
    expected = refined(dense, basis, strength, weights)
    for got, want, moved, own in zip(done.updates, expected, done.moved, dense, strict=True):
        np.testing.assert_allclose(got.dense().numpy(), want, atol=1e-10)
        assert moved == pytest.approx(((want - own) ** 2).sum(), abs=1e-10)
    np.testing.assert_allclose(done.common.dense().numpy(), mean, atol=1e-10)
    assert done.subspace_rank == s
    assert done.lost.max() <= 1e-10


def test_strength_zero_gives_back_the_local_update() -> None:
    updates = module(noise=0.0)
    done = refine_module(updates, even(6), [u.rank for u in updates], "auto", 0.0)
    for got, own in zip(done.updates, updates, strict=True):
        torch.testing.assert_close(got.dense(), own.dense())


def test_the_global_update_is_the_mean_of_products_not_of_factors() -> None:
    updates = module(noise=0.0)
    common = refine_module(updates, even(6), [4] * 6, 0, 1.0, common_rank=16).common.dense()
    mean = torch.stack([u.dense() for u in updates]).mean(0)
    up, down = (torch.stack([getattr(u, side) for u in updates]).mean(0) for side in ("up", "down"))
    factors = up @ down
    assert (common - mean).norm() <= 1e-6 * mean.norm()
    assert (factors - mean).norm() > 0.1 * mean.norm()


@pytest.mark.parametrize(("shape", "rank"), [((20, 16), 3), ((200, 180), 4)])
def test_truncation_is_the_best_of_its_rank_and_reports_its_error(
    shape: tuple[int, int], rank: int
) -> None:
    """The larger shape goes through subspace iteration."""
    truth = planted(12, modules=1, shape=shape, shared_rank=4, common_rank=4, seed=2)
    updates = [c[0] for c in truth.updates]
    exact = refine_module(updates, even(12), [16] * 12, 1, 0.5)
    short = refine_module(updates, even(12), [rank] * 12, 1, 0.5)
    for whole, cut, lost in zip(exact.updates, short.updates, short.lost, strict=True):
        assert cut.up.shape[1] == rank
        missing = float((whole.dense() - cut.dense()).square().sum())
        best = float(torch.linalg.svdvals(whole.dense())[rank:].square().sum())
        assert lost == pytest.approx(missing, rel=1e-5, abs=1e-10)
        assert missing <= 1.02 * best + 1e-12


def test_clients_keep_their_own_ranks() -> None:
    updates = module()
    ranks = [1, 2, 3, 4, 5, 6]
    done = refine_module(updates, even(6), ranks, "auto", 0.5)
    assert [u.rank for u in done.updates] == ranks


def test_gauge_does_not_matter() -> None:
    updates, draw = module(), torch.Generator().manual_seed(3)
    turned = [regauge(u, draw) for u in updates]
    one = refine_module(updates, even(6), [4] * 6, "auto", 0.5)
    other = refine_module(turned, even(6), [4] * 6, "auto", 0.5)
    for a, b in zip(one.updates, other.updates, strict=True):
        torch.testing.assert_close(a.dense(), b.dense(), atol=1e-8, rtol=0)


def inner_of(updates: list[LowRankUpdate]) -> np.ndarray:
    flat = torch.stack([u.dense().flatten() for u in updates])
    return (flat @ flat.T).numpy()[None]


def test_auto_strength_is_the_square_of_the_common_share() -> None:
    """M has norm 1, U C norm 0.6, noise 0.3: the common share is 1 / (1 + 0.36 + 0.09)."""
    updates = module(clients=200)
    found = auto_strength(inner_of(updates), np.ones(200, bool))
    assert found == pytest.approx((1 / 1.45) ** 2, rel=0.1)


def test_auto_strength_of_strangers_is_nothing_and_of_one_client_too() -> None:
    strangers = module(clients=40, contaminated=40, kind="random", noise=0.0)
    assert auto_strength(inner_of(strangers), np.ones(40, bool)) < 0.01
    alone = np.zeros(40, bool)
    alone[0] = True
    assert auto_strength(inner_of(strangers), alone) == 0
