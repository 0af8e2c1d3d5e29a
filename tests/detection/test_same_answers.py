"""What is computed in steps of K^2 is what the plain ways of `reference` compute."""

from __future__ import annotations

import numpy as np
import pytest

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.causes import addition
from clair_cli.detection.coherence import EVERY, coherent, coherent_without, split
from clair_cli.detection.consensus import Consensus
from clair_cli.detection.distances import Distances
from clair_cli.detection.groups import Groups
from clair_cli.detection.linkage import linked
from clair_cli.detection.references import Apart, References, mean_of_least
from clair_cli.detection.scales import robust_scale
from clair_cli.detection.spectrum import leading
from clair_cli.detection.without import same_without
from tests.detection import reference
from tests.helpers.random_cohorts import cohort


def settled(seed: int, clients: int) -> tuple[Consensus, Mask] | None:
    """A cohort's consensus and who is out of it, None where there is none."""
    consensus = Consensus(Distances(cohort(seed, clients), DETECTION))
    group, problem = consensus.settle(consensus.distinct)
    if problem is not None or (groups := Groups(consensus, group)).split:
        return None
    evidence = consensus.distances.decisive(groups.group)
    return consensus, consensus.worst(evidence) >= DETECTION.limit


def same_on(clients: int, seeds: range) -> tuple[int, int]:
    """How many cohorts had a consensus, and how many verdicts hung on one other client."""
    judged = unstable = 0
    for seed in seeds:
        found = settled(seed, clients)
        if found is None:
            continue
        fast, slow = same_without(*found), reference.same_without(*found)
        np.testing.assert_array_equal(fast, slow, err_msg=f"cohort({seed}, {clients})")
        judged += 1
        unstable += int((~slow).any(axis=0).sum())
    return judged, unstable


@pytest.mark.parametrize("clients", [3, 4, 5, 6, 7, 8, 9, 10, 12, 15])
def test_each_client_is_left_out_as_if_all_began_anew(clients: int) -> None:
    judged, unstable = same_on(clients, range(25))
    assert judged >= 10
    assert unstable > 0 or clients > 10


@pytest.mark.parametrize(("clients", "many"), [(21, 12), (30, 8), (40, 6), (60, 4)])
def test_each_of_more_clients_is_left_out_as_if_all_began_anew(clients: int, many: int) -> None:
    assert same_on(clients, range(100, 100 + many))[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_each_of_two_hundred_is_left_out_as_if_all_began_anew(seed: int) -> None:
    assert same_on(200, range(seed, seed + 1))[0] == 1


@pytest.mark.slow
def test_of_more_than_every_client_the_search_from_the_consensus_ends_where_one_anew_does() -> None:
    assert same_on(EVERY + 4, range(1))[0] == 1


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_several_groups_have_the_scores_of_each_alone(seed: int, settled: bool) -> None:
    """Groups that lack some and have some besides: alike, and between the bounds where bounded."""
    draw = np.random.default_rng(seed)
    distances = Distances(cohort(seed, 24), DETECTION)
    base = distances.distinct & (draw.random(24) < 0.8)
    masks = np.repeat(base[None], 8, axis=0)
    for row, mask in enumerate(masks):
        mask[draw.choice(24, row % 4, replace=False)] ^= True
    masks &= distances.distinct
    try:
        together = distances.decisive_of(References(masks, base), settled)
    except Apart:
        return
    for row, mask in enumerate(masks):
        alone = distances.decisive_of(References(mask[None]), settled)
        for one, other in zip(together, alone, strict=True):
            most = one.scores if one.most is None else one.most
            assert (one.scores[row] <= other.scores[0] + 1e-6).all()
            assert (other.scores[0] <= most[row] + 1e-6).all()


@pytest.mark.parametrize("size", [5, 30])
def test_order_statistics_are_those_of_each_group(size: int) -> None:
    draw = np.random.default_rng(size)
    masks = draw.random((9, size)) < 0.7
    masks[:, :3] = True
    groups, values = References(masks), draw.standard_normal((9, size))
    for row, mask in enumerate(masks):
        inside = values[row, mask]
        assert groups.median(values)[row, 0] == pytest.approx(np.median(inside))
        assert groups.scale(values)[row, 0] == pytest.approx(robust_scale(inside))
        assert groups.lower_scale(values)[row, 0] == pytest.approx(reference.lower_scale(inside))


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_the_mean_of_the_least_is_that_of_the_sorted(count: int, rows: int) -> None:
    values = np.random.default_rng(rows).standard_normal((rows, 7))
    wanted = np.sort(values, axis=0)[:count].mean(axis=0)
    np.testing.assert_allclose(mean_of_least(values, count), wanted)


def kernel(count: int, seed: int, rounded: bool = False) -> Array:
    """A symmetric kernel; rounded, it is full of ties."""
    draw = np.random.default_rng(seed)
    found = draw.standard_normal((count, count)) + draw.choice([0.0, 2.0])
    found = found + found.T + np.outer(*[draw.random(count)] * 2)
    return np.round(found) if rounded else found


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_coherent_without_each_are_those_of_the_rest(seed: int, rounded: bool) -> None:
    count = 4 + seed
    table = kernel(count, seed, rounded)
    for size in {2, count // 2 + 1, count - 1}:
        whole, without = coherent_without(table, size)
        np.testing.assert_array_equal(whole, reference.coherent(table, size))
        for j in range(count):
            rest = np.flatnonzero(np.arange(count) != j)
            wanted = np.zeros(count, bool)
            wanted[rest[reference.coherent(table[np.ix_(rest, rest)], size)]] = True
            np.testing.assert_array_equal(without[j], wanted)


@pytest.mark.parametrize("seed", range(5))
def test_few_seeds_find_a_majority_beside_a_tighter_minority(seed: int) -> None:
    """Of 400 clients 180 are colluders, more alike than the others are, and 15 are strangers."""
    draw = np.random.default_rng(seed)
    owner = draw.permutation(np.repeat([0, 1, 2], [205, 180, 15]))
    quality = draw.uniform(0.5, 1, 400)
    table = np.where(owner[:, None] == owner, np.array([0.5, 0.95, 0.0])[owner], 0.02)
    table = table * np.outer(quality, quality) + 0.02 * kernel(400, seed) / 3
    assert set(owner[coherent(table, 201)]) == {0}
    assert set(owner[reference.coherent(table, 201)]) == {0}


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_linkage_merges_as_the_search_through_all_pairs(seed: int, rounded: bool) -> None:
    table, who = kernel(5 + 2 * seed, seed, rounded), np.arange(1, 4 + 2 * seed)
    plain = list(reference.linked(table, who))
    for merge, (alike, members, _) in zip(linked(table, who), plain, strict=True):
        assert merge.alike == alike
        assert sorted(merge.members) == members
        inside = table[np.ix_(members, members)][np.tri(len(members), k=-1, dtype=bool)]
        assert merge.cosine == pytest.approx(inside.mean())


@pytest.mark.parametrize("seed", range(40))
def test_the_addition_is_that_of_all_clusters_against_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    few, count = int(draw.integers(2, 8)), int(draw.integers(12, 40))
    table = np.clip(0.1 * kernel(count, seed) / 3, -1, 1)
    table[:few, :few] += draw.uniform(0, 0.8)
    able = draw.random(count) < 0.9
    fast, slow = (f(table, able, 0.02, 0.5) for f in (addition, reference.addition))
    assert (fast is None) == (slow is None)
    if fast is not None and slow is not None:
        assert fast.members == slow.members
        assert (fast.cosine, fast.score) == pytest.approx((slow.cosine, slow.score))


@pytest.mark.parametrize("count", [8, 90, 420])
@pytest.mark.parametrize("apart", [0.0, 0.4])
def test_the_split_is_that_of_all_eigenvectors(count: int, apart: float) -> None:
    side = np.arange(count) < 0.6 * count
    table = 0.02 * kernel(count, 3) + np.where(side[:, None] == side, 0.4, 0.4 - apart)
    fast, slow = split(table), reference.split(table)
    if apart:
        np.testing.assert_array_equal(fast[0], slow[0])
        np.testing.assert_array_equal(fast[0], side)
    assert fast[1] == pytest.approx(slow[1], rel=1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_the_leading_values_are_those_of_all_that_stand_out(centred: bool) -> None:
    draw = np.random.default_rng(0)
    shared = draw.standard_normal((500, 30)) * np.geomspace(3, 0.5, 30)
    table = shared @ shared.T + np.diag(draw.uniform(0, 1, 500))
    centre = np.eye(500) - 1 / 500 if centred else np.eye(500)
    all_values, all_vectors = np.linalg.eigh(centre @ table @ centre)
    values, vectors = leading(table, 24, centred)
    np.testing.assert_allclose(values, all_values[::-1][:24], rtol=1e-6)
    assert abs(vectors[:, 0] @ all_vectors[:, -1]) == pytest.approx(1)


def test_pairs_of_a_kernel_are_each_there_once() -> None:
    table = kernel(9, 0)
    members = np.arange(9) % 3 > 0
    pairs = agreement.pairs(table, members)
    assert sorted(pairs) == sorted(table[np.ix_(members, members)][np.triu_indices(6, 1)])
