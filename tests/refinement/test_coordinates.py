"""The mean of many clients is compressed, and every client is refined as if it were not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.refinement.calibration import REFINEMENT
from clair_cli.refinement.coordinates import coordinates
from clair_cli.refinement.module import ModuleRefiner, RefinedModule
from clair_cli.refinement.strength import Shrinkage
from clair_cli.update import LowRankUpdate, combined

RANK = 8
SHAPE = (320, 256)
OWN = Shrinkage("own", "auto", 0.2, 0.5, 0.25)


def cohort(
    clients: int, own: bool = False, unequal: bool = False, dtype: torch.dtype = torch.float64
) -> list[LowRankUpdate]:
    """A common update, directions that all vary in, noise; each on A of its own, or all on one."""
    draw = torch.Generator().manual_seed(clients)

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw, dtype=torch.float64)

    d_out, d_in = SHAPE
    down, up, shared = drawn(RANK, d_in), drawn(d_out, RANK), drawn(d_out, 3)
    found = []
    for k in range(clients):
        rank = RANK - k % 3 if unequal else RANK
        base = drawn(rank, d_in) if own else down[:rank] + 0.1 * drawn(rank, d_in)
        left = up[:, :rank] + 0.3 * shared @ drawn(3, rank) + 0.3 * drawn(d_out, rank)
        found.append(LowRankUpdate(left.to(dtype), base.to(dtype), 0.1 * (1 + k / clients)))
    return found


def refined(
    updates: Sequence[LowRankUpdate],
    how: Shrinkage = OWN,
    weights: Sequence[float] | None = None,
    exact: bool = False,
    sent: Sequence[LowRankUpdate | None] | None = None,
    **numbers: Any,
) -> RefinedModule:
    even = [1 / len(updates)] * len(updates)
    calibrated = replace(REFINEMENT, **numbers)
    refiner = ModuleRefiner(updates, weights or even, (), calibrated, exact, sent or ())
    return refiner.refined(how, [u.rank for u in updates])


def off(found: RefinedModule, wanted: RefinedModule) -> np.ndarray:
    """Per client, relative to its norm."""
    pairs = zip(found.updates, wanted.updates, strict=True)
    both = [(a.dense(), b.dense()) for a, b in pairs if a is not None and b is not None]
    assert len(both) == len(wanted.updates)
    return np.array([float((a - b).norm() / b.norm()) for a, b in both])


def uneven(count: int) -> list[float]:
    """Somebody receives without giving."""
    weights = np.arange(count, dtype=float)
    return [float(w) for w in weights / weights.sum()]


@pytest.mark.parametrize("unequal", [False, True], ids=["ranks", "unequal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clients", [33, 60])
def test_many_clients_are_refined_as_by_whole_coordinates(
    clients: int, dtype: torch.dtype, unequal: bool
) -> None:
    updates = cohort(clients, unequal=unequal, dtype=dtype)
    found, wanted = (refined(updates, weights=uneven(clients), exact=e) for e in (False, True))
    assert 0 < found.mean_error <= REFINEMENT.mean_error
    assert off(found, wanted).max() <= REFINEMENT.mean_error
    for name in ("squared", "moved", "deviation", "kept"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-3)
    assert found.lost.sum() == pytest.approx(wanted.lost.sum(), rel=0.02)
    np.testing.assert_allclose(found.spectrum, wanted.spectrum, rtol=0.02, atol=1e-4)
    assert found.common_squared == pytest.approx(wanted.common_squared, rel=1e-3)
    assert off(found, found).max() == 0 == wanted.mean_error


@pytest.mark.parametrize("clients", [33, 60])
def test_the_error_that_is_told_is_the_error_that_there_is(clients: int) -> None:
    """Means of strangers have a flat spectrum: compressing them costs, however large the bases are."""
    updates = cohort(clients, own=True)
    found = refined(updates, mean_error=1.0)
    errors = off(found, refined(updates, exact=True))
    assert errors.max() > REFINEMENT.mean_error
    assert 0.5 * errors.max() <= found.mean_error <= 3 * errors.max()


def test_a_mean_that_cannot_be_compressed_is_kept_whole() -> None:
    updates = cohort(33, own=True)
    found = refined(updates)
    assert found.mean_error == 0
    assert off(found, refined(updates, exact=True)).max() == 0


def test_of_too_many_columns_the_bases_end_and_the_error_is_told() -> None:
    updates = cohort(60, own=True)
    found = refined(updates, whole_columns=200)
    assert found.mean_error > REFINEMENT.mean_error
    assert off(found, refined(updates, exact=True)).max() <= 2 * found.mean_error


def test_shared_directions_are_those_of_all_clients() -> None:
    how = Shrinkage("left", "auto", 0.0, 0.5)
    updates = cohort(40)
    found, wanted = (refined(updates, how, exact=e) for e in (False, True))
    assert found.subspace_rank == wanted.subspace_rank == 3
    assert found.mean_error > 0
    assert off(found, wanted).max() <= 1e-3


def test_clients_that_all_become_the_mean_become_its_best_cut() -> None:
    how = Shrinkage("own", "auto", 1.0, 1.0, 0.5)
    updates = cohort(40)
    found, wanted = (refined(updates, how, exact=e) for e in (False, True))
    assert off(found, wanted).max() <= 1e-4
    np.testing.assert_allclose(found.moved, wanted.moved, rtol=1e-3)
    one, other = found.updates[:2]
    assert one is not None
    assert other is not None
    assert one.up is other.up  # cut once
    mean = sum(u.dense() for u in updates) / 40 * 1.25
    best = torch.linalg.svdvals(mean)[RANK:].square().sum()
    assert found.lost[0] == pytest.approx(float(best), rel=0.05)


def test_the_mean_is_what_the_clients_add_up_to() -> None:
    """Bases, own parts and what is missed: nothing is counted twice."""
    updates = cohort(40)
    space = coordinates(updates, uneven(40), REFINEMENT)
    mean = sum(w * u.dense() for w, u in zip(uneven(40), updates, strict=True))
    assert isinstance(mean, torch.Tensor)
    seen = space.left @ space.mean @ space.right.T
    assert float((space.left.T @ (mean - seen)).norm()) <= 1e-9 * float(mean.norm())
    assert space.rest == pytest.approx(float((mean - seen).square().sum()), rel=0.3)
    for frame, update in zip(space.frames, updates, strict=True):
        size = frame.core.shape
        left, right = (
            side.lift(torch.eye(n, dtype=torch.float64)).T
            for side, n in zip((frame.left, frame.right), size, strict=True)
        )
        torch.testing.assert_close(left.T @ left, torch.eye(size[0]).double(), atol=1e-8, rtol=0)
        torch.testing.assert_close(left @ frame.core @ right.T, update.dense())


def test_a_client_within_the_bases_has_no_directions_of_its_own() -> None:
    one = cohort(1)[0]
    updates = [one] * 40
    space = coordinates(updates, uneven(40), REFINEMENT)
    assert all(f.core.shape == f.mean.shape == space.mean.shape for f in space.frames)
    assert refined(updates).updates == (None,) * 40


def test_of_changes_what_was_sent_is_added_back() -> None:
    """One adapter for most, another for one, and nothing for one."""
    changes, base = cohort(40), cohort(2, own=True)
    sent: list[LowRankUpdate | None] = [base[0]] * 38 + [base[1], None]
    pairs = zip(changes, sent, strict=True)
    updates = [c if s is None else combined([c, s], [1.0, 1.0]) for c, s in pairs]
    found, wanted = (refined(updates, sent=sent, exact=e) for e in (False, True))
    alone = refined(changes)
    assert 0 < found.mean_error <= REFINEMENT.mean_error
    assert off(found, wanted).max() <= REFINEMENT.mean_error
    np.testing.assert_allclose(found.moved, alone.moved, rtol=1e-3)
    mean = sum(s.dense() for s in sent if s is not None) / 40 + sum(c.dense() for c in changes) / 40
    best = torch.linalg.svdvals(mean)[2 * RANK :].square().sum()
    assert found.common_lost == pytest.approx(float(best), rel=0.1)
