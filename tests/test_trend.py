"""Rounds side by side: who turned, came and went, and nothing in a report that steers a reader."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO

import pytest

from clair_cli.errors import UsageError
from clair_cli.renderers import TRENDS, render_trend
from clair_cli.report import History, Report, Standing
from clair_cli.trend import over
from tests.helpers.reports import COMPLETE, HOSTILE, NO_VERDICT, SHA, client


def round_of(**said: tuple[str, float]) -> Report:
    clients = tuple(client(n, verdict, score) for n, (verdict, score) in said.items())
    return replace(COMPLETE, clients=clients, baseline=None, refinement=None)


ROUNDS = (
    round_of(a=("benign", 0.4), b=("contaminated", 7.0), c=("benign", 0.1)),
    round_of(a=("suspicious", 2.1), b=("benign", 0.6), c=("benign", 0.2)),
    NO_VERDICT,
    round_of(a=("contaminated", 4.0), b=("benign", 0.9), d=("benign", 0.2)),
)


def test_who_turned_and_turned_back() -> None:
    found = over(ROUNDS)
    turned = [(t.client, t.round, t.was, t.now) for t in found.turned]
    assert turned == [("b", 2, "contaminated", "benign"), ("a", 4, "suspicious", "contaminated")]


def test_who_came_and_went() -> None:
    first, *_, last = over((ROUNDS[0], ROUNDS[1], ROUNDS[3])).rounds
    assert (first.came, first.went) == ((), ())
    assert (last.came, last.went) == (("d",), ("c",))


def test_an_arrow_is_a_score_that_moved_by_half_a_point_since_it_was_last_seen() -> None:
    cells = {c.client: c.cells for c in over(ROUNDS).clients}
    assert [c and c.arrow for c in cells["a"]] == [None, "up", None, "up"]
    assert [c and c.arrow for c in cells["b"]] == [None, "down", None, "level"]
    assert cells["d"][:3] == (None, None, None)


def test_the_order_is_that_in_which_the_reports_were_given() -> None:
    found = over(ROUNDS[::-1])
    assert [t.client for t in found.turned] == ["a", "b"]
    assert [r.position for r in found.rounds] == [1, 2, 3, 4]
    assert "in the order given" in render_trend(found, ROUNDS[::-1], "text")


def test_a_client_twice_in_a_report_is_refused() -> None:
    twice = replace(ROUNDS[0], clients=ROUNDS[0].clients * 2)
    with pytest.raises(UsageError, match="report 2: the client 'a' is in it 2 times"):
        over((ROUNDS[0], twice))


def test_whom_the_ledger_convicts_stands_out_though_benign() -> None:
    standing = Standing("c", 9, 1.0, 200.0, True)
    history = History(SHA, 9, True, 0, 100.0, {"alpha": 0.01, "year": 50}, (standing,))
    reports = (ROUNDS[0], replace(ROUNDS[1], history=history))
    text = render_trend(over(reports), reports, "text")
    assert "!0.2" in next(line for line in text.splitlines() if line.split()[:1] == ["c"])


def test_csv_has_a_row_for_every_client_and_round_it_was_in() -> None:
    rows = list(csv.DictReader(StringIO(render_trend(over(ROUNDS), ROUNDS, "csv"), newline="")))
    present = sum(len(r.clients) for r in ROUNDS)
    assert len(rows) == present
    assert {(r["round"], r["verdict"]) for r in rows if r["id"] == "a"} == {
        *(("1", "benign"), ("2", "suspicious"), ("4", "contaminated")),
    }


def test_json_has_a_cell_for_every_client_and_round() -> None:
    data = json.loads(render_trend(over(ROUNDS), ROUNDS, "json"))
    assert [len(c["cells"]) for c in data["clients"]] == [4] * len(data["clients"])
    assert [t["id"] for t in data["turned"]] == ["b", "a"]


def test_a_narrow_terminal_shows_the_last_rounds_and_says_so() -> None:
    reports = (*ROUNDS, *ROUNDS, *ROUNDS)
    text = render_trend(over(reports), reports, "text", width=40)
    table = text.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 40
    assert table.splitlines()[0].split()[-1] == "12"
    assert "are not shown" in text


@pytest.mark.parametrize("format", sorted(TRENDS))
def test_nothing_hostile_gets_through(format: str) -> None:
    names = (HOSTILE, "<script>alert(1)</script>", "=cmd()")
    clients = tuple(client(n, "contaminated", 5.0) for n in names)
    inputs = {**COMPLETE.inputs, "root": HOSTILE + "<b>"}
    bad = replace(ROUNDS[0], clients=clients, inputs=inputs)
    said = render_trend(over((ROUNDS[0], bad)), (ROUNDS[0], bad), format)
    assert not {*"\x1b\x9b\x7f\u202e"} & {*said}
    if format == "html":
        assert "<script>" not in said
        assert "default-src &#39;none&#39;" in said
    if format == "csv":
        assert "'=cmd()" in said
