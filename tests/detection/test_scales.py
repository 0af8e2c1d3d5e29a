"""Order statistics of many values are those of all of them sorted, whatever a sample of them says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array
from clair_cli.detection.scales import MANY, SAMPLE, median, ordered

DRAW = np.random.default_rng(5)
COUNT = MANY + 11
VALUES: dict[str, Callable[[], Array]] = {
    "normal": lambda: DRAW.standard_normal(COUNT),
    "float32": lambda: DRAW.standard_normal(COUNT).astype(np.float32),
    "in order": lambda: np.arange(COUNT, dtype=float),
    "two values": lambda: DRAW.integers(0, 2, COUNT).astype(float),
    "all equal": lambda: np.full(COUNT, 3.0),
    "a step": lambda: np.repeat([0.0, 1.0], [COUNT // 2, COUNT - COUNT // 2]),
    "a sample of others": lambda: misleading(),
    "one is no number": lambda: np.append(DRAW.standard_normal(COUNT - 1), np.nan),
}


def misleading() -> Array:
    """Values whose sample lies where none of the others do."""
    found = DRAW.standard_normal(COUNT)
    found[:: COUNT // SAMPLE] += 100
    return found


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("less", [0, 1])
def test_the_median_of_many_is_that_of_numpy(kind: str, less: int) -> None:
    values = VALUES[kind]()[less:]
    before = values.copy()
    np.testing.assert_equal(median(values), float(np.median(values)))
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 1.0])
def test_places_of_many_are_those_of_all_sorted(kind: str, share: float) -> None:
    values = VALUES[kind]()
    low = int(share * (COUNT - 1))
    for high in (low, min(low + 1, COUNT - 1), min(low + 5000, COUNT - 1), COUNT - 1):
        np.testing.assert_array_equal(ordered(values, low, high), np.sort(values)[[low, high]])


def test_only_the_values_around_the_places_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, partition = [], np.partition

    def seen(values: Array, *given: Any) -> Array:
        sizes.append(len(values))
        return partition(values, *given)

    monkeypatch.setattr(np, "partition", seen)
    values = DRAW.standard_normal(COUNT)
    ordered(values, COUNT // 2, COUNT // 2 + 1)
    ordered(misleading(), COUNT // 2, COUNT // 2 + 1)
    assert sizes[0] < COUNT / 10
    assert sizes[1] == COUNT


def test_each_pair_of_members_is_named_once_and_by_rows() -> None:
    kernel = DRAW.standard_normal((9, 9))
    kernel += kernel.T
    members = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0], bool)
    inside = kernel[np.ix_(members, members)]
    found = agreement.pairs(kernel, members)
    np.testing.assert_array_equal(found, inside[np.tri(len(inside), k=-1, dtype=bool)])
    for few in (np.zeros(9, bool), np.arange(9) == 4):
        assert agreement.pairs(kernel, few).shape == (0,)
