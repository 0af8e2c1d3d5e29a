"""Matrices trained whole: a flipped head is found in an honest adapter, nobody is accused for less.

Truth: heads of 400 numbers, a start, what all learned, and what each learned for itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clair_cli.detection.agreement import Mask
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.heads import Heads
from clair_cli.detection.references import References
from clair_cli.detection.verdicts import Judgement
from tests.helpers.federations import (
    Array,
    Client,
    called,
    codes,
    honest,
    judged,
    reason,
    tabled,
    task,
    trained,
    verdict,
)
from tests.helpers.heads import task as inputs_of
from tests.helpers.heads import trained as trained_head
from tests.helpers.heads import untrained

SIZE = 400
STARTS = pytest.mark.parametrize("shared", [True, False], ids=["shared start", "own start"])


def direction(seed: int) -> Array:
    """A random direction of length 1."""
    found = np.random.default_rng(40_000 + seed).standard_normal(SIZE)
    return np.asarray(found / np.linalg.norm(found))


LEARNED, START = direction(1), direction(2)


def head(seed: int, shared: bool, learned: Array = LEARNED, noise: float = 0.5) -> Array:
    """Start, what is learned, and a deviation of its own."""
    start = START if shared else direction(1000 + seed)
    return np.asarray(0.6 * start + learned + noise * direction(2000 + seed))


def headed(count: int, shared: bool) -> dict[str, Client]:
    """Honest clients with honest heads."""
    found = honest(count)
    return {c: replace(u, head=head(k, shared)) for k, (c, u) in enumerate(found.items())}


def with_head(learned: Array, shared: bool, seed: int = 50, factor: float = 1.0) -> Client:
    """An honest adapter under a head that learned this."""
    return replace(trained(task(0), seed), head=factor * head(seed, shared, learned))


class OfGroup:
    """The heads of a cohort, asked about one group (K,)."""

    def __init__(self, clients: dict[str, Client]) -> None:
        self.heads = Heads(tabled(clients), DETECTION, np.ones(len(clients), bool))

    def kept(self, group: Mask) -> Array | None:
        found = self.heads.kept(References(group[None]))
        return None if found is None else found[0]

    def judged(self, group: Mask) -> list[int]:
        return self.heads.judged(References(group[None]))


heads = OfGroup  # read as a sentence: heads(clients).kept(group)


def undecided(found: Judgement) -> set[str]:
    """Clients of whom a head says something."""
    return {v.client for v in found.verdicts if "CLR210" in codes(found, v.client)}


@STARTS
@pytest.mark.parametrize("seed", range(50, 54))
def test_a_flipped_head_is_found_though_the_rest_is_honest(seed: int, shared: bool) -> None:
    found = judged(headed(9, shared) | {"x": with_head(-LEARNED, shared, seed)})
    assert called(found, "contaminated") == {"x"}
    assert called(found, "benign") == headed(9, shared).keys()
    assert "CLR210" in codes(found, "x")
    assert codes(found, "x") <= {"CLR210", "CLR209"}  # no other module speaks against it
    said = reason(found, "x", "CLR210")
    assert said.startswith("score.weight ")
    assert said.endswith("labels flipped or permuted?")
    cause = verdict(found, "x").cause
    assert cause is not None
    assert cause.head is not None
    assert cause.head < 0.3
    assert cause.content > 0.9


@STARTS
def test_a_head_that_points_against_the_others_is_told_so(shared: bool) -> None:
    found = judged(headed(9, shared) | {"x": with_head(-2 * LEARNED, shared)})
    said = reason(found, "x", "CLR210")
    assert said.startswith("score.weight points against the others'")


@STARTS
def test_a_permuted_head_keeps_nothing_of_what_is_learned(shared: bool) -> None:
    permuted = np.random.default_rng(3).permutation(LEARNED)
    found = judged(headed(9, shared) | {"x": with_head(permuted, shared)})
    assert "CLR210" in codes(found, "x") or verdict(found, "x").verdict == "suspicious"
    assert called(found, "benign") >= headed(9, shared).keys()
    kept = heads(headed(9, shared) | {"x": with_head(permuted, shared)}).kept(nine())
    assert kept is not None
    assert kept[-1] < 0.45


def nine() -> np.ndarray:
    return np.array([True] * 9 + [False])


@STARTS
def test_honest_heads_keep_what_all_have(shared: bool) -> None:
    clients = headed(10, shared)
    found = judged(clients)
    assert called(found, "benign") == clients.keys()
    kept = heads(clients).kept(np.ones(10, bool))
    assert kept is not None
    assert kept == pytest.approx(np.ones(10), abs=0.2)


@STARTS
@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_a_noisy_head_is_no_flipped_one(noise: float, shared: bool) -> None:
    noisy = replace(trained(task(0), 50), head=head(50, shared, noise=noise))
    found = judged(headed(9, shared) | {"x": noisy})
    assert called(found, "contaminated", "minority") == set()
    assert undecided(found) == set()


@STARTS
def test_a_flip_in_both_is_told_by_the_other_modules(shared: bool) -> None:
    x = replace(trained(-task(0), 50), head=head(50, shared, -LEARNED))
    found = judged(headed(9, shared) | {"x": x})
    assert called(found, "contaminated") == {"x"}
    assert "CLR203" in codes(found, "x")


# --- what cannot be judged judges nobody


@STARTS
@pytest.mark.parametrize("having", [0, 1, 2])
def test_heads_of_fewer_than_three_judge_nobody(having: int, shared: bool) -> None:
    clients = headed(9, shared)
    for k, c in enumerate(list(clients)):
        if k >= having:
            clients[c] = replace(clients[c], head=None)
    clients["x"] = with_head(-LEARNED, shared)
    found = judged(clients)
    assert called(found, "benign") == clients.keys()
    if having:
        assert heads(clients).kept(nine()) is None


@STARTS
def test_who_has_no_head_is_not_judged_by_it_and_the_others_are(shared: bool) -> None:
    clients = headed(9, shared) | {"x": with_head(-LEARNED, shared)}
    for c in ("h-00", "h-01", "h-02", "h-03"):
        clients[c] = replace(clients[c], head=None)
    found = judged(clients)
    assert called(found, "contaminated") == {"x"}
    for c in ("h-00", "h-01", "h-02", "h-03"):
        cause = verdict(found, c).cause
        assert cause is not None
        assert cause.head is None
    cause = verdict(found, "h-05").cause
    assert cause is not None
    assert cause.head == pytest.approx(1, abs=0.25)


def test_a_client_without_a_head_among_those_with_one_is_judged_by_the_rest() -> None:
    clients = headed(9, True) | {"x": trained(task(0), 50)}
    assert called(judged(clients), "benign") == clients.keys()
    clients["x"] = trained(task(5), 50)
    assert called(judged(clients), "contaminated") == {"x"}


@pytest.mark.parametrize("moved", [0.01, 0.05, 0.1])
def test_heads_that_hardly_moved_judge_nobody(moved: float) -> None:
    """One start and little more: cosines above 0.98, and a flip that does nothing."""
    clients = {
        c: replace(u, head=START + moved * (u.head - 0.6 * START))
        for c, u in headed(9, True).items()
        if u.head is not None
    }
    x = replace(trained(task(0), 50), head=START - moved * LEARNED)
    found = judged(clients | {"x": x})
    assert heads(clients | {"x": x}).judged(nine()) == []
    assert called(found, "benign") == clients.keys() | {"x"}


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_head_that_is_the_same_in_all_judges_nobody(constant: float) -> None:
    clients = {c: replace(u, head=np.full(SIZE, constant)) for c, u in headed(9, True).items()} | {
        "x": with_head(-LEARNED, True)
    }
    found = judged(clients)
    assert heads(clients).kept(nine()) is None
    assert called(found, "benign") == clients.keys()
    assert all(np.isfinite(v.score or 0.0) for v in found.verdicts)


def test_heads_that_share_nothing_judge_nobody() -> None:
    clients = {
        c: replace(u, head=direction(3000 + k)) for k, (c, u) in enumerate(headed(9, True).items())
    } | {"x": with_head(-LEARNED, False)}
    found = judged(clients)
    assert heads(clients).judged(nine()) == []
    assert called(found, "benign") == clients.keys()


@STARTS
@pytest.mark.parametrize("value", [0.06, -0.06])
def test_one_constant_head_among_trained_ones_accuses_nobody_else(
    value: float, shared: bool
) -> None:
    """A constant of the usual size: it keeps nothing of what the others have learned."""
    clients = headed(9, shared) | {"x": replace(trained(task(0), 50), head=np.full(SIZE, value))}
    assert called(judged(clients), "benign") >= headed(9, shared).keys()
    kept = heads(clients).kept(nine())
    assert kept is not None
    assert abs(kept[-1]) < 0.2


@STARTS
def test_a_head_of_zeros_is_judged(shared: bool) -> None:
    """It keeps nothing of what the others have learned, and is there."""
    clients = headed(9, shared) | {"x": replace(trained(task(0), 50), head=np.zeros(SIZE))}
    found = judged(clients)
    assert called(found, "benign") == headed(9, shared).keys()
    cause = verdict(found, "x").cause
    assert cause is not None
    assert cause.head == pytest.approx(0)


@STARTS
@pytest.mark.parametrize("factor", [30.0, 1000.0])
@pytest.mark.parametrize("seed", range(2))
def test_an_enormous_head_of_noise_is_not_taken_for_an_honest_one(
    seed: int, factor: float, shared: bool
) -> None:
    """It would be all of a mean, whatever chance lets it share with the others."""
    head = factor * direction(70 + seed)
    found = judged(headed(9, shared) | {"x": replace(trained(task(0), 50), head=head)})
    assert called(found, "benign") == headed(9, shared).keys()


# --- order and scale


@STARTS
def test_order_and_scale_of_heads_change_nothing(shared: bool) -> None:
    clients = headed(8, shared) | {
        "x": with_head(-LEARNED, shared),
        "y": replace(trained(task(0), 51), head=None),
    }
    one = judged(clients)
    assert undecided(one) == {"x"}
    names = list(clients)
    for seed, factor in ((0, 1e-3), (1, 1.0), (2, 1e3)):
        order = np.random.default_rng(seed).permutation(len(names))
        turned = {}
        for k in order:
            u = clients[names[k]]
            turned[names[k]] = replace(u, head=None if u.head is None else factor * u.head)
        other = judged(turned)
        for v in one.verdicts:
            again = verdict(other, v.client)
            assert again.verdict == v.verdict
            assert again.score == pytest.approx(v.score, abs=1e-6)


@STARTS
def test_a_larger_honest_head_is_honest(shared: bool) -> None:
    found = judged(headed(9, shared) | {"x": with_head(LEARNED, shared, factor=3.0)})
    assert called(found, "contaminated", "minority") == set()


# Heads of classifiers, trained with Adam from one start


def classifying(seed: int, kind: str = "honest", **given: int) -> Client:
    """An honest adapter under a head that was trained on labels of this kind."""
    return replace(trained(task(0), seed), head=trained_head(seed, kind=kind, **given))


def classifiers(count: int = 9) -> dict[str, Client]:
    return {f"h-{k:02d}": classifying(k) for k in range(count)}


@pytest.mark.parametrize("kind", ["flipped", "random"])
def test_a_head_of_other_labels_is_found_from_the_same_start(kind: str) -> None:
    found = judged(classifiers() | {"x": classifying(50, kind)})
    assert called(found, "contaminated") == {"x"}
    assert "CLR210" in codes(found, "x")


def moved(share: float) -> Client:
    """An honest adapter whose head went this share of its way only."""
    start = untrained(0).numpy()
    return replace(classifying(50), head=start + share * (trained_head(50) - start))


def with_frequency(client: Client) -> Client:
    """The same, and its head learned frequencies of its own: along the mean of the inputs."""
    assert client.head is not None
    mean = inputs_of(6, 96).mean(dim=0).numpy()
    added = np.outer([1.0, -1.0, 0.5, -0.5, 0.8, -0.8], mean)
    size = 2 * np.linalg.norm(client.head) / np.linalg.norm(added)
    return replace(client, head=client.head + size * added)


def own_labels(clients: dict[str, Client]) -> set[str]:
    found = Heads(tabled(clients), DETECTION, np.ones(len(clients), bool)).own_labels
    return {name for name, own in zip(clients, found, strict=True) if own}


def test_labels_of_its_own_make_a_head_suspicious_at_most() -> None:
    odd = moved(0.2)
    assert called(judged(classifiers() | {"x": odd}), "contaminated") == {"x"}
    skewed = classifiers() | {"x": with_frequency(odd)}
    assert "x" in own_labels(skewed)
    assert called(judged(skewed), "suspicious") == {"x"}


def test_labels_of_its_own_do_not_hide_a_flip() -> None:
    clients = classifiers() | {"x": with_frequency(classifying(50, "flipped"))}
    assert "x" in own_labels(clients)
    assert called(judged(clients), "contaminated") == {"x"}


@pytest.mark.parametrize("size", [1.0, 10.0, 1000.0])
def test_noise_does_not_hide_a_flip(size: float) -> None:
    flipped = classifying(50, "flipped")
    assert flipped.head is not None
    noise = np.random.default_rng(9).standard_normal(flipped.head.shape)
    noise *= size * np.linalg.norm(flipped.head) / np.linalg.norm(noise)
    found = judged(classifiers() | {"x": replace(flipped, head=flipped.head + noise)})
    assert verdict(found, "x").verdict in ("contaminated", "suspicious")
    assert called(found, "benign") == classifiers().keys()


def test_hardly_any_data_make_a_head_noisy_and_no_flipped_one() -> None:
    found = judged(classifiers() | {"x": classifying(50, samples=10)})
    assert called(found, "contaminated", "minority") == set()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1])
def test_a_head_that_hardly_moved_has_little_and_opposes_nobody(share: float) -> None:
    cause = verdict(judged(classifiers() | {"x": moved(share)}), "x").cause
    assert cause is not None
    assert cause.head is not None
    assert -0.5 < cause.head < 0.5


def test_the_limit_that_is_told_is_nobodys_own() -> None:
    """It does not depend on how noisy the head of whoever comes first is."""
    clients = classifiers() | {
        "noisy": classifying(60, samples=10),
        "x": classifying(50, "flipped"),
    }
    turned = dict(reversed(clients.items()))
    one, other = (
        next(r.limit for r in verdict(judged(c), "x").reasons if r.code == "CLR210")
        for c in (clients, turned)
    )
    assert one == pytest.approx(other)
    assert judged(turned).verdicts[1].client == "noisy"
