"""The start that heads share is told by the sums of their rows; heads are trained with Adam, truly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clair_cli.detection import agreement, starts
from clair_cli.detection.agreement import Array
from clair_cli.detection.starts import learned
from tests.helpers.heads import START, WIDTH, tables_of, trained

CLIENTS = 10
LABELS = pytest.mark.parametrize("labels", [2, 6])


def content(heads: list[Array], shared: bool = True) -> Array:
    """Share of what the first `CLIENTS` have in common in every head (K,), the start off or not."""
    tables = tables_of({"score": np.array(heads)})
    every = np.ones(len(heads), bool)
    inner = learned(tables, 0, every) if shared else tables.inner[0]
    members = np.arange(len(heads)) < CLIENTS
    usual = np.median(agreement.pairs(inner, members))
    return np.asarray(agreement.support(inner, members) / usual)


def honest(labels: int, own: bool = False) -> list[Array]:
    return [trained(k, k + 1 if own else 0, labels=labels) for k in range(CLIENTS)]


def taken(heads: list[Array]) -> float:
    """The energy of the start that was taken off, of the usual pair."""
    tables = tables_of({"score": np.array(heads)})
    every = np.ones(len(heads), bool)
    rest = tables.inner[0] - tables.heads[0].sums / tables.heads[0].labels
    off = rest - learned(tables, 0, every)
    return float(np.median(agreement.pairs(off, every)))


@LABELS
def test_the_start_is_told_to_a_factor_of_two(labels: int) -> None:
    true = START**2 * (labels - 1) * WIDTH
    assert true / 2 < taken(honest(labels)) < 2 * true


@LABELS
def test_random_labels_have_nothing_of_what_is_learned_once_the_start_is_off(labels: int) -> None:
    heads = [*honest(labels), *(trained(50 + k, kind="random", labels=labels) for k in range(3))]
    with_start, without = content(heads, shared=False), content(heads)
    assert without[CLIENTS:].mean() < with_start[CLIENTS:].mean() - 0.05
    assert without[CLIENTS:].max() < 0.2
    assert without[:CLIENTS].min() > 0.8


@LABELS
def test_flipped_labels_oppose_the_others(labels: int) -> None:
    heads = [*honest(labels), trained(50, kind="flipped", labels=labels)]
    assert content(heads)[-1] < -0.05


@LABELS
def test_nothing_is_taken_from_heads_that_began_each_by_itself(labels: int) -> None:
    tables = tables_of({"score": np.array(honest(labels, own=True))})
    np.testing.assert_array_equal(learned(tables, 0, np.ones(CLIENTS, bool)), tables.inner[0])


def test_who_began_elsewhere_loses_nothing_that_others_lose() -> None:
    heads = [*honest(6), trained(50, start=99)]
    tables = tables_of({"score": np.array(heads)})
    mean = tables.heads[0].sums / 6
    off = tables.inner[0] - mean - learned(tables, 0, np.ones(len(heads), bool))
    assert off[-1, :CLIENTS].max() < 0.5 * np.median(
        agreement.pairs(off[:-1, :-1], np.ones(10, bool))
    )


@pytest.mark.parametrize("size", [1e-30, 30.0, 1e6])
def test_one_client_does_not_move_the_start_of_the_others(size: float) -> None:
    odd = size * np.random.default_rng(3).standard_normal((6, WIDTH))
    before, after = taken(honest(6)), taken([*honest(6), odd])
    assert after == pytest.approx(before, rel=0.25)


@pytest.mark.parametrize("shape", [(1, 40), (30, 20)])
def test_a_matrix_that_is_no_head_is_as_it_is(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(5)
    heads = draw.standard_normal((1, *shape)) + 0.1 * draw.standard_normal((CLIENTS, *shape))
    tables = tables_of({"score": heads})
    tables = replace(tables, heads={})  # as read_full says of it
    np.testing.assert_array_equal(learned(tables, 0, np.ones(CLIENTS, bool)), tables.inner[0])


def test_sums_of_rows_that_training_moves_like_all_else_tell_no_start() -> None:
    draw = np.random.default_rng(6)  # a sigmoid for every label: no row depends on another
    task, start = draw.standard_normal((2, 6, 96))
    heads = np.array([start + task + draw.standard_normal((6, WIDTH)) for _ in range(CLIENTS)])
    tables = tables_of({"score": heads})
    np.testing.assert_array_equal(learned(tables, 0, np.ones(CLIENTS, bool)), tables.inner[0])


def test_the_order_of_clients_changes_nothing() -> None:
    heads = [*honest(6)[:7], *(trained(k, kind="random") for k in range(60, 63))]
    order = np.random.default_rng(1).permutation(len(heads))
    every = np.ones(len(heads), bool)
    found = learned(tables_of({"score": np.array(heads)}), 0, every)
    turned = learned(tables_of({"score": np.array(heads)[order]}), 0, every)
    np.testing.assert_allclose(turned, found[np.ix_(order, order)], rtol=1e-6, atol=1e-9)


@LABELS
def test_the_directions_of_many_clients_are_those_of_few(
    labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [*honest(labels), *(trained(50 + k, kind="random", labels=labels) for k in range(3))]
    tables, every = tables_of({"score": np.array(heads)}), np.ones(len(heads), bool)
    whole = learned(tables, 0, every)
    monkeypatch.setattr(starts, "MANY", 0)
    np.testing.assert_allclose(learned(tables, 0, every), whole, rtol=2e-2)
    assert not np.array_equal(whole, tables.inner[0])
