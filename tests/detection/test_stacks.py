"""A stack in inner products says what the dense stack says."""

from __future__ import annotations

import pytest
import torch

from clair_cli.detection.stacks import ModuleStack, stack_module
from clair_cli.update import LowRankUpdate
from tests.helpers.builders import orthonormal, regauge


def updates(ranks: list[int], shape: tuple[int, int] = (14, 11)) -> list[LowRankUpdate]:
    draw = torch.Generator().manual_seed(1)
    return [
        LowRankUpdate(
            torch.randn(shape[0], r, generator=draw, dtype=torch.float64),
            torch.randn(r, shape[1], generator=draw, dtype=torch.float64),
            scale=0.5 + k,
        )
        for k, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("ranks", [[3, 3, 3], [1, 4, 2, 3]])
def test_tables_equal_the_dense_ones(ranks: list[int]) -> None:
    clients = updates(ranks)
    stack = stack_module("m", clients)
    for i, a in enumerate(clients):
        for j, b in enumerate(clients):
            product = (a.dense() * b.dense()).sum()
            overlap = (a.dense().T @ b.dense()).square().sum()
            torch.testing.assert_close(stack.inner[i, j], product)
            torch.testing.assert_close(stack.overlap[i, j], overlap)
        torch.testing.assert_close(stack.energies[i], a.dense().square().sum())
    assert stack.error == 0
    assert stack.shape == (14, 11)


def dense_of(stack: ModuleStack) -> tuple[torch.Tensor, torch.Tensor]:
    return stack.left_dot(torch.eye(stack.left.shape[1], dtype=torch.float64)), stack.right_dot(
        torch.eye(stack.right.shape[1], dtype=torch.float64)
    )


@pytest.mark.parametrize("max_columns", [512, 6])
def test_select_and_scale_are_what_stacking_those_clients_gives(max_columns: int) -> None:
    clients = updates([3, 3, 3, 3])
    stack = stack_module("m", clients, max_columns)
    factors = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    chosen = stack.scaled(factors).select([3, 1])
    whole = stack.select([3, 1]).scaled(factors[[3, 1]])
    for name in ("energies", "inner", "overlap", "rows", "blocks", "left", "right"):
        torch.testing.assert_close(getattr(chosen, name), getattr(whole, name))
    again = stack_module(
        "m", [LowRankUpdate(clients[k].up, clients[k].down, clients[k].scale * f)
              for k, f in ((3, 3.0), (1, 2.0))]
    )  # fmt: skip
    torch.testing.assert_close(chosen.energies, again.energies)
    if max_columns == 512:
        torch.testing.assert_close(chosen.inner, again.inner)
        torch.testing.assert_close(chosen.overlap, again.overlap)
        torch.testing.assert_close(chosen.rows, again.rows)
        for mine, theirs in zip(dense_of(chosen), dense_of(again), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_sketch_of_enough_columns_is_exact() -> None:
    clients = updates([3] * 6)
    exact, sketch = stack_module("m", clients), stack_module("m", clients, max_columns=15)
    assert sketch.sketched
    torch.testing.assert_close(sketch.inner, exact.inner)
    torch.testing.assert_close(sketch.overlap, exact.overlap)
    torch.testing.assert_close(sketch.rows, exact.rows)
    assert sketch.error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("max_columns", [512, 6])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_a_spoiled_client_shows_and_leaves_the_others_alone(max_columns: int, value: float) -> None:
    clients = updates([3, 3, 3, 3])
    clean = stack_module("m", clients, max_columns)
    clients[2].up[0, 0] = value
    clients[2].down[:, :] = value
    stack = stack_module("m", clients, max_columns)
    assert not torch.isfinite(stack.energies[2])
    kept = stack.select([0, 1, 3])
    assert torch.isfinite(kept.inner).all()
    assert torch.isfinite(kept.left).all()
    if max_columns == 512:
        torch.testing.assert_close(kept.inner, clean.select([0, 1, 3]).inner)


def rows_by_angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared cosine of the principal angles between two row spaces, the dense way."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(a.T)[0].T @ torch.linalg.qr(b.T)[0])
    return cosines[: min(len(a), len(b))].square().mean()


@pytest.mark.parametrize("ranks", [[3, 3, 3], [1, 4, 2, 3], [5, 1], [11, 3, 7]])
def test_row_overlap_is_that_of_the_principal_angles(ranks: list[int]) -> None:
    """Width 11, so that rank 11 is the whole space; different ranks are padded to the largest."""
    clients = updates(ranks)
    stack = stack_module("m", clients)
    dense = torch.stack(
        [torch.stack([rows_by_angles(a.down, b.down) for b in clients]) for a in clients]
    )
    torch.testing.assert_close(stack.rows, dense)
    assert 0 < float(dense.min()) < float(dense.max()) <= 1 + 1e-12


def test_one_row_space_in_another_gauge_overlaps_fully_and_strangers_by_chance() -> None:
    draw = torch.Generator().manual_seed(4)
    (a,) = updates([3], (30, 200))
    same = regauge(a, draw)
    assert not torch.allclose(same.down, a.down, atol=0.1)
    other = LowRankUpdate(torch.randn(30, 3, generator=draw, dtype=torch.float64), a.down, -7.0)
    part = LowRankUpdate(a.up[:, :1], a.down[:1])
    stranger = LowRankUpdate(a.up, orthonormal(200, 3, draw).T)
    rows = stack_module("m", [a, same, other, part, stranger]).rows
    torch.testing.assert_close(rows[:4, :4], torch.ones(4, 4, dtype=torch.float64))
    assert 0 < float(rows[0, 4]) < 0.06  # 3 / 200 by chance


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf")])
def test_row_overlap_is_finite_beside_a_zero_and_a_spoiled_client(value: float) -> None:
    clients = updates([3, 3, 3, 3])
    clean = stack_module("m", clients).select([0, 1, 3]).rows
    clients[2].down[:, :] = value
    stack = stack_module("m", clients)
    assert torch.isfinite(stack.rows).all()
    assert stack.rows[2].tolist() == [0.0] * 4
    torch.testing.assert_close(stack.select([0, 1, 3]).rows, clean)


@pytest.mark.parametrize("where", [(0, 0), (2, 5)])
def test_one_number_that_is_not_finite_spoils_the_rows_of_its_client_alone(
    where: tuple[int, int],
) -> None:
    clients = updates([3, 3, 3, 3])
    clean = stack_module("m", clients).select([0, 1, 3]).rows
    clients[2].down[where] = float("nan")
    stack = stack_module("m", clients)
    assert torch.isfinite(stack.rows).all()
    torch.testing.assert_close(stack.select([0, 1, 3]).rows, clean)


def test_select_keeps_the_row_overlap_with_its_clients() -> None:
    clients = updates([1, 4, 2, 3])
    stack = stack_module("m", clients)
    chosen = stack.select([3, 0, 2])
    for i, a in enumerate((3, 0, 2)):
        for j, b in enumerate((3, 0, 2)):
            wanted = rows_by_angles(clients[a].down, clients[b].down)
            torch.testing.assert_close(chosen.rows[i, j], wanted)
    assert len({round(float(x), 6) for x in chosen.rows[0, 1:]}) == 2
