"""Evidence adds up, accomplices count, wide norms are honest, and the words say where.

The benign clients are the six trained ones of sample_adapters, as in test_judge.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.distances import Distances, Evidence
from clair_cli.detection.verdicts import Judgement
from clair_cli.report import Verdict
from clair_cli.update import LowRankUpdate
from tests.detection.test_small_cohorts import jittered
from tests.detection.test_verdicts import (
    BENIGN,
    Client,
    Clients,
    benign,
    judged,
    noise,
    scaled,
    tabled,
)

__all__ = ["benign"]  # the fixture

NUMBERS = DETECTION
JUDGED = "12 modules that can be judged (2 of 14 cannot)"
MODULES = 14


def without(benign: Clients, client: str) -> Clients:
    return {c: u for c, u in benign.items() if c != client}


def last(found: Judgement) -> Verdict:
    return found.verdicts[-1]


def split_evidence(clients: Clients, group: np.ndarray) -> tuple[list[Evidence], Evidence]:
    """The single distances, and the one they make together."""
    decisive = Distances(tabled(clients), NUMBERS).decisive(group)
    (joint,) = [e for e in decisive if e.parts]
    return [e for e in decisive if not e.parts], joint


# --- together


@pytest.mark.parametrize(
    ("client", "seed"), [("client-01", 1), ("client-04", 2), ("client-05", 1), ("client-07", 2)]
)
def test_evidence_adds_up_to_what_no_single_distance_says(
    benign: Clients, client: str, seed: int
) -> None:
    """Its own update and as much noise again: 0.7 of the cosine, of the agreement, 1.4 of the norm."""
    clients = without(benign, client) | {"mallory": jittered(benign[client], seed, 1.1)}
    found = judged(clients)
    single, joint = split_evidence(clients, found.consensus)
    assert {e.code for e in single} == {"CLR201", "CLR202", "CLR203", "CLR204"}
    assert max(float(e.scores[-1]) for e in single) < 0.9 * NUMBERS.limit
    assert last(found).verdict == "contaminated"
    assert last(found).score == pytest.approx(joint.scores[-1])
    assert joint.scores[-1] >= NUMBERS.limit > max(joint.scores[:-1])


@pytest.mark.parametrize("size", [0.3, 0.8, 1.5, 3.0])
def test_joint_evidence_without_accomplices_is_the_normed_sum_of_its_parts(
    benign: Clients, size: float
) -> None:
    clients = without(benign, "client-02") | {"m": jittered(benign["client-02"], 1, size)}
    _, joint = split_evidence(clients, np.array([True] * 5 + [False]))
    total = np.sum([p.scores for p in joint.parts], axis=0)
    assert len(joint.parts) == 3
    assert joint.scores == pytest.approx(total / np.sqrt(3))
    loudest = max(joint.parts, key=lambda p: p.scores[-1])
    assert joint.code_of(5) == loudest.code


# --- accomplices


def added(client: Client, extra: Client) -> Client:
    return {
        m: LowRankUpdate(
            torch.cat([u.up, extra[m].up], dim=1),
            torch.cat([u.down * u.scale, extra[m].down * extra[m].scale]),
        )
        for m, u in client.items()
    }


def suspects(benign: Clients, seeds: list[int], size: float) -> Clients:
    """One for each seed: an honest update and noise of that seed, all of one size."""
    hosts = [benign[BENIGN[2 * i % 6]] for i in range(len(seeds))]
    one = benign[BENIGN[0]]
    return {
        f"x{i}": added(host, noise(one, seed, size))
        for i, (host, seed) in enumerate(zip(hosts, seeds, strict=True))
    }


@pytest.mark.parametrize("size", [1.3, 1.5])
@pytest.mark.parametrize("count", [2, 3])
def test_suspects_that_deviate_alike_score_higher_against_the_same_consensus(
    benign: Clients, count: int, size: float
) -> None:
    group = np.array([True] * 6 + [False] * count)
    alike, apart = (suspects(benign, seeds, size) for seeds in ([5] * count, [5, 6, 7][:count]))
    single, joint = split_evidence(benign | alike, group)
    single_apart, joint_apart = split_evidence(benign | apart, group)
    for mine, theirs in zip(single, single_apart, strict=True):  # alone they say the same
        assert mine.scores[6:] == pytest.approx(theirs.scores[6:], abs=0.35)
    assert (joint.scores[6:] > joint_apart.scores[6:] + 0.25).all()
    assert all(
        "differs in the same way as other suspects" in joint.words(k) for k in range(6, 6 + count)
    )
    assert not any("other suspects" in joint_apart.words(k) for k in range(6 + count))


@pytest.mark.parametrize("count", [2, 3])
def test_accomplices_are_convicted_with_a_higher_score(benign: Clients, count: int) -> None:
    alike = judged(benign | suspects(benign, [5] * count, 1.6)).verdicts
    apart = judged(benign | suspects(benign, [5, 6, 7][:count], 1.6)).verdicts
    assert {v.verdict for v in (*alike[6:], *apart[6:])} == {"contaminated"}
    assert {v.verdict for v in (*alike[:6], *apart[:6])} == {"benign"}
    for mine, theirs in zip(alike[6:], apart[6:], strict=True):
        assert (mine.score or 0) > (theirs.score or 0) + 0.25


def test_accomplices_score_higher_at_the_edge_too(benign: Clients) -> None:
    alike = judged(benign | suspects(benign, [5] * 3, 1.3)).verdicts[6:]
    apart = judged(benign | suspects(benign, [5, 6, 7], 1.3)).verdicts[6:]
    assert all((a.score or 0) > (b.score or 0) for a, b in zip(alike, apart, strict=True))


def test_honest_clients_are_nobodys_accomplices(benign: Clients) -> None:
    single, joint = split_evidence(benign, np.ones(6, bool))
    assert len(single) == 5
    assert joint.scores.max() < 1
    assert not any("other suspects" in joint.words(k) for k in range(6))


# --- norms


def of_sizes(benign: Clients, seed: int) -> Clients:
    factors = np.random.default_rng(seed).uniform(0.3, 1.3, len(benign))
    return {c: scaled(u, float(f)) for (c, u), f in zip(benign.items(), factors, strict=True)}


@pytest.mark.parametrize("seed", range(5))
def test_wide_honest_norms_convict_nobody(benign: Clients, seed: int) -> None:
    found = judged(of_sizes(benign, seed))
    assert found.identified
    assert {v.verdict for v in found.verdicts} == {"benign"}
    assert found.margin is None


@pytest.mark.parametrize(
    "sizes", [(0.3, 0.32, 0.34, 1.1, 1.2, 1.3), (0.3, 0.3, 0.35, 0.7, 0.9, 1.2)], ids=str
)
def test_honest_norms_of_two_kinds_do_not_split_the_cohort(
    benign: Clients, sizes: tuple[float, ...]
) -> None:
    """A consensus that starts with one kind measures norms by everybody's spread."""
    found = judged({c: scaled(u, f) for (c, u), f in zip(benign.items(), sizes, strict=True)})
    assert found.identified
    assert {v.verdict for v in found.verdicts} == {"benign"}
    assert found.consensus.all()


@pytest.mark.xfail(
    strict=True, reason="by chance all but one or two are near 0.55: 1.25 is then 2.2x the usual"
)
@pytest.mark.parametrize("seed", [12, 51])
def test_wide_honest_norms_convict_nobody_in_an_unlucky_draw_either(
    benign: Clients, seed: int
) -> None:
    assert "contaminated" not in {v.verdict for v in judged(of_sizes(benign, seed)).verdicts}


def test_the_same_norm_stands_out_among_equals_and_not_in_a_wide_cohort(benign: Clients) -> None:
    """2.5 times the median: contaminated among equal norms, not where the others differ threefold."""
    wide = dict(zip(BENIGN, (0.4, 0.6, 0.8, 1.0, 1.2, 2.25), strict=True))
    tight = dict(zip(BENIGN, (1.0, 1.0, 1.0, 1.0, 1.0, 2.5), strict=True))
    found = {
        name: judged({c: scaled(benign[c], f) for c, f in sizes.items()}).verdicts[-1]
        for name, sizes in (("wide", wide), ("tight", tight))
    }
    assert found["tight"].verdict == "contaminated"
    assert found["tight"].reasons[0].code == "CLR202"
    assert found["wide"].verdict != "contaminated"


# --- where


def reason(verdict: Verdict, code: str) -> str:
    """The one sentence of this code."""
    (message,) = {r.message for r in verdict.reasons if r.code == code}
    return message


@pytest.mark.parametrize("client", ["client-01", "client-07"])
@pytest.mark.parametrize("modules", [slice(0, 10), slice(3, 14)], ids=["first 10", "last 11"])
def test_a_flip_of_most_modules_says_in_how_many(
    benign: Clients, client: str, modules: slice
) -> None:
    count = len(range(MODULES)[modules])
    flipped = {"mallory": scaled(benign[client], -1, modules)}
    verdict = last(judged(without(benign, client) | flipped))
    assert verdict.verdict == "contaminated"
    said = reason(verdict, "CLR203")
    assert said.startswith(f"points against the others in {count} of 14 modules, worst in")
    assert said.rpartition(" ")[2] in sorted(benign[client])[modules]


def test_a_whole_flip_says_all(benign: Clients) -> None:
    flipped = {"mallory": scaled(benign["client-01"], -1)}
    verdict = last(judged(without(benign, "client-01") | flipped))
    assert reason(verdict, "CLR203") == "points against the others in all 14 modules"


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        pytest.param(
            slice(0, 4),
            f"4 of {JUDGED}, worst in",
            id="a quarter",
        ),
        pytest.param(slice(0, 7), "only layer 0", id="a layer, which is half"),
        pytest.param(
            slice(0, None, 2),
            f"5 of {JUDGED}, worst in",
            id="every second",
        ),
    ],
)
def test_a_flip_of_some_modules_says_in_how_many(
    benign: Clients, modules: slice, words: str
) -> None:
    """Of those in which honest clients agree: 12 of 14 here."""
    flipped = {"mallory": scaled(benign["client-01"], -1, modules)}
    verdict = last(judged(without(benign, "client-01") | flipped))
    assert verdict.verdict == "contaminated"
    said = reason(verdict, "CLR204")
    assert said.startswith(f"odd in {words}")
    if "worst" in said:
        assert said.rpartition(" ")[2] in sorted(benign["client-01"])[modules]


@pytest.mark.parametrize("layer", [0, 1])
def test_noise_in_a_whole_layer_names_the_layer(benign: Clients, layer: int) -> None:
    own, random = benign["client-01"], noise(benign["client-01"], 7)
    poisoned = {m: random[m] if f".layers.{layer}." in m else u for m, u in own.items()}
    verdict = last(judged(without(benign, "client-01") | {"mallory": poisoned}))
    assert verdict.verdict == "contaminated"
    assert reason(verdict, "CLR204") == f"odd in only layer {layer}"
