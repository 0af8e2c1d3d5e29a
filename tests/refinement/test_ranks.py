"""The least rank whose cut costs little."""

from __future__ import annotations

import numpy as np
import pytest

from clair_cli.refinement.ranks import least_rank

STEEP, FLAT = np.array([16.0, 4.0, 1.0, 0.25]), np.ones(4)


@pytest.mark.parametrize("cost", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_it_costs_no_more_than_asked_and_the_next_smaller_one_does(cost: float) -> None:
    for spectra in ([STEEP], [FLAT], [STEEP, FLAT], [STEEP, FLAT[:2]]):
        rank = least_rank([(s, float(s.sum())) for s in spectra], cost)
        total = sum(s.sum() for s in spectra)
        left = [sum(s[r:].sum() for s in spectra) for r in range(5)]
        assert left[rank] <= cost**2 * total + 1e-12
        assert rank == 1 or left[rank - 1] > cost**2 * total


def test_nothing_at_all_has_rank_one() -> None:
    assert least_rank([(np.zeros(3), 0.0)], 0.1) == 1


def test_a_cut_is_measured_by_the_change_and_not_by_what_was_sent() -> None:
    """A tenth of the whole may be all that changed."""
    assert least_rank([(np.array([100.0, 0.5, 0.1]), 100.6)], 0.1) == 1
    assert least_rank([(np.array([100.0, 0.5, 0.1]), 0.6)], 0.5) == 2
