"""How rare a score is: counted right, never rarer for a lower score, one thing on screen and in JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_cli.detection.calibration import DETECTION
from clair_cli.rarity import DIGITS, Table, counted, digest, rated, table
from clair_cli.renderers import RENDERERS, text
from clair_cli.renderers.words import as_high
from clair_cli.report import Rarity, Rate
from tests.conftest import Detected
from tests.helpers.reports import COMPLETE, client

SCORES = st.lists(st.floats(0, 100), min_size=1, max_size=60)


def made(even: list[float], uneven: list[float]) -> Table:
    return Table((), digest(DETECTION), counted(even), counted(uneven))


@given(SCORES, SCORES, st.floats(0, 120))
def test_the_count_is_that_of_the_honest_clients_with_at_least_the_score(
    even: list[float], uneven: list[float], score: float
) -> None:
    found = made(even, uneven).rarity(score)
    hits = [sum(round(s, DIGITS) >= round(score, DIGITS) for s in part) for part in (even, uneven)]
    assert [found.even, found.uneven] == [
        Rate(n, len(part)) for n, part in zip(hits, (even, uneven), strict=True)
    ]
    assert (found.as_high, found.of) == (sum(hits), len(even) + len(uneven))
    assert (found.at_most is None) == (found.as_high > 0)


@given(SCORES, SCORES, st.floats(0, 120), st.floats(0, 120))
def test_a_higher_score_is_never_more_common(
    even: list[float], uneven: list[float], one: float, other: float
) -> None:
    low, high = (made(even, uneven).rarity(s) for s in sorted((one, other)))
    assert low.as_high >= high.as_high
    assert low.of == high.of
    assert made(even, uneven).rarity(0).as_high == low.of


def test_beyond_all_is_none_of_all_with_the_bound_of_the_rule_of_three() -> None:
    found = made([0.5] * 200, [2.99] * 100).rarity(3.0)
    assert (found.as_high, found.of, found.at_most) == (0, 300, 0.01)
    assert as_high(found) == "none of 300 honest clients of the benchmark scored as high"


@pytest.mark.parametrize(
    ("hits", "of", "said"),
    [
        (0, 4508, "none of 4508"),
        (5, 4500, "1 in 900"),
        (1, 4508, "1 in 4508"),
        (449, 4508, "1 in 10"),
        (1000, 4508, "22 % of"),
        (4508, 4508, "100 % of"),
    ],
)
def test_a_rate_is_said_in_the_plainest_way(hits: int, of: int, said: str) -> None:
    rare = Rarity(hits, of, None, Rate(0, 1), Rate(0, 1))
    assert as_high(rare) == f"{said} honest clients of the benchmark scored as high"


def test_the_table_of_the_package_rests_on_the_constants_of_the_package() -> None:
    """Fails where a constant has changed: then no verdict says how rare it is. Make it anew, as
    benchmarks/rarity.py says."""
    found = table()
    assert found.constants == digest(DETECTION)
    assert found.made_from
    for part in (found.even, found.uneven):
        assert list(part.scores) == sorted(set(part.scores))
        assert len(part.scores) == len(part.clients)
        assert min(part.clients) >= 1
    whole = sum(found.even.clients) + sum(found.uneven.clients)
    assert whole == sum(made["honest_clients"] for made in found.made_from) > 1000


def test_other_constants_have_no_table() -> None:
    verdicts = (client("a", "benign", 0.5), client("b", "broken", None))
    assert [v.rarity is None for v in rated(verdicts, DETECTION)] == [False, True]
    plain = tuple(replace(v, rarity=None) for v in verdicts)
    assert rated(plain, replace(DETECTION, limit=3.5)) == plain


def test_screen_and_json_say_the_same_of_every_client() -> None:
    data = {c["id"]: c["rarity"] for c in json.loads(RENDERERS["json"](COMPLETE))["clients"]}
    shown = [line for line in text.render(COMPLETE, verbose=1).splitlines() if "  client-" in line]
    assert len(shown) == len(data)
    for line in shown:
        rare = data[line.split()[1]]
        who = None if rare is None else (
            "none of 4508" if rare["as_high"] == 0
            else f"1 in {rare['of'] / rare['as_high']:.0f}" if rare["as_high"] < 450
            else "22 % of"
        )  # fmt: skip
        assert ("honest clients" in line) == (who is not None)
        assert who is None or f"{who} honest clients of the benchmark scored as high" in line


def test_a_real_run_has_the_rate_of_the_table_for_every_client(detected: Detected) -> None:
    clients = json.loads(detected.done.stdout)["clients"]
    assert len(clients) == 8
    for one in clients:
        found = table().rarity(one["score"])
        assert (one["rarity"]["as_high"], one["rarity"]["of"]) == (found.as_high, found.of)
    worst = max(clients, key=lambda c: c["score"])
    said = as_high(table().rarity(worst["score"]))
    assert f"{said}\n" in detected.text.read_text()
