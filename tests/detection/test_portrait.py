"""The portrait of a cohort: who is alike stands together, and a map of a plane is exact.

Truth: tables of likeness that are drawn here.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from clair_cli.detection import portrait


def blocks(order: list[int], inside: float = 0.8, across: float = 0.1) -> np.ndarray:
    """Likeness (K, K) of clients of which client k is in group order[k]."""
    group = np.array(order)
    table = np.where(group[:, None] == group, inside, across)
    np.fill_diagonal(table, 1.0)
    return table


@pytest.mark.parametrize("seed", range(5))
def test_every_client_has_one_place_in_the_order_and_groups_stand_together(seed: int) -> None:
    order = np.random.default_rng(seed).permutation([0] * 6 + [1] * 4 + [2] * 3).tolist()
    noise = np.random.default_rng(seed).normal(0, 0.01, (13, 13))
    found = portrait.ordered(blocks(order) + (noise + noise.T) / 2)
    assert sorted(found) == list(range(13))
    seen = [order[k] for k in found]
    assert sum(a != b for a, b in pairwise(seen)) == 2


def test_one_client_is_an_order() -> None:
    assert portrait.ordered(np.ones((1, 1))) == [0]


def test_a_map_of_distances_in_a_plane_shows_them_as_they_are() -> None:
    """Unit vectors of two dimensions about their mean: sqrt(2 - 2 cosine) is the distance."""
    angles = np.linspace(0, 2 * np.pi, 7, endpoint=False)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places, kept = portrait.scaled(points @ points.T)
    assert kept == pytest.approx(1)
    assert portrait.stress(points @ points.T, places) < 1e-3


def test_strangers_have_a_map_with_stress() -> None:
    places, kept = portrait.scaled(np.eye(9))
    assert kept == pytest.approx(2 / 8)
    assert portrait.stress(np.eye(9), places) > 0.3


def test_many_clients_have_places_and_no_pairs() -> None:
    many = portrait.MOST + 1
    found = portrait.agreement_of(tuple(map(str, range(many))), np.eye(many), "direction")
    assert (len(found.places), found.percent, found.order) == (many, (), ())
    assert found.left_out is not None


def test_beyond_what_is_computed_in_full_the_map_and_the_spectra_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(3)
    x = draw.standard_normal((60, 5)) @ draw.standard_normal((5, 80)) + 0.1 * draw.standard_normal(
        (60, 80)
    )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    wanted = portrait.scaled(x @ x.T), portrait.spectra(x @ x.T)
    monkeypatch.setattr(portrait, "DENSE", 50)
    found = portrait.scaled(x @ x.T), portrait.spectra(x @ x.T)
    np.testing.assert_allclose(found[0][0], wanted[0][0], atol=1e-3)
    assert found[0][1] == pytest.approx(wanted[0][1])
    for name in ("updates", "differences"):
        assert getattr(found[1], name) == pytest.approx(getattr(wanted[1], name), abs=1e-6)
