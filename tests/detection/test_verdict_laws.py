"""What holds of every verdict of every cohort: limits, margins, stability, and a thin majority.

The benign clients are the six trained ones of sample_adapters, as in test_judge.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.distances import Distances
from clair_cli.detection.verdicts import Judgement
from tests.detection.test_small_cohorts import chosen, jittered
from tests.detection.test_verdicts import (
    ATTACKS,
    BENIGN,
    Clients,
    benign,
    judged,
    noise,
    scaled,
    tabled,
)

__all__ = ["benign"]  # the fixture


def gang(benign: Clients, count: int) -> Clients:
    """Colluders: one evil update, each with a third of noise of its own."""
    evil = noise(benign["client-01"], 5)
    return {f"x{i}": jittered(evil, i, 0.3) for i in range(count)}


def one_bad(attack: str) -> Callable[[Clients], Clients]:
    def make(b: Clients) -> Clients:
        return {c: b[c] for c in BENIGN[1:]} | {"mallory": ATTACKS[attack][0](b)}

    return make


COHORTS: dict[str, Callable[[Clients], Clients]] = {
    "clean": lambda b: b,
    "sign flip": one_bad("sign flip"),
    "boost": one_bad("boost x10"),
    "noise": one_bad("noise of benign norm"),
    "zero": one_bad("zero"),
    "one of seven": lambda b: b | gang(b, 1),
    "5 against 6": lambda b: b | gang(b, 5),
    "four": lambda b: chosen(b, 3) | {"s": scaled(b["client-05"], -1)},
    "four, boost": lambda b: chosen(b, 3) | {"s": scaled(b["client-05"], 2.5)},
    "near": lambda b: (
        {c: b[c] for c in BENIGN[1:]} | {"m": jittered(b["client-01"], 1, 0.9)} | gang(b, 2)
    ),
    "copies": lambda b: b | {"y": b["client-02"], **gang(b, 1), "z": gang(b, 1)["x0"]},
}
CLEAR = ("clean", "sign flip", "boost", "noise", "zero", "one of seven")


@pytest.fixture(scope="module")
def cohorts(benign: Clients) -> dict[str, Judgement]:
    found = {name: judged(make(benign)) for name, make in COHORTS.items()}
    assert all(f.identified for f in found.values())
    return found


def bad(found: Judgement) -> set[str]:
    """Whoever is far, alone or with others."""
    return {v.client for v in found.verdicts if v.verdict in ("contaminated", "minority")}


def test_who_reaches_its_own_limit_is_contaminated_or_of_a_minority_in_every_cohort(
    cohorts: dict[str, Judgement],
) -> None:
    """A minority needs one who reaches the plain limit, and is no verdict that one client overturns."""
    for found in cohorts.values():
        members = {found.verdicts[k].client for group in found.minorities for k in group}
        for v in found.verdicts:
            assert v.score is not None
            assert v.limit in (3.0, 4.5)
            assert (v.verdict == "minority") <= (v.client in members)
            if v.verdict != "minority":
                assert (v.verdict == "contaminated") == (v.score >= v.limit), v
        for group in found.minorities:
            scores = [found.verdicts[k].score or 0.0 for k in group]
            assert max(scores) >= DETECTION.limit
            assert min(scores) >= DETECTION.suspicious
    verdicts = [v for f in cohorts.values() for v in f.verdicts]
    assert {v.verdict for v in verdicts} == {"benign", "suspicious", "minority", "contaminated"}
    assert {v.limit for v in verdicts if v.verdict in ("contaminated", "minority")} == {3.0, 4.5}


def test_whoever_is_not_benign_has_a_reason_and_a_benign_one_none(
    cohorts: dict[str, Judgement],
) -> None:
    verdicts = [v for f in cohorts.values() for v in f.verdicts]
    assert all(bool(v.reasons) == (v.verdict != "benign") for v in verdicts)
    suspicious = [v for v in verdicts if v.verdict == "suspicious"]
    assert len(suspicious) >= 3
    assert all(v.score is not None and v.score >= 2 for v in suspicious)


def test_the_limit_is_wider_where_most_others_could_overturn_the_verdict(
    cohorts: dict[str, Judgement],
) -> None:
    verdicts = [v for f in cohorts.values() for v in f.verdicts]
    wide = [v for v in verdicts if v.limit == 4.5]
    assert len(wide) > 3
    assert all(v.stability is not None and v.stability < 0.5 for v in wide)
    adding = [v for v in verdicts if any(r.code == "CLR211" for r in v.reasons)]
    steady = [v for v in verdicts if v.limit == 3.0 and v not in adding]
    assert all(v.stability is not None and v.stability >= 0.5 for v in steady)


def test_stability_is_one_exactly_where_nobody_is_depended_on(
    cohorts: dict[str, Judgement],
) -> None:
    verdicts = [v for f in cohorts.values() for v in f.verdicts]
    for v in verdicts:
        assert v.stability is not None
        assert 0 <= v.stability <= 1
        assert (v.stability == 1) == (v.depends_on == ())
        assert v.client not in v.depends_on
        assert len(v.depends_on) <= 5
    assert {True, False} == {bool(v.depends_on) for v in verdicts}


@pytest.mark.parametrize("name", CLEAR)
def test_a_clear_verdict_hangs_on_nobody(cohorts: dict[str, Judgement], name: str) -> None:
    found = cohorts[name]
    assert len(bad(found)) == (name != "clean")
    assert [(v.stability, v.depends_on, v.limit) for v in found.verdicts] == [
        (1.0, (), 3.0) for _ in found.verdicts
    ]


def test_the_margin_is_the_gap_between_the_contaminated_and_the_rest(
    cohorts: dict[str, Judgement],
) -> None:
    convicting = [f for f in cohorts.values() if bad(f)]
    assert len(convicting) >= 7
    for found in convicting:
        score = {v.client: v.score or 0.0 for v in found.verdicts}
        least = min(score[c] for c in bad(found))
        largest = max(s for c, s in score.items() if c not in bad(found))
        assert found.margin == pytest.approx(least - largest)
        assert found.margin is not None
        assert found.margin > 0


@pytest.mark.parametrize("name", ["clean", "four, boost"])
def test_without_a_contaminated_client_there_is_no_margin(
    cohorts: dict[str, Judgement], name: str
) -> None:
    assert not bad(cohorts[name])
    assert cohorts[name].margin is None


# --- a thin majority


def test_a_thin_majority_is_told_from_colluders_and_they_are_named_together(
    cohorts: dict[str, Judgement],
) -> None:
    found = cohorts["5 against 6"]
    names = [f"x{i}" for i in range(5)]
    assert {v.client for v in found.verdicts if v.verdict == "minority"} == set(names) == bad(found)
    assert found.consensus.tolist() == [True] * 6 + [False] * 5
    assert found.minorities == ((6, 7, 8, 9, 10),)
    (group,) = [f for f in found.findings if f.code == "CLR212"]
    assert group.message == f"a minority of 5: {', '.join(names)}"
    assert group.value == 5
    assert found.likeness[0] > 2  # in units of two typical members of the majority
    assert "CLR208" not in {f.code for f in found.findings}
    (close,) = [f for f in found.findings if f.code == "CLR303"]
    assert close.message.startswith("5 of 11 distinct clients are outside the consensus")
    assert (close.value, close.limit) == (pytest.approx(5 / 11), 0.5)


def test_one_of_seven_is_no_cluster_and_not_close(cohorts: dict[str, Judgement]) -> None:
    assert bad(cohorts["one of seven"]) == {"x0"}
    (verdict,) = [v for v in cohorts["one of seven"].verdicts if v.client == "x0"]
    assert verdict.verdict == "contaminated"
    assert cohorts["one of seven"].minorities == ()
    codes = {f.code for f in cohorts["one of seven"].findings}
    assert not {"CLR208", "CLR212", "CLR303"} & codes


def test_stability_is_the_share_of_clients_one_can_do_without(
    benign: Clients, cohorts: dict[str, Judgement]
) -> None:
    """6 against 5: less one honest client nobody can tell, less one colluder all stays as it is."""
    for v in cohorts["5 against 6"].verdicts:
        honest = [c for c in BENIGN if c != v.client]
        assert v.stability == pytest.approx(1 - len(honest) / 10)
        assert v.depends_on == tuple(honest[:5])
    whole = COHORTS["5 against 6"](benign)
    for left_out, told in (("client-01", False), ("client-08", False), ("x0", True)):
        again = judged({c: u for c, u in whole.items() if c != left_out})
        assert again.identified == told
        assert bad(again) == ({f"x{i}" for i in range(1, 5)} if told else set())


def test_two_gangs_are_two_minorities(benign: Clients) -> None:
    other = noise(benign["client-02"], 77)
    second = {f"y{i}": jittered(other, 50 + i, 0.3) for i in range(2)}
    found = judged(benign | gang(benign, 2) | second)
    assert bad(found) == {"x0", "x1", "y0", "y1"}
    assert {v.verdict for v in found.verdicts[6:]} == {"minority"}
    groups = [f.message.partition(": ")[2] for f in found.findings if f.code == "CLR212"]
    assert groups == ["x0, x1", "y0, y1"]


def test_a_cohort_of_two_honest_kinds_is_warned_of(benign: Clients) -> None:
    """Half of the clients share a part that the others lack: nobody is convicted, and it is said."""
    halves = {c: jittered(u, 31, 0.7) if i % 2 else u for i, (c, u) in enumerate(benign.items())}
    for clients, said in ((halves, True), (benign, False)):
        found = judged(clients)
        assert not {"contaminated", "minority"} & {v.verdict for v in found.verdicts}
        kinds = [f for f in found.findings if "come in kinds" in f.message]
        assert [f.code for f in kinds] == ["CLR305"] * said


def test_two_honest_clients_of_a_wrong_size_are_no_pair(benign: Clients) -> None:
    """Each is nearer to an honest client than to the other, and many are nearer than usual."""
    kernel = Distances(tabled(benign), DETECTION).kernel
    names, more_than_usual = list(benign), 0
    for i, j in combinations(range(len(names)), 2):
        others = [k for k in range(len(names)) if k not in (i, j)]
        if kernel[i, j] >= min(kernel[i, others].max(), kernel[j, others].max()):
            continue
        more_than_usual += bool(kernel[i, j] > np.median(kernel[i, others]))
        wrong = {names[k]: scaled(benign[names[k]], 6.0) for k in (i, j)}
        found = judged(benign | wrong)
        bad = [v for v in found.verdicts if v.verdict == "contaminated"]
        assert {v.client for v in bad} == wrong.keys()
        assert found.minorities == ()
        assert "CLR208" not in {r.code for v in bad for r in v.reasons}
        assert "CLR208" not in {r.code for r in found.findings}
    assert more_than_usual > 0
