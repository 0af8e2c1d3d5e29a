"""Why a client is far: content is told from noise, whatever the noise, and nobody is accused for noise.

Truth: every client's task, deviation and rows are drawn here (tests/helpers/federations.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.causes import addition, causes, named, sides
from clair_cli.detection.distances import Distances
from tests.helpers.federations import (
    USUAL,
    Client,
    called,
    codes,
    honest,
    judged,
    own,
    reason,
    rows,
    tabled,
    task,
    trained,
    verdict,
)

STARTS = pytest.mark.parametrize("shared", [True, False], ids=["shared A", "own A"])


# --- the numbers themselves


def vectors(count: int, content: float, error: float, seed: int = 0) -> np.ndarray:
    """`count` usual clients of content 1 and error 1, and one of these, in 4000 dimensions."""
    draw = np.random.default_rng(seed)
    common = draw.standard_normal(4000) / math.sqrt(4000)
    noise = draw.standard_normal((count + 1, 4000)) / math.sqrt(4000)
    noise[-1] *= math.sqrt(error)
    common = np.outer([*[1.0] * count, content], common)
    return np.asarray(common + noise)


@pytest.mark.parametrize("content", [-1.0, 0.0, 0.4, 1.0, 2.0])
@pytest.mark.parametrize("error", [0.5, 1.0, 10.0, 30.0])
def test_content_and_error_are_those_that_were_planted(content: float, error: float) -> None:
    """Over 25 draws, within three standard errors of what independent directions share by chance."""
    found = [causes(*whole(vectors(12, content, error, seed))) for seed in range(25)]
    mine = np.array([(f.content[-1], f.error[-1], f.size[-1]) for f in found if f]).T
    one = math.sqrt((error + content**2 + 0.5) / 4000)
    assert mine[0].mean() == pytest.approx(content, abs=3 * one / math.sqrt(25))
    assert np.abs(mine[0] - content).max() < 4 * one
    assert mine[1].mean() == pytest.approx(error, rel=0.05)
    assert mine[2].mean() == pytest.approx(math.sqrt((content**2 + error) / 2), rel=0.02)
    for f in found:
        assert f is not None
        assert f.content[:-1] == pytest.approx(np.ones(12), abs=0.1)
        assert f.error[:-1] == pytest.approx(np.ones(12), abs=0.2)


def whole(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x @ x.T, np.array([True] * (len(x) - 1) + [False])


def test_two_rests_are_company_as_far_as_they_are_alike() -> None:
    x = vectors(10, 1.0, 1.0)
    extra = np.random.default_rng(9).standard_normal(4000) / math.sqrt(4000)
    x[[0, 1]] += extra  # two equal halves of a rest: a cosine of a half
    found = causes(x @ x.T, np.ones(11, bool))
    assert found is not None
    assert found.company[0, 1] == pytest.approx(0.5, abs=0.1)
    assert np.abs(found.company[2:, :2]).max() < 0.15
    assert np.abs(found.company).max() <= 1


def test_who_share_nothing_have_no_causes() -> None:
    opposed = np.array([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]])
    assert causes(opposed, np.ones(3, bool)) is None
    assert causes(np.zeros((4, 4)), np.ones(4, bool)) is None


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_causes_know_no_unit(factor: float) -> None:
    kernel, group = whole(vectors(8, 0.5, 4.0))
    one, other = causes(kernel, group), causes(factor * kernel, group)
    assert one is not None
    assert other is not None
    for name in ("content", "error", "size", "kept", "company"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=1e-9)


# --- noise is noise


@STARTS
def test_noise_on_top_takes_nothing_of_the_content(shared: bool) -> None:
    """The mean over 16 draws lies within three of its own standard errors, at up to 30 x the usual."""
    cohort, group = honest(9, shared), np.array([True] * 9 + [False])
    for energy in (1, 4, 10, 30):
        kept = []
        for seed in range(16):
            noisy = trained(task(0), 500 + seed, shared, USUAL * math.sqrt(energy))
            found = Distances(tabled(cohort | {"noisy": noisy}), DETECTION).kept(group)
            assert found is not None
            kept.append(float(found[-1]))
        assert np.mean(kept) == pytest.approx(1, abs=3 * np.std(kept) / math.sqrt(16) + 0.01)
        assert min(kept) > 1 - DETECTION.limit * DETECTION.content_floor


@STARTS
@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_client_is_benign_and_it_is_remarked(shared: bool, seed: int) -> None:
    noisy = trained(task(0), 600 + seed, shared, USUAL * math.sqrt(10))
    found = judged(honest(9, shared) | {"noisy": noisy})
    said = verdict(found, "noisy")
    assert said.verdict == "benign"
    assert [r.code for r in said.reasons] == ["CLR209"]
    assert said.reasons[0].message.startswith("noisy: the common content")
    assert said.cause is not None
    assert said.cause.error > 2 * DETECTION.noisy
    assert called(found, "benign") == {v.client for v in found.verdicts}


@STARTS
@pytest.mark.parametrize("seed", range(5))
def test_noise_of_thirty_times_the_usual_is_at_most_suspicious_and_for_its_size(
    shared: bool, seed: int
) -> None:
    noisy = trained(task(0), 600 + seed, shared, USUAL * math.sqrt(30))
    found = judged(honest(9, shared) | {"noisy": noisy})
    assert called(found, "contaminated", "minority") == set()
    assert codes(found, "noisy") <= {"CLR202", "CLR209"}


def test_a_doubled_update_is_large_and_not_noisy() -> None:
    """Everything in it is doubled: relative to its content its error is the usual one."""
    for factor in (1.8, 2.0, 10.0):
        found = judged(honest(9) | {"large": trained(task(0), 50).times(factor)})
        assert not any(r.message.startswith("noisy") for r in verdict(found, "large").reasons)


# --- who is convicted, and who is not


HARMED: dict[str, Callable[[int, bool], Client]] = {
    "another task": lambda seed, shared: trained(task(seed), seed, shared),
    "flipped": lambda seed, shared: trained(-task(0), seed, shared),
    "noise alone": lambda seed, shared: trained(0 * task(0), seed, shared, 1.2),
    "alpha x2": lambda seed, shared: trained(task(0), seed, shared).times(2),
    "boost x10": lambda seed, shared: trained(task(0), seed, shared).times(10),
}


@STARTS
@pytest.mark.parametrize("kind", HARMED)
@pytest.mark.parametrize("seed", range(50, 53))
def test_a_lone_client_that_lacks_opposes_or_distorts_is_contaminated(
    kind: str, shared: bool, seed: int
) -> None:
    found = judged(honest(9, shared) | {"x": HARMED[kind](seed, shared)})
    assert called(found, "contaminated") == {"x"}
    assert called(found, "benign") == {f"h-{k:02d}" for k in range(9)}
    assert found.minorities == ()


HONEST: dict[str, Callable[[int, bool], Client]] = {
    "a fifth of the size": lambda seed, shared: trained(task(0), seed, shared).times(0.2),
    "large learning rate": lambda seed, shared: trained(
        task(0), seed, shared, USUAL * math.sqrt(40)
    ),
    "half of the content": lambda seed, shared: trained(0.5 * task(0), seed, shared),
}


@STARTS
@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("seed", range(50, 54))
def test_an_honest_client_of_another_training_convicts_nobody(
    kind: str, shared: bool, seed: int
) -> None:
    found = judged(honest(9, shared) | {"x": HONEST[kind](seed, shared)})
    assert found.identified
    assert called(found, "contaminated", "minority") == set()


def test_a_short_training_is_told_to_be_one() -> None:
    found = judged(honest(9) | {"x": trained(task(0), 50).times(0.2)})
    assert reason(found, "x", "CLR213") == "hardly trained: 20 % of the usual size"


@STARTS
@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("seed", range(77, 80))
def test_another_rank_convicts_nobody(rank: int, shared: bool, seed: int) -> None:
    """Its A is drawn anew, as PEFT does where ranks differ, also where the others' A is one and same."""
    q = rows(seed, rank)
    other = Client((task(0) + own(seed)) @ q.transpose(0, 2, 1) @ q, rank, q)
    found = judged(honest(9, shared) | {"x": other})
    assert called(found, "contaminated", "minority") == set()


# --- groups of a kernel


def blocks(*sizes: int, inside: float = 0.6, across: float = 0.0, seed: int = 0) -> np.ndarray:
    """A kernel of groups: `inside` them, `across` them, and noise of 0.02."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    noise = 0.02 * np.random.default_rng(seed).standard_normal((len(group), len(group)))
    kernel = np.where(group[:, None] == group, inside, across) + (noise + noise.T) / math.sqrt(2)
    np.fill_diagonal(kernel, 1.0)
    return np.asarray(kernel)


@pytest.mark.parametrize("few", [2, 3, 5])
def test_the_clients_that_share_a_rest_are_the_addition(few: int) -> None:
    kernel = blocks(*[1] * 8, few, inside=0.3)
    found = addition(kernel, np.ones(8 + few, bool), 0.02, 0.5)
    assert found is not None
    assert found.members == tuple(range(8, 8 + few))
    assert found.cosine == pytest.approx(0.3, abs=0.03)
    assert found.score > DETECTION.addition


def test_an_addition_does_not_depend_on_the_order_of_clients() -> None:
    kernel, order = blocks(*[1] * 9, 3, inside=0.2), np.random.default_rng(1).permutation(12)
    one = addition(kernel, np.ones(12, bool), 0.02, 0.5)
    other = addition(kernel[np.ix_(order, order)], np.ones(12, bool), 0.02, 0.5)
    assert one is not None
    assert other is not None
    assert {int(order[k]) for k in other.members} == set(one.members)
    assert other.score == pytest.approx(one.score)


@pytest.mark.parametrize("seed", range(10))
def test_independent_rests_are_no_striking_addition(seed: int) -> None:
    found = addition(blocks(*[1] * 12, seed=seed), np.ones(12, bool), 0.02, 0.5)
    assert found is None or found.score < DETECTION.addition or found.cosine < 0.1


def test_an_addition_is_of_fewer_than_it_leaves_and_of_those_that_can_be_judged() -> None:
    kernel = blocks(5, *[1] * 5)
    assert addition(kernel, np.ones(10, bool), 0.02, 0.5) is None
    able = np.array([False] * 3 + [True] * 7)
    found = addition(kernel, able, 0.02, 0.5)
    assert found is not None
    assert found.members == (3, 4)


def test_outsiders_who_are_half_as_alike_speak_against_an_addition() -> None:
    kernel = blocks(*[1] * 7, 2, inside=0.4)
    for near, told in ((0.15, True), (0.25, False)):
        kernel[:3, 7:] = kernel[7:, :3] = near
        assert (addition(kernel, np.ones(9, bool), 0.02, 0.5) is not None) == told


def test_sides_are_the_blocks_largest_first_and_singles_are_none() -> None:
    kernel, everybody = blocks(3, 1, 4, 2), np.ones(10, bool)
    assert sides(kernel, everybody, 0.7) == [(4, 5, 6, 7), (0, 1, 2), (8, 9)]
    some = np.array([True] * 4 + [False] * 6)
    assert sides(kernel, some, 0.7) == [(0, 1, 2)]
    assert sides(kernel, np.zeros(10, bool), 0.7) == []


def test_of_many_names_the_first_are_said_and_the_others_counted() -> None:
    names = [f"c{k}" for k in range(9)]
    assert named(names, [1, 2]) == "c1, c2"
    assert named(names, range(9), 3) == "c0, c1, c2 and 6 more"
