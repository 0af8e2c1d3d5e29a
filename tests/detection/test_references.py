"""Order statistics of several groups are those of each group alone."""

from __future__ import annotations

import numpy as np
import pytest

from clair_cli.detection.references import SEVERAL, WIDE, References, Table
from clair_cli.detection.scales import TENTH

CLIENTS = 4 * WIDE + 1


def groups(draw: np.random.Generator, lacking: int) -> References:
    """All clients, less other ones in each group."""
    masks = np.ones((3 * SEVERAL, CLIENTS), bool)
    for row in masks:
        row[draw.choice(CLIENTS, lacking, replace=False)] = False
    return References(masks, np.ones(CLIENTS, bool))


@pytest.mark.parametrize("lacking", [1, 2])
@pytest.mark.parametrize(
    "kind", ["alike", "one row unlike the others", "no row like another", "ties"]
)
def test_order_statistics_of_many_groups_are_those_of_each(kind: str, lacking: int) -> None:
    draw = np.random.default_rng(lacking)
    those = groups(draw, lacking)
    values = draw.standard_normal((2, 1, CLIENTS)) + 1e-4 * draw.standard_normal(
        (2, len(those.masks), CLIENTS)
    )
    if kind == "one row unlike the others":
        values[:, 0] += 100  # the row that others are looked up by
    elif kind == "no row like another":
        values += 10 * np.arange(len(those.masks))[:, None]
    elif kind == "ties":
        values = np.round(values)
    middle = those.median(values)
    lower = those.lower_scale(values[0])
    for m, b in np.ndindex(2, len(those.masks)):
        assert middle[m, b, 0] == np.median(values[m, b, those.masks[b]])
    for b, mask in enumerate(those.masks):
        inside = values[0, b, mask]
        tenth = (np.median(inside) - np.quantile(inside, 0.1)) / TENTH
        assert lower[b, 0] == pytest.approx(tenth, rel=1e-12)


def test_the_median_over_pairs_lies_within_its_bounds_and_the_table_stays() -> None:
    draw = np.random.default_rng(5)
    half = draw.standard_normal((CLIENTS, CLIENTS))
    table = Table(half + half.T)
    before = table.values.copy()
    those = groups(draw, 1)
    for diagonal in (False, True):
        low, high = those.pair_median(table, diagonal)
        for row in range(len(those.masks)):
            assert low <= those.exact_pair_median(table, row, diagonal) <= high
        assert high - low < 0.1
    assert np.array_equal(table.values, before)
