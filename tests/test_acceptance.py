"""Decisions applied to reports: laws that hold for any client, code and day."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_cli import Settings
from clair_cli.acceptance import EXPIRED, UNUSED, accepting
from clair_cli.accepted import Accept
from clair_cli.errors import SettingError, UsageError
from clair_cli.reasons import RULES
from clair_cli.renderers import RENDERERS, REPORTS, explanation, render
from clair_cli.report import Reason, Report, failing, from_dict, gated, is_note, to_dict
from clair_cli.results import explained
from clair_cli.schema import report_schema, violation
from tests.helpers.reports import COMPLETE, HOSTILE, NO_VERDICT, SHA, client

TODAY = date(2027, 3, 1)
CODES = ("CLR201", "CLR203", "CLR204", "CLR210")
TEXT_FORMATS = sorted(set(REPORTS) - {"parquet"})


def cohort(*codes: str, notes: tuple[str, ...] = (), verdict: str = "contaminated") -> Report:
    """One accused client, `x`, with these codes, among benign ones."""
    reasons = tuple(Reason(code, f"says {code}") for code in (*codes, *notes))
    others = tuple(client(f"c{k}", "benign", 0.5) for k in range(4))
    files = [
        {"name": "adapter_config.json", "size": 3, "sha256": "1" * 64},
        {"name": "adapter_model.safetensors", "size": 9, "sha256": SHA},
    ]
    score = None if verdict == "broken" else 5.0
    return replace(
        COMPLETE,
        clients=(client("x", verdict, score, *reasons), *others),
        inputs={"root": "round", "clients": [{"id": "x", "files": files}]},
        refinement=None,
    )


def accept(*codes: str, who: str = "x", **more: Any) -> Accept:
    return Accept(client=who, codes=codes, reason="reviewed", **more)


def code(report: Report, fail_on: str = "suspicious") -> int:
    return gated(report, fail_on).exit_code


def states(report: Report) -> list[str]:
    return [a.state for a in report.acceptance]


@given(st.sets(st.sampled_from(CODES), min_size=1), st.sets(st.sampled_from(CODES), min_size=1))
def test_a_client_is_accepted_exactly_where_all_its_codes_are(
    found: set[str], named: set[str]
) -> None:
    report = accepting(cohort(*sorted(found)), [accept(*sorted(named))], TODAY)
    assert (code(report) == 0) == (found <= named)
    assert states(report) == ["accepted" if found <= named else "unused"]
    assert [c.verdict for c in report.clients] == [c.verdict for c in cohort(*found).clients]
    parts = accepting(cohort(*sorted(found)), [accept(c) for c in sorted(named)], TODAY)
    assert code(parts) == code(report)


def test_notes_need_no_decision_and_alone_nothing_can_be_accepted() -> None:
    noted = cohort("CLR203", notes=("CLR114", "CLR213"))
    assert all(is_note(noted.clients[0], r) for r in noted.clients[0].reasons[1:])
    assert code(accepting(noted, [accept("CLR203")], TODAY)) == 0
    unknown = cohort("CLR203", "CLR299")  # of a newer clair
    assert code(accepting(unknown, [accept("CLR203")], TODAY)) == 1
    bare = accepting(cohort(notes=("CLR114",)), [accept("CLR114")], TODAY)
    assert (code(bare), states(bare)) == (1, ["unused"])


@pytest.mark.parametrize("verdict", ["suspicious", "minority", "contaminated", "broken"])
def test_every_verdict_can_be_accepted_but_its_client_alone(verdict: str) -> None:
    word = "CLR102" if verdict == "broken" else "CLR203"
    report = cohort(word, verdict=verdict)
    other = client("y", "contaminated", 4.0, Reason("CLR203", "too"))
    both = replace(report, clients=(*report.clients, other))
    assert code(accepting(report, [accept(word)], TODAY)) == 0
    assert [c.client for c in failing(accepting(both, [accept(word)], TODAY), "suspicious")] == [
        "y"
    ]
    assert states(accepting(report, [accept(word, who="X")], TODAY)) == ["unused"]


@given(st.integers(-400, 400))
def test_a_decision_counts_up_to_its_day(days: int) -> None:
    until = (TODAY + timedelta(days)).isoformat()
    report = accepting(cohort("CLR203"), [accept("CLR203", until=until)], TODAY)
    assert code(report) == int(days < 0)
    codes = [r.code for r in report.population.findings]
    assert codes.count(EXPIRED) == int(days < 0)
    assert states(report) == ["expired" if days < 0 else "accepted"]


@pytest.mark.parametrize(
    ("hashes", "accepted"),
    [
        ((), True),
        ((SHA,), True),
        ((SHA, "1" * 64), True),
        (("1" * 64,), False),
        ((SHA, "2" * 64), False),
        (("2" * 64,), False),
    ],
)
def test_a_hash_is_of_every_file_but_configs(hashes: tuple[str, ...], accepted: bool) -> None:
    report = accepting(cohort("CLR203"), [accept("CLR203", sha256=hashes)], TODAY)
    assert (code(report) == 0) == accepted
    silent = replace(cohort("CLR203"), inputs={"root": "round", "clients": []})
    assert (code(accepting(silent, [accept("CLR203", sha256=hashes)], TODAY)) == 0) == (not hashes)


def test_decisions_take_the_place_of_older_ones_and_remarks_do_not_pile_up() -> None:
    report = cohort("CLR203")
    gone = [accept("CLR203", who="nobody"), accept("CLR203", until="2020-01-01")]
    once = accepting(report, gone, TODAY)
    assert [r.code for r in once.population.findings][:2] == [UNUSED, EXPIRED]
    assert accepting(once, once.acceptance, TODAY) == once
    assert accepting(once, (), TODAY) == replace(report, acceptance=())
    assert accepting(report, (), TODAY) is report


def test_without_a_verdict_a_decision_changes_neither_code_nor_the_last_remark() -> None:
    who = NO_VERDICT.clients[0].client
    report = gated(accepting(NO_VERDICT, [accept("CLR203", who=who)], TODAY), "contaminated")
    assert report.exit_code == 3
    assert report.population.findings[-1] == NO_VERDICT.population.findings[-1]
    assert states(report) == ["unused"]


def test_a_report_with_decisions_is_valid_and_read_back_the_same() -> None:
    entries = [accept("CLR203", until="2027-12-31", sha256=(SHA,)), accept("CLR203", who="no")]
    report = gated(accepting(cohort("CLR203"), entries, TODAY), "contaminated")
    data = json.loads(RENDERERS["json"](report))
    assert violation(data, report_schema()) is None
    again = from_dict(data)
    assert again.acceptance == report.acceptance
    assert to_dict(again) == to_dict(report)
    for name in TEXT_FORMATS:
        assert render(again, name) == render(report, name), name
    data["acceptance"][0]["until"] = "2027-02-31"
    with pytest.raises(UsageError, match="until"):
        from_dict(data)


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_every_format_says_who_is_accepted_and_why_and_a_hostile_reason_steers_nothing(
    name: str,
) -> None:
    reason = f"reviewed {HOSTILE}"[:400].replace("\udcff", "")
    entry = Accept(client="x", codes=("CLR203",), reason=reason)
    report = gated(accepting(cohort("CLR203"), [entry], TODAY), "contaminated")
    document = render(report, name)
    assert isinstance(document, str)
    assert "\x1b" not in document
    assert "\u202e" not in document
    if name == "gitlab":
        assert json.loads(document)[0]["severity"] == "info"
    else:
        assert "reviewed" in document
    if name == "github":
        assert document.startswith("::notice ")
    if name == "sarif":
        (result,) = json.loads(document)["runs"][0]["results"]
        (said,) = result["suppressions"]
        assert (said["kind"], said["status"]) == ("external", "accepted")
        plain = json.loads(str(render(cohort("CLR203"), "sarif")))
        assert "suppressions" not in plain["runs"][0]["results"][0]


def test_the_screen_and_the_explanation_say_accepted() -> None:
    report = gated(accepting(cohort("CLR203"), [accept("CLR203")], TODAY), "contaminated")
    shown = str(render(report, "text"))
    assert "  accepted   x " in shown
    assert "1 contaminated, 0 broken; 1 of them accepted." in shown
    assert shown.rstrip().endswith("--fail-on contaminated but 1 accepted")
    assert "accepted: reviewed" in explanation.as_text(explained(report))


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": ""},
        {"codes": ()},
        {"codes": ("CLR203", "CLR000")},
        {"reason": "  "},
        {"reason": "x" * 501},
        {"until": "2027-3-1"},
        {"until": "2027-02-29"},
        {"until": "20270301"},
        {"sha256": ("A" * 64,)},
        {"sha256": ("1" * 63,)},
    ],
    ids=str,
)
def test_an_entry_that_says_nothing_clear_is_refused(wrong: dict[str, Any]) -> None:
    fine: dict[str, Any] = {"client": "x", "codes": ("CLR203",), "reason": "y"}
    assert Settings(accept=(Accept(**fine),)).accept
    with pytest.raises(SettingError, match=f"accept: {next(iter(wrong))}: expected"):
        Accept(**(fine | wrong))
    assert {EXPIRED, UNUSED} <= RULES.keys()
