"""The contract of every engine: results in the order of the items, and a failing job surfaces."""

from __future__ import annotations

import pytest

from clair_cli.engines import ENGINES


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_results_come_in_the_order_of_the_items(name: str) -> None:
    assert list(ENGINES[name].map(lambda x: x * x, range(20))) == [x * x for x in range(20)]


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_a_failing_job_surfaces_after_the_results_before_it(name: str) -> None:
    results = ENGINES[name].map(lambda x: 1 // (3 - x), range(5))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
