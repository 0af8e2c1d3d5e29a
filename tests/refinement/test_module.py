"""Refined updates equal the dense formula, whoever counts, and truncation says what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.refinement.calibration import REFINEMENT
from clair_cli.refinement.module import ModuleRefiner, RefinedModule, refine_module
from clair_cli.refinement.strength import Shrinkage, kept_share
from clair_cli.update import LowRankUpdate
from tests.helpers.builders import factor, orthonormal, planted, regauge
from tests.helpers.reference import shrunk

SIDES = ("own", "left", "right", "client")
UNEVEN = [0.1, 0.1, 0.2, 0.2, 0.4, 0.0]
"""The last of six clients receives and gives nothing."""


def module(clients: int = 6, noise: float = 0.3, **kwargs: Any) -> list[LowRankUpdate]:
    truth = planted(clients, modules=1, shape=(20, 16), noise=noise, **kwargs)
    return [c[0] for c in truth.updates]


def even(count: int) -> list[float]:
    return [1 / count] * count


def mixing(count: int = 6) -> np.ndarray:
    """Some F over the clients."""
    root = np.random.default_rng(5).standard_normal((count, count))
    return root @ root.T / (3 * count)


def run(
    updates: Sequence[LowRankUpdate],
    how: Shrinkage,
    weights: Sequence[float] | None = None,
    rank: int = 16,
    noise: Sequence[LowRankUpdate] = (),
    mix: np.ndarray | None = None,
) -> RefinedModule:
    refiner = ModuleRefiner(updates, weights or even(len(updates)), noise)
    mixed = None if mix is None else torch.from_numpy(mix)
    return refiner.refined(how, [rank] * len(updates), mix=mixed)


def dense(done: RefinedModule) -> list[np.ndarray]:
    return [u.dense().numpy() for u in done.updates if u is not None]


def numbers(updates: Sequence[LowRankUpdate]) -> list[np.ndarray]:
    return [u.dense().numpy() for u in updates]


# --- the formula


@pytest.mark.parametrize("weights", [even(6), UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize(("inside", "outside"), [(0.0, 1.0), (0.0, 0.3), (0.2, 0.5), (0.4, 0.4)])
@pytest.mark.parametrize("s", [0, 2, 5])
@pytest.mark.parametrize("side", SIDES)
def test_full_rank_output_is_the_dense_formula(
    side: Any, s: int, inside: float, outside: float, weights: list[float]
) -> None:
    updates, mix = module(), mixing() if side == "client" else None
    how = Shrinkage(side, s, inside, outside, boost=0.4)
    done, own = run(updates, how, weights, mix=mix), numbers(updates)
    wanted = shrunk(own, weights, side, s, inside, outside, 0.4, mix)
    assert len(dense(done)) == 6
    for got, want, moved, local in zip(dense(done), wanted, done.moved, own, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-10)
        assert moved == pytest.approx(((want - local) ** 2).sum(), abs=1e-10)
    mean = sum(w * d for w, d in zip(weights, own, strict=True))
    np.testing.assert_allclose(done.common.dense().numpy(), mean, atol=1e-10)
    assert done.lost.max() <= 1e-10
    if side != "client" and inside != outside:
        assert done.subspace_rank == s


def test_the_figures_of_a_client_are_those_of_dense_matrices() -> None:
    updates = module()
    done, own = run(updates, Shrinkage("left", 2, 0.1, 0.6), UNEVEN), numbers(updates)
    mean = sum(w * d for w, d in zip(UNEVEN, own, strict=True))
    for k, d in enumerate(own):
        kept = dense(done)[k] - mean
        assert done.squared[k] == pytest.approx((d**2).sum())
        assert done.deviation[k] == pytest.approx(((d - mean) ** 2).sum())
        assert done.kept[k] == pytest.approx((kept**2).sum())
    assert done.common_squared == pytest.approx((mean**2).sum())


def test_the_gain_is_what_was_removed_times_the_boost_up_to_its_limit() -> None:
    updates = module()
    mean = sum(numbers(updates)) / 6
    for taken, boost, gain in [(0.3, 0.5, 0.15), (0.3, 0.0, 0.0), (0.8, 0.5, REFINEMENT.most_gain)]:
        done = run(updates, Shrinkage("own", 0, taken, taken, boost))
        assert done.amplitude == pytest.approx(1 - taken)
        for got, own in zip(dense(done), numbers(updates), strict=True):
            np.testing.assert_allclose(
                got, (1 + gain) * mean + (1 - taken) * (own - mean), atol=1e-10
            )


@pytest.mark.parametrize("side", SIDES)
def test_nothing_taken_writes_nothing(side: Any) -> None:
    mix = np.eye(6) if side == "client" else None
    done = run(module(), Shrinkage(side, 2, 0.0, 0.0, boost=0.5), UNEVEN, mix=mix)
    assert done.updates == (None,) * 6
    assert (done.moved == 0).all()
    assert (done.lost == 0).all()


def test_a_client_that_is_the_mean_is_kept_as_it_is() -> None:
    updates = module()
    done = run([updates[0], updates[1]], Shrinkage("own", 0, 0.5, 0.5), [1.0, 0.0])
    assert done.updates[0] is None
    assert done.updates[1] is not None


# --- who does not matter


def turned(updates: list[LowRankUpdate]) -> list[LowRankUpdate]:
    draw = torch.Generator().manual_seed(3)
    return [regauge(u, draw) for u in updates]


@pytest.mark.parametrize("rank", ["auto", 2])
@pytest.mark.parametrize("side", SIDES)
def test_gauge_does_not_matter(side: Any, rank: Any) -> None:
    updates, mix = module(), mixing() if side == "client" else None
    how = Shrinkage(side, rank, 0.1, 0.5, 0.5)
    one, other = (run(u, how, UNEVEN, 4, mix=mix) for u in (updates, turned(updates)))
    for a, b in zip(dense(one), dense(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("rank", ["auto", 2])
@pytest.mark.parametrize("side", SIDES)
def test_order_of_clients_does_not_matter(side: Any, rank: Any) -> None:
    updates, mix, order = module(), mixing() if side == "client" else None, [3, 5, 0, 4, 1, 2]
    how = Shrinkage(side, rank, 0.1, 0.5, 0.5)
    one = run(updates, how, UNEVEN, mix=mix)
    moved = None if mix is None else mix[np.ix_(order, order)]
    other = run([updates[k] for k in order], how, [UNEVEN[k] for k in order], mix=moved)
    for k, b in zip(order, dense(other), strict=True):
        np.testing.assert_allclose(dense(one)[k], b, atol=1e-8)


@pytest.mark.parametrize("side", SIDES)
def test_global_rescale_scales_the_result(side: Any) -> None:
    updates, mix = module(), mixing() if side == "client" else None
    larger = [LowRankUpdate(u.up, u.down, 1e3 * u.scale) for u in updates]
    how = Shrinkage(side, "auto", 0.1, 0.5, 0.5)
    one, other = (run(u, how, mix=mix) for u in (updates, larger))
    for a, b in zip(dense(one), dense(other), strict=True):
        np.testing.assert_allclose(1e3 * a, b, atol=1e-6)


@pytest.mark.parametrize("side", ["own", "left", "right"])
def test_who_only_receives_changes_nobody_and_not_the_mean(side: Any) -> None:
    updates, how = module(), Shrinkage(side, "auto", 0.1, 0.5, 0.5)
    stranger = factor(100 * torch.randn(20, 16, dtype=torch.float64), 16)
    few = run(updates[:5], how, UNEVEN[:5])
    more = run([*updates[:5], stranger], how, UNEVEN)
    for a, b in zip(dense(few), dense(more), strict=False):
        np.testing.assert_allclose(a, b, atol=1e-8)
    torch.testing.assert_close(few.common.dense(), more.common.dense(), atol=1e-10, rtol=0)
    assert few.amplitude == pytest.approx(more.amplitude)
    assert more.moved[5] > 0


@pytest.mark.parametrize("side", ["own", "left", "right"])
def test_a_weight_of_two_is_a_client_that_is_there_twice(side: Any) -> None:
    updates, how = module(clients=3), Shrinkage(side, 2, 0.1, 0.5, 0.5)
    weighed = run(updates, how, [0.5, 0.25, 0.25])
    twice = run([updates[0], *updates], how)
    assert len(dense(weighed)) == 3
    for a, b in zip(dense(weighed), dense(twice)[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)
    torch.testing.assert_close(weighed.common.dense(), twice.common.dense(), atol=1e-8, rtol=0)


# --- directions


def crossed(clients: int = 6) -> tuple[list[LowRankUpdate], torch.Tensor, torch.Tensor]:
    """Deviations in two directions a_1, a_2 on the left and b_1, b_2 on the right, alike strong."""
    draw = torch.Generator().manual_seed(1)
    left, right = orthonormal(20, 3, draw), orthonormal(16, 3, draw)
    sizes = torch.randn(2, clients, generator=draw, dtype=torch.float64)
    sizes -= sizes.mean(dim=1, keepdim=True)
    sizes /= sizes.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [0.9]])
    updates = [
        LowRankUpdate(left, (torch.tensor([[x], [y], [3.0]], dtype=torch.float64) * right.T))
        for x, y in sizes.T.tolist()
    ]
    return updates, left, right


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 7.0])
@pytest.mark.parametrize("side", ["left", "right"])
def test_noise_weighs_every_direction_by_itself(side: Any, share: float) -> None:
    """The first direction has no noise and is kept, the second this share of noise."""
    updates, left, right = crossed()
    second = float(sum((left[:, 1] @ u.dense() @ right[:, 1]) ** 2 for u in updates))
    size = (share * second * 6 / 5) ** 0.5  # six deviations from a mean show 5/6 of the variance
    noise = [LowRankUpdate(size * left[:, 1:2], right[:, 1:2].T)]
    how = Shrinkage(side, "auto", 0.5, 0.5, by_direction=True)
    kept = [torch.from_numpy(d) for d in dense(run(updates, how, noise=noise))]
    assert len(kept) == 6
    for got, own in zip(kept, updates, strict=True):
        first, other = (left[:, i] @ got @ right[:, i] for i in (0, 1))
        was = left[:, 1] @ own.dense() @ right[:, 1]
        assert float(first) == pytest.approx(float(left[:, 0] @ own.dense() @ right[:, 0]))
        assert float(other) == pytest.approx(kept_share(share) * float(was), abs=1e-12)


def strong(
    directions: int, side: str, clients: int = 12, noise: float = 1.0
) -> list[LowRankUpdate]:
    """Noise of a flat spectrum, and that many directions on `side` far above it."""
    draw = torch.Generator().manual_seed(directions)
    d_out, d_in = (30, 24) if side == "left" else (24, 30)
    basis = orthonormal(30, max(directions, 1), draw)[:, :directions]
    found = []
    for _ in range(clients):
        own = 8 * basis @ torch.randn(directions, 24, generator=draw, dtype=torch.float64)
        own = own if side == "left" else own.T
        dust = torch.randn(d_out, d_in, generator=draw, dtype=torch.float64)
        found.append(factor(own + noise * dust, 24))
    return found


@pytest.mark.parametrize("planted_rank", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_auto_keeps_the_directions_that_stand_out_up_to_its_limit(
    side: Any, planted_rank: int
) -> None:
    done = run(strong(planted_rank, side), Shrinkage(side, "auto", 0.0, 0.5), rank=24)
    assert done.subspace_rank == min(planted_rank, REFINEMENT.max_kept)


@pytest.mark.parametrize(
    ("planted_rank", "all_taken"), [(0, True), (2, True), (3, True), (5, False)]
)
def test_noise_is_taken_whole_only_where_few_directions_stand_out(
    planted_rank: int, all_taken: bool
) -> None:
    updates = strong(planted_rank, "left")
    found = run(updates, Shrinkage("left", "auto", 0.0, 0.3, noise_like=1.0), rank=24)
    wanted = run(updates, Shrinkage("left", "auto", 0.0, 1.0 if all_taken else 0.3), rank=24)
    for a, b in zip(dense(found), dense(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("carried", [1, 2, 4])
def test_own_directions_are_as_many_as_carry_the_deviation(carried: int) -> None:
    """Deviations of equal singular values; the mean of +-D is zero."""
    draw = torch.Generator().manual_seed(carried)
    up, down = orthonormal(20, carried, draw), orthonormal(16, carried, draw).T
    updates = [LowRankUpdate(up, down), LowRankUpdate(-up, down)]
    done = run(updates, Shrinkage("own", "auto", 0.25, 1.0))
    assert done.subspace_rank == carried
    for got, own in zip(dense(done), numbers(updates), strict=True):
        np.testing.assert_allclose(got, 0.75 * own, atol=1e-10)


# --- truncation and the mean


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
        assert whole is not None
        assert cut is not None
        assert cut.up.shape[1] == rank
        missing = float((whole.dense() - cut.dense()).square().sum())
        best = float(torch.linalg.svdvals(whole.dense())[rank:].square().sum())
        assert lost == pytest.approx(missing, rel=1e-5, abs=1e-10)
        assert missing <= 1.02 * best + 1e-12


def test_clients_keep_their_own_ranks() -> None:
    updates = module()
    ranks = [1, 2, 3, 4, 5, 6]
    done = refine_module(updates, even(6), ranks, "auto", 0.5)
    assert [u.rank for u in done.updates if u is not None] == ranks
