"""Dense matrices: thin factors where there are some, and stacks that equal the dense ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.detection.solver import decompose, deviations
from clair_cli.detection.stacks import ModuleStack, stack_module
from clair_cli.linalg import EXACT_SIZE, TRIED_RANKS, thin_factors
from clair_cli.refinement.module import refine_module
from clair_cli.update import LowRankUpdate
from tests.helpers import reference
from tests.helpers.builders import orthonormal

ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
SHAPES = [(6, 5), (5, 6), (90, 40), (EXACT_SIZE, 200), (300, 260), (1000, 140)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_stored_low_rank_matrix_has_its_low_rank(
    shape: tuple[int, int], dtype: torch.dtype, scale: float
) -> None:
    for rank in (1, 2, 3, 15, 60, 120):
        if 2 * rank > min(shape):
            continue
        exact = scale * normal(shape[0], rank) @ normal(rank, shape[1], seed=1)
        matrix = exact.to(dtype).double()
        up, down = thin_factors(matrix, ROUNDOFF[dtype])
        assert up.shape == (shape[0], rank)
        assert down.shape == (rank, shape[1])
        missed = (up @ down - matrix).norm() / matrix.norm()
        assert missed <= ROUNDOFF[dtype] + 2e-14


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_full_rank_comes_back_bit_by_bit(shape: tuple[int, int]) -> None:
    for dtype, roundoff in ROUNDOFF.items():
        matrix = normal(*shape).to(dtype).double()
        up, down = thin_factors(matrix, roundoff)
        assert up.shape[1] == down.shape[0] == min(shape)
        assert torch.equal(up @ down, matrix)


def test_a_small_signal_in_a_large_one_is_not_cut_off() -> None:
    """Ten times what rounding could have made: it is there."""
    matrix = normal(200, 3) @ normal(3, 180, seed=1)
    extra = normal(200, 1, seed=2) @ normal(1, 180, seed=3)
    for dtype, roundoff in ROUNDOFF.items():
        faint = extra * (10 * max(roundoff, 1e-14) * matrix.norm() / extra.norm())
        up, _ = thin_factors((matrix + faint).to(dtype).double(), roundoff)
        assert up.shape[1] == 4 if dtype != torch.float64 else up.shape[1] in (3, 4)


@pytest.mark.parametrize("shape", [(6, 5), (300, 260)])
def test_zero_has_one_empty_column_and_what_is_not_finite_is_left_alone(
    shape: tuple[int, int],
) -> None:
    up, down = thin_factors(torch.zeros(shape, dtype=torch.float64), 2.0**-24)
    assert up.shape[1] == 1
    assert (up @ down).abs().max() == 0
    for value in (float("nan"), float("inf"), 1e200):
        matrix = normal(*shape)
        matrix[0, 0] = value
        up, down = thin_factors(matrix, 2.0**-24)
        whole = up if up.shape == matrix.shape else down
        assert torch.equal(whole.nan_to_num(7.0), matrix.nan_to_num(7.0))


def test_ranks_beyond_the_tries_are_read_exactly_too() -> None:
    rank = TRIED_RANKS[-1] + 20
    matrix = normal(560, rank) @ normal(rank, 550, seed=1)
    up, down = thin_factors(matrix, 2.0**-53)
    assert torch.equal(up @ down, matrix)


# --- stacks


def clients(shape: tuple[int, int], ranks: Sequence[int]) -> list[LowRankUpdate]:
    """A common matrix with a deviation of each client's own rank, as they would be read."""
    common, found = normal(*shape), []
    for k, rank in enumerate(ranks):
        own = normal(shape[0], rank, seed=k + 1) @ normal(rank, shape[1], seed=k + 50)
        own = own if rank < min(shape) else own + common
        found.append(LowRankUpdate(*thin_factors(own, 2.0**-53)))
        assert found[-1].rank == rank
    return found


CASES = {
    "square": ((40, 40), [40] * 6),
    "high": ((60, 25), [25] * 5),
    "very high": ((150, 16), [16] * 6),
    "wide": ((25, 60), [25] * 5),
    "very wide": ((16, 150), [16] * 4),
    "few columns": ((30, 400), [30, 30, 30]),
    "mixed ranks": ((30, 45), [30, 2, 30, 7, 1]),
    "all low": ((30, 45), [4] * 12),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stack_of_dense_updates_equals_the_dense_stack(case: str) -> None:
    """30 to 40 columns are kept, far fewer than there are; the smaller side is no larger."""
    shape, ranks = CASES[case]
    updates = clients(shape, ranks)
    stack = stack_module("m", updates, max_columns=40)
    assert stack.sketched
    assert stack.error < 1e-12
    dense = [u.dense() for u in updates]
    for i, a in enumerate(dense):
        torch.testing.assert_close(stack.energies[i], a.square().sum())
        for j, b in enumerate(dense):
            torch.testing.assert_close(stack.inner[i, j], (a * b).sum())
            torch.testing.assert_close(stack.overlap[i, j], (a.T @ b).square().sum())
    exact = stack_module("m", updates, max_columns=10**6)
    assert not exact.sketched
    for name in ("inner", "overlap", "rows", "energies"):
        torch.testing.assert_close(getattr(stack, name), getattr(exact, name))
    x = normal(len(ranks) * stack.width, 3)
    assert stack.width == exact.width
    for apply in (ModuleStack.left_dot, ModuleStack.right_dot, ModuleStack.block_dot):
        torch.testing.assert_close(apply(stack, x), apply(exact, x))


def test_the_decomposition_of_dense_updates_is_that_of_the_dense_stack() -> None:
    """M, U and every residual, as numpy has them from the matrices themselves."""
    basis = orthonormal(30, 2, torch.Generator().manual_seed(3))
    common = normal(30, 24)
    dense = [
        common + 4 * basis @ normal(2, 24, seed=k + 1) + 0.05 * normal(30, 24, seed=k + 50)
        for k in range(9)
    ]
    updates = [LowRankUpdate(*thin_factors(d, 2.0**-53)) for d in dense]
    stack = stack_module("m", updates, max_columns=30)
    assert stack.sketched
    found = decompose([stack])
    assert found.members.all()
    mean = sum(dense) / 9
    unit = np.median([float(d.norm()) for d in dense])
    moved = np.array([float((d - mean).square().sum()) for d in dense])
    np.testing.assert_allclose(deviations(stack.inner.numpy(), found.weights), moved, rtol=1e-8)
    scatter = sum((d - mean) @ (d - mean).T for d in dense)
    assert isinstance(scatter, Tensor)
    u = torch.linalg.eigh(scatter)[1][:, -found.subspaces[0].rank :]
    wanted = [float((d - mean - u @ (u.T @ (d - mean))).norm()) / unit for d in dense]
    assert found.subspaces[0].rank == 2
    np.testing.assert_allclose(found.residuals[0], wanted, rtol=1e-4)


def test_refining_dense_updates_is_what_the_reference_does() -> None:
    dense = [normal(20, 14, seed=k) for k in range(5)]
    updates = [LowRankUpdate(*thin_factors(d, 2.0**-53)) for d in dense]
    result = refine_module(updates, [0.2] * 5, [14] * 5, subspace_rank=3, strength=0.7)
    mean = sum(dense) / 5
    scatter = sum((d - mean) @ (d - mean).T for d in dense)
    assert isinstance(scatter, Tensor)
    basis = torch.linalg.eigh(scatter)[1][:, -3:]
    wanted = reference.refined([d.numpy() for d in dense], basis.numpy(), 0.7, [0.2] * 5)
    for found, expected in zip(result.updates, wanted, strict=True):
        np.testing.assert_allclose(found.dense().numpy(), expected, atol=1e-10)
    assert max(result.lost) < 1e-20 * max(result.squared) + 1e-10


def test_a_module_too_large_for_its_room_is_sketched_and_says_how_far_it_is_off() -> None:
    updates = clients((90, 80), [70] * 5)
    stack = stack_module("m", updates, max_columns=20, size=64)
    exact = stack_module("m", updates, max_columns=10**6)
    torch.testing.assert_close(stack.energies, exact.energies)
    assert stack.left.shape[0] == stack.right.shape[0] == 64
    assert 1e-3 < stack.error < 0.5
    size = exact.energies.sqrt()
    assert (
        (stack.inner - exact.inner).abs() / size[:, None] / size
    ).max() < 6 * 0.125  # 1 / sqrt(64)


@pytest.mark.parametrize("shape", [(14, 11), (11, 30), (40, 11), (30, 28)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_a_spoiled_dense_client_leaves_the_others_alone(
    shape: tuple[int, int], value: float
) -> None:
    updates = clients(shape, [min(shape)] * 4)
    clean = stack_module("m", updates, max_columns=15).select([0, 1, 3])
    spoiled = updates[2].dense()
    spoiled[0, 1] = value
    updates[2] = LowRankUpdate(*thin_factors(spoiled, 2.0**-53))
    stack = stack_module("m", updates, max_columns=15)
    assert not torch.isfinite(stack.energies[2]) or not torch.isfinite(stack.overlap[2, 2])
    kept = stack.select([0, 1, 3])
    assert torch.isfinite(stack.rows).all()
    for name in ("inner", "overlap", "rows"):
        torch.testing.assert_close(getattr(kept, name), getattr(clean, name))
    assert torch.isfinite(kept.left).all()
    assert torch.isfinite(kept.right).all()
