"""Evidence adds up, accomplices count, wide norms are honest, and the words say where.

The benign clients are the six trained ones of sample_adapters, as in test_judge.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.distances import Distances
from clair_cli.detection.evidence import Evidence
from clair_cli.detection.scales import robust_scale
from clair_cli.detection.verdicts import Judgement
from clair_cli.report import Verdict
from clair_cli.update import LowRankUpdate
from tests.detection.reference import lower_scale
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
from tests.helpers.builders import orthonormal

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


def bounds(clients: Clients, group: np.ndarray) -> np.ndarray:
    """What is lacking of the common content, (K,), in units of the widest honest spread of it; no bound
    for who has next to nothing of it."""
    distances = Distances(tabled(clients), NUMBERS)
    kept = distances.kept(group)
    assert kept is not None
    floor = NUMBERS.content_floor * (1 + (NUMBERS.few_members / group.sum()) ** 2)
    tail = lower_scale(kept[group | distances.stragglers(group)])
    unit = max(robust_scale(kept[group]), floor, tail)
    lack = ((1 - kept) / unit).clip(0, NUMBERS.score_cap)
    return np.where(kept < NUMBERS.nothing, np.inf, lack)


@pytest.mark.parametrize(
    ("client", "seed"), [("client-01", 1), ("client-04", 2), ("client-05", 1), ("client-07", 2)]
)
def test_noise_on_top_adds_up_to_nothing_where_the_content_is_all_there(
    benign: Clients, client: str, seed: int
) -> None:
    """Its own update and as much noise again: 0.7 of the cosine, of the agreement, 1.4 of the norm."""
    clients = without(benign, client) | {"mallory": jittered(benign[client], seed, 1.1)}
    found = judged(clients)
    single, joint = split_evidence(clients, found.consensus)
    assert {e.code for e in single} == {"CLR201", "CLR202", "CLR203", "CLR204", "CLR214"}
    assert max(float(e.scores[-1]) for e in [*single, joint]) < NUMBERS.suspicious
    assert {v.verdict for v in found.verdicts[:-1]} == {"benign"}
    assert last(found).verdict in ("benign", "suspicious")


def turned(clients: Clients) -> Clients:
    """Every client's A in rows of its own: only the outputs are left to agree in."""
    found: Clients = {}
    for k, (name, client) in enumerate(clients.items()):
        draw, found[name] = torch.Generator().manual_seed(5 + k), {}
        for m, u in client.items():
            q = orthonormal(u.down.shape[1], u.down.shape[1], draw)
            found[name][m] = LowRankUpdate(u.up.double(), u.down.double() @ q, u.scale)
    return found


@pytest.mark.parametrize("client", ["client-01", "client-04", "client-05", "client-07"])
def test_evidence_adds_up_to_what_no_single_distance_says_where_content_is_unknown(
    benign: Clients, client: str
) -> None:
    clients = turned(without(benign, client) | {"mallory": jittered(benign[client], 1, 1.25)})
    found = judged(clients)
    single, joint = split_evidence(clients, found.consensus)
    assert {e.code for e in single} == {"CLR201", "CLR202", "CLR204"}
    assert max(float(e.scores[-1]) for e in single) < NUMBERS.limit
    assert last(found).verdict == "contaminated"
    assert last(found).score == pytest.approx(joint.scores[-1])
    assert joint.scores[-1] >= NUMBERS.limit > max(joint.scores[:-1])


@pytest.mark.parametrize("size", [0.3, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_joint_evidence_is_the_normed_sum_of_its_parts_up_to_what_is_lacking(
    benign: Clients, size: float, share: float
) -> None:
    """No more than the content that a client lacks, or than its size says by itself."""
    own = added(scaled(benign["client-02"], share), noise(benign["client-02"], 1, size))
    clients, group = without(benign, "client-02") | {"m": own}, np.array([True] * 5 + [False])
    _, joint = split_evidence(clients, group)
    total = np.sum([p.scores for p in joint.parts], axis=0)
    size_alone = next(p.scores for p in joint.parts if p.code == "CLR202")
    lack = bounds(clients, group)
    assert len(joint.parts) == 3
    wanted = np.minimum(total / np.sqrt(3), np.maximum(lack, size_alone))
    assert joint.scores == pytest.approx(wanted, abs=1e-6)
    for part in joint.parts:
        assert part.code == "CLR202" or (part.scores <= lack + 1e-9).all()
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


def suspects(benign: Clients, seeds: list[int], share: float, size: float) -> Clients:
    """For each seed a share of an honest update, each of another client, and noise of that seed."""
    hosts, one = [benign[BENIGN[i]] for i in range(len(seeds))], benign[BENIGN[0]]
    return {
        f"x{i}": added(scaled(host, share), noise(one, seed, size))
        for i, (host, seed) in enumerate(zip(hosts, seeds, strict=True))
    }


def others(benign: Clients, count: int) -> Clients:
    """The honest clients that are no suspect's host."""
    return {c: benign[c] for c in BENIGN[count:]}


@pytest.mark.parametrize("share", [0.1, 0.15])
def test_suspects_that_deviate_alike_are_told_so(benign: Clients, share: float) -> None:
    group = np.array([True] * 6 + [False] * 2)
    alike, apart = (
        split_evidence(benign | suspects(benign, seeds, share, 1.0), group)
        for seeds in ([5, 5], [5, 6])
    )
    for mine, theirs in zip(alike[0], apart[0], strict=True):  # alone they say the same
        assert mine.scores[6:] == pytest.approx(theirs.scores[6:], abs=0.35)
    same = "differs in the same way as other suspects"
    assert all(same in alike[1].words(k) for k in (6, 7))
    assert not any("other suspects" in apart[1].words(k) for k in range(8))


@pytest.mark.parametrize("seed", [5, 15, 25])
def test_accomplices_are_a_minority_and_strangers_are_contaminated(
    benign: Clients, seed: int
) -> None:
    honest = others(benign, 2)
    alike = judged(honest | suspects(benign, [seed, seed], 0.1, 1.0))
    apart = judged(honest | suspects(benign, [seed, seed + 1], 0.1, 1.0))
    assert [v.verdict for v in alike.verdicts] == ["benign"] * 4 + ["minority"] * 2
    assert [v.verdict for v in apart.verdicts] == ["benign"] * 4 + ["contaminated"] * 2
    assert alike.minorities == ((4, 5),)
    assert apart.minorities == ()


PASSES_FOR_CONTENT = pytest.mark.xfail(
    reason="of six clients, what two add and share in the common content's size passes for content"
)


@pytest.mark.parametrize("size", [pytest.param(1.0, marks=PASSES_FOR_CONTENT), 1.3, 1.6])
def test_who_adds_the_same_on_top_is_contaminated_and_who_adds_noise_is_not(
    benign: Clients, size: float
) -> None:
    honest = others(benign, 2)
    alike = judged(honest | suspects(benign, [5, 5], 1.0, size))
    apart = judged(honest | suspects(benign, [5, 6], 1.0, size))
    assert {v.verdict for v in alike.verdicts[:4]} == {"benign"}
    assert not {"contaminated", "minority"} & {v.verdict for v in apart.verdicts}
    for mine, name in zip(alike.verdicts[4:], ("x1", "x0"), strict=True):
        assert mine.verdict == "contaminated"
        said = reason(mine, "CLR211")
        assert said == f"adds to what all share something that only {name} add, too"


def test_honest_clients_are_nobodys_accomplices(benign: Clients) -> None:
    single, joint = split_evidence(benign, np.ones(6, bool))
    assert len({e.code for e in single}) == 5
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
    found = {v.verdict for v in judged(of_sizes(benign, seed)).verdicts}
    assert not {"contaminated", "minority"} & found


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
    """Of those in which honest clients agree: 12 of 14 here. client-02 has the common content in all."""
    flipped = {"mallory": scaled(benign["client-02"], -1, modules)}
    verdict = last(judged(without(benign, "client-02") | flipped))
    assert verdict.verdict == "contaminated"
    said = reason(verdict, "CLR204")
    assert said.startswith(f"odd in {words}")
    if "worst" in said:
        assert said.rpartition(" ")[2] in sorted(benign["client-02"])[modules]


@pytest.mark.parametrize("client", ["client-04", "client-05"])
@pytest.mark.parametrize("layer", [0, 1])
def test_noise_in_a_whole_layer_names_the_layer(benign: Clients, layer: int, client: str) -> None:
    own, random = benign[client], noise(benign[client], 7)
    poisoned = {m: random[m] if f".layers.{layer}." in m else u for m, u in own.items()}
    verdict = last(judged(without(benign, client) | {"mallory": poisoned}))
    assert verdict.verdict == "contaminated"
    assert reason(verdict, "CLR204") == f"odd in only layer {layer}"
