"""Evidence over rounds: weak contamination adds up, one bad round does not, honest clients go free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from clair_cli import history, ledger
from clair_cli.history import HISTORY, after, factor, recorded
from clair_cli.report import Report, failing, from_dict, gated, over_rounds, to_dict
from tests.helpers.reports import COMPLETE, NO_VERDICT, client

NAMES = ("honest", "weak", "once")


def course(scores: list[float]) -> list[float]:
    """The evidence after every round."""
    found, evidence = [], 0.0
    for number, score in enumerate(scores):
        evidence = after(evidence, number, HISTORY, factor(score))
        found.append(evidence)
    return found


def round_of(number: int, same: int = 0, **scores: float | None) -> Report:
    """A round of these scores; the first `same` clients sent what they sent in round 0."""
    clients = tuple(
        client(name, "benign" if score is not None and score < 2 else "suspicious", score)
        for name, score in scores.items()
    )
    files = [
        {"id": n, "files": [{"name": "a", "size": 1, "sha256": f"{number * (k >= same):064x}"}]}
        for k, n in enumerate(scores)
    ]
    return replace(COMPLETE, clients=clients, inputs={"root": "r", "clients": files}, baseline=None)


def evidence(report: Report) -> dict[str, float]:
    assert report.history is not None
    return {s.client: s.evidence for s in report.history.clients}


def convicted(report: Report) -> set[str]:
    assert report.history is not None
    return {s.client for s in report.history.clients if s.convicted}


# --- the arithmetic


def test_a_factor_grows_with_the_score_between_its_bounds() -> None:
    scores = [0.1 * k for k in range(200)]
    factors = [factor(s) for s in scores]
    assert factors == sorted(factors)
    assert (factors[0], factors[-1]) == (HISTORY.least, HISTORY.most)
    assert factor(HISTORY.level) == 1.0
    assert factor(HISTORY.level + HISTORY.doubling) == pytest.approx(2.0)


def test_scores_below_the_limit_convict_after_enough_rounds_and_those_of_little_data_never() -> (
    None
):
    assert next(k for k, e in enumerate(course([2.5] * 50), 1) if e >= HISTORY.limit) <= 6
    assert next(k for k, e in enumerate(course([2.2] * 50), 1) if e >= HISTORY.limit) <= 10
    assert max(course([1.5] * 500)) < 1


def test_one_bad_round_is_forgiven_wherever_it_comes() -> None:
    for place in range(0, 50, 7):
        scores = [0.4] * 50
        scores[place] = 50.0
        assert max(course(scores)) < HISTORY.limit / 10


def test_five_good_rounds_clear_whoever_was_odd_for_years() -> None:
    found = course([9.0] * 200 + [0.3] * 5)
    assert found[199] >= HISTORY.limit > found[-1]


def test_good_rounds_are_no_credit_to_who_turns_late() -> None:
    early, late = course([2.5] * 9), course([0.1] * 300 + [2.5] * 9)
    assert early[-1] >= HISTORY.limit
    assert late[-1] >= HISTORY.limit


@pytest.mark.parametrize("bad", [0.02, 0.3])
def test_of_clients_whose_factors_have_mean_one_no_more_than_alpha_are_convicted(
    bad: float,
) -> None:
    """The hardest honest client that the law allows: a factor of 1 / 2, and now and then a large one."""
    rng, alpha = Random(1), 0.05
    by = replace(HISTORY, alpha=alpha, kept=1e6)
    large = (1 - (1 - bad) * by.least) / bad
    wrong = 0
    for _ in range(4000):
        sum_, hit = 0.0, False
        for number in range(by.year):
            sum_ = after(sum_, number, by, large if rng.random() < bad else by.least)
            hit |= sum_ >= by.limit
        wrong += hit
    assert 0 < wrong <= 4000 * alpha


# --- reports and the file


def test_weak_scores_add_up_in_the_report_and_fail_the_gate(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for number in range(1, 30):
        scores = {"honest": 0.4, "weak": 2.5, "once": 9.0 if number == 3 else 0.2}
        found = recorded(round_of(number, **scores), path)
        if convicted(found):
            break
    assert 4 <= number <= 10
    assert convicted(found) == {"weak"}
    said = {c.client: c for c in found.clients}
    assert said["weak"].verdict == "suspicious", "the round's own verdict stays"
    assert said["weak"].reasons[-1].code == history.CODE
    assert {c.client: c.verdict for c in over_rounds(found)}["weak"] == "contaminated"
    assert [c.client for c in failing(found, "contaminated")] == ["weak"]
    assert gated(found, "contaminated").exit_code == 1
    assert gated(found, "never").exit_code == 0
    assert to_dict(from_dict(to_dict(found))) == to_dict(found)


def test_the_same_report_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "history"
    first = recorded(round_of(1, honest=0.4, weak=2.5, once=0.2), path)
    data = path.read_bytes()
    again = recorded(round_of(1, honest=0.4, weak=2.5, once=0.2), path)
    assert path.read_bytes() == data
    assert evidence(again) == evidence(first)
    assert again.history is not None
    assert not again.history.added


def test_a_round_judged_again_without_a_client_counts_nobody_twice(tmp_path: Path) -> None:
    path = tmp_path / "history"
    first = recorded(round_of(1, honest=0.4, weak=2.5, once=0.2), path)
    again = recorded(round_of(1, honest=0.1, weak=1.0), path)
    assert evidence(again)["weak"] == evidence(first)["weak"]
    late = recorded(round_of(1, honest=0.4, weak=2.5, once=0.2, late=2.5), path)
    assert evidence(late)["weak"] == evidence(first)["weak"]
    assert evidence(late)["late"] == evidence(first)["weak"], "who came late to it is counted"


def test_sending_the_same_files_in_a_new_round_escapes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history"
    scores = {"weak": 2.5, "honest": 0.4, "once": 0.2}
    recorded(round_of(0, **scores), path)
    for number in range(1, 12):
        found = recorded(round_of(number, same=1, **scores), path)
    assert convicted(found) == {"weak"}


def test_a_round_without_a_verdict_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history"
    before = recorded(round_of(1, honest=0.4, weak=2.5), path)
    data = path.read_bytes()
    found = recorded(NO_VERDICT, path)
    assert path.read_bytes() == data
    assert found.history is not None
    assert before.history is not None
    assert found.history.head == before.history.head
    assert gated(found, "contaminated").exit_code == 3


def test_a_broken_upload_neither_accuses_nor_clears(tmp_path: Path) -> None:
    path = tmp_path / "history"
    first = recorded(round_of(1, weak=2.5, honest=0.4, once=0.2), path)
    lost = round_of(2, weak=None, honest=0.4, once=0.2)
    lost = replace(lost, clients=(client("weak", "broken", None), *lost.clients[1:]))
    assert evidence(recorded(lost, path))["weak"] == evidence(first)["weak"]


def test_who_is_broken_stays_broken_though_the_rounds_convict(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for number in range(1, 12):
        recorded(round_of(number, weak=2.5, honest=0.4, once=0.2), path)
    lost = round_of(99, weak=None, honest=0.4, once=0.2)
    lost = replace(lost, clients=(client("weak", "broken", None), *lost.clients[1:]))
    found = recorded(lost, path)
    assert convicted(found) == {"weak"}
    assert over_rounds(found)[0].verdict == "broken"


def test_the_head_in_the_report_is_the_last_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history"
    found = recorded(round_of(1, honest=0.4, weak=2.5), path)
    assert found.history is not None
    assert path.read_text().rstrip().endswith(f'"sha256": "{found.history.head}"}}')
    assert ledger.read(path).head == found.history.head
