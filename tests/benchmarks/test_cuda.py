"""What a card is measured against is counted from shapes, and without a card it is said."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cuda


def test_floors_by_hand() -> None:
    few = cuda.floors(2, [(30, 50)], 4)
    assert few.pcie == 2 * (2 * 4 * 80)
    assert few.memory == 12 * (2 * 4 * 80)
    assert few.operations == 8 * 8 * 80
    twice = cuda.floors(2, [(30, 50), (30, 50)], 4)
    assert twice == cuda.Floors(2 * few.pcie, 2 * few.memory, 2 * few.operations)


def test_bytes_grow_with_the_clients_and_operations_of_sketches_with_their_pairs() -> None:
    one, other = (cuda.floors(k, [(4096, 4096)], 16) for k in (10_000, 20_000))
    assert other.pcie == 2 * one.pcie
    assert 2 < other.operations / one.operations < 4


def test_the_slowest_of_three_is_the_floor() -> None:
    found = cuda.Floors(10, 40, 90).seconds(cuda.Floors(10, 20, 30))
    assert (found.pcie, found.memory, found.operations) == (1, 2, 3)
    assert found.longest == 3
    row = {"clients": 20, "cpu": 9.0, "cuda": 6.0, "floor": found, "same": True}
    assert cuda.table([row]).splitlines()[-1] == "| 20 | 9 | 6 | 1 | 2 | 3 | 2 | yes |"
    assert cuda.table([row | {"same": False}]).endswith("| NO |")


def test_without_a_card_nothing_is_measured_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    cuda.main([])
    assert capsys.readouterr().out == cuda.NONE + "\n"
