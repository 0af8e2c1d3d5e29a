"""The decomposition recovers planted truth, agrees with a convex reference, and keeps its laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.solver import decompose, refit
from clair_cli.update import LowRankUpdate
from tests.helpers.builders import Planted, basis_of, planted, regauge
from tests.helpers.reference import outlier_pursuit


def subspace_error(truth: Planted, vectors: torch.Tensor, module: int) -> float:
    """Spectral norm of the difference of the projectors onto the planted and the found subspace."""
    u, v = truth.bases[module], basis_of(truth, module, vectors)
    return float(torch.linalg.matrix_norm(u @ u.T - v @ v.T, ord=2))


def common_error(truth: Planted, weights: np.ndarray, module: int) -> float:
    """||(I - U U')(M - M*)||_F: inside the subspace M and U C_k cannot be told apart."""
    u = truth.bases[module]
    mean = sum(w * c[module].dense() for w, c in zip(weights, truth.updates, strict=True))
    off = mean - truth.commons[module]
    return float((off - u @ (u.T @ off)).norm())


GRID = [(10, 0), (10, 4), (20, 6), (20, 9), (11, 5), (40, 18)]


@pytest.mark.parametrize("kind", ["random", "colluding"])
@pytest.mark.parametrize(("clients", "contaminated"), GRID)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_noiseless_truth_is_recovered(
    kind: str, clients: int, contaminated: int, rank: int
) -> None:
    truth = planted(clients, contaminated, kind, shared_rank=rank, seed=clients + rank)
    found = decompose(truth.stacks())
    assert found.members.tolist() == truth.members
    assert found.status == "converged"
    for m, space in enumerate(found.subspaces):
        assert space.rank == rank
        assert subspace_error(truth, space.vectors, m) <= 1e-8
        assert common_error(truth, found.weights, m) <= 1e-8
    assert found.residuals[:, found.members].max() <= 1e-6


def test_half_colluding_is_not_recovered() -> None:
    """The breakdown point is one half by nature: a test that passes beyond it tests nothing."""
    truth = planted(10, 6, "colluding", seed=1)
    assert decompose(truth.stacks()).members.tolist() != truth.members


@pytest.mark.parametrize(("clients", "contaminated"), [(8, 2), (10, 3)])
@pytest.mark.parametrize("shape", [(30, 20), (24, 16)])
def test_the_convex_reference_agrees(
    clients: int, contaminated: int, shape: tuple[int, int]
) -> None:
    """The convex program knows no M: what it calls low-rank is the span of M and U together."""
    truth = planted(
        clients, contaminated, modules=1, shape=shape, shared_rank=1, common_rank=1, seed=5
    )
    dense = [client[0].dense().numpy() for client in truth.updates]
    stack = np.concatenate([d / np.linalg.norm(d) for d in dense], axis=1)
    low, sparse = outlier_pursuit(stack, clients, weight=0.7)
    blocks = np.sqrt((sparse.reshape(shape[0], clients, shape[1]) ** 2).sum(axis=(0, 2)))
    found = decompose(truth.stacks())
    assert ((blocks < 1e-6) == found.members).all()
    assert found.members.sum() == clients - contaminated
    u, s, _ = np.linalg.svd(low)
    span = u[:, s > 1e-6 * s[0]]
    assert span.shape[1] == 2
    basis = basis_of(truth, 0, found.subspaces[0].vectors).numpy()
    mean = sum(w * d for w, d in zip(found.weights, dense, strict=True))
    for ours in (basis, mean):
        assert np.abs(ours - span @ (span.T @ ours)).max() <= 1e-6


def test_error_is_proportional_to_noise() -> None:
    errors, noises = [], [0.01, 0.03, 0.1, 0.3]
    for noise in noises:
        truth = planted(20, 6, shared_rank=2, noise=noise, modules=1, seed=3)
        members = np.array(truth.members)
        found = refit(truth.stacks(), members, replace(DETECTION, max_shared_rank=2))
        assert found.subspaces[0].rank == 2
        errors.append(subspace_error(truth, found.subspaces[0].vectors, 0))
    slope = np.polyfit(np.log(noises), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)


def test_gauge_does_not_matter() -> None:
    truth = planted(12, 4, noise=0.1, seed=2)
    draw = torch.Generator().manual_seed(9)
    turned = Planted(
        [[regauge(u, draw) for u in client] for client in truth.updates],
        truth.bases,
        truth.commons,
        truth.contaminated,
    )
    one, other = decompose(truth.stacks()), decompose(turned.stacks())
    np.testing.assert_allclose(one.residuals, other.residuals, atol=1e-6)
    assert one.members.tolist() == other.members.tolist()


def test_order_of_clients_does_not_matter() -> None:
    truth = planted(12, 4, noise=0.1, seed=2)
    order = np.random.default_rng(0).permutation(12)
    moved = Planted([truth.updates[i] for i in order], truth.bases, truth.commons, [])
    one, other = decompose(truth.stacks()), decompose(moved.stacks())
    np.testing.assert_allclose(one.residuals[:, order], other.residuals, atol=1e-6)


def test_scale_of_the_cohort_does_not_matter() -> None:
    truth = planted(12, 4, noise=0.1, seed=2)
    scaled = Planted(
        [[LowRankUpdate(u.up, u.down, 1000 * u.scale) for u in c] for c in truth.updates],
        truth.bases,
        truth.commons,
        truth.contaminated,
    )
    one, other = decompose(truth.stacks()), decompose(scaled.stacks())
    np.testing.assert_allclose(one.residuals, other.residuals, atol=1e-7)


def test_one_more_copy_of_the_cohort_changes_nothing() -> None:
    truth = planted(8, 2, noise=0.1, seed=4)
    doubled = Planted(truth.updates * 2, truth.bases, truth.commons, [])
    members = np.array(truth.members)
    settings = replace(DETECTION, max_shared_rank=2)  # the offer grows with the number of clients
    one = refit(truth.stacks(), members, settings)
    two = refit(doubled.stacks(), np.tile(members, 2), settings)
    np.testing.assert_allclose(np.tile(one.residuals, 2), two.residuals, atol=1e-6)


def test_sketches_say_how_far_they_are_off_and_keep_the_members() -> None:
    truth = planted(20, 6, "colluding", noise=0.02, shape=(160, 150), modules=4, seed=6)
    exact, small = truth.stacks(10_000), truth.stacks(40, size=80)
    assert all(s.error == 0 and not s.sketched for s in exact)
    for a, b in zip(exact, small, strict=True):
        assert b.sketched
        assert b.left.shape[0] == b.right.shape[0] == 80
        torch.testing.assert_close(b.energies, a.energies)
        assert 0.01 < b.error < 0.4
        cosine = b.inner / a.energies.sqrt()[:, None] / a.energies.sqrt()
        torch.testing.assert_close(cosine.diagonal(), torch.ones(20, dtype=torch.float64))
        assert cosine.abs().max() < 1 + 1e-9
    assert decompose(small).members.tolist() == decompose(exact).members.tolist() == truth.members


def test_status_says_when_the_limit_was_reached() -> None:
    truth = planted(12, 4, noise=0.3, seed=2)
    found = decompose(truth.stacks(), replace(DETECTION, max_iterations=4, tolerance=0.0))
    assert found.status == "iteration limit"
    assert found.iterations == 4
    assert found.gap > 0


def test_fewer_than_three_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        decompose(planted(2).stacks())
