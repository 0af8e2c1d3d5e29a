"""The gate: what fails it, alone and against an earlier report, which may be anybody's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest

from clair_cli.baseline import Earlier, against, read_baseline
from clair_cli.errors import SettingError, UsageError
from clair_cli.renderers import RENDERERS, text
from clair_cli.report import (
    VERDICTS,
    Reason,
    Report,
    VerdictName,
    failing,
    from_dict,
    gated,
    to_dict,
)
from clair_cli.schema import report_schema, violation
from clair_cli.settings import FailOn, Settings, canonical_gate, failing_verdicts
from tests.helpers.reports import CLIENTS, COMPARED, COMPLETE, HOSTILE, NO_VERDICT, SHA, client
from tests.test_report import places, spoiled

WORDS = get_args(FailOn)[:-1]
REASON = Reason("CLR203", "points elsewhere")
EVERY = tuple(client(v, v, None if v == "broken" else 2.5, REASON) for v in VERDICTS)
ALL = replace(COMPLETE, clients=EVERY, refinement=None)


def sets(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Every order of every subset of two and more."""
    return [p for n in range(2, len(words) + 1) for p in itertools.permutations(words, n)]


# --- what a value stands for


@pytest.mark.parametrize("words", sets(WORDS), ids=",".join)
def test_a_set_is_exactly_the_verdicts_that_it_names_in_any_order(words: tuple[str, ...]) -> None:
    for value in (",".join(words), " , ".join(words), ",".join(words) + ","):
        assert {c.client for c in failing(ALL, value)} == set(words)
        assert canonical_gate(value) == ",".join(w for w in WORDS if w in words)


@pytest.mark.parametrize("word", WORDS)
def test_one_word_is_that_and_worse_and_with_a_comma_only_that(word: str) -> None:
    worse = WORDS[WORDS.index(word) :]
    assert tuple(c.client for c in failing(ALL, word)) == failing_verdicts(word) == worse
    assert [c.client for c in failing(ALL, f"{word},")] == [word]
    assert (canonical_gate(word), canonical_gate(f"{word},")) == (word, f"{word},")


@pytest.mark.parametrize(
    "value",
    ["", ",", "bad", "benign", "never,", "never,broken", "broken,,minority", "Broken", None, 1],
    ids=repr,
)
def test_any_other_value_is_refused_by_the_name_of_the_setting(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^fail_on: expected suspicious, .*, got "):
        Settings(fail_on=value)


def test_what_a_report_says_of_its_gate_can_be_given_to_the_gate_and_keeps_to_the_schema() -> None:
    given = [*get_args(FailOn), *(f"{w}," for w in WORDS), *map(",".join, sets(WORDS))]
    for value in given:
        once = gated(ALL, value)
        said = once.settings["fail_on"]
        assert violation(to_dict(once), report_schema()) is None
        assert gated(once, said) == once


@pytest.mark.parametrize(
    ("fail_on", "said"),
    [
        ("contaminated,broken", "FAIL: 1 contaminated, 1 broken"),
        ("suspicious,", "FAIL: 1 suspicious"),
        ("never", "done: 1 contaminated and 1 broken clients; no gate set"),
    ],
)
def test_the_bottom_line_counts_what_the_set_names(fail_on: str, said: str) -> None:
    assert text.verdict_line(gated(ALL, fail_on)) == said
    fine = replace(ALL, clients=EVERY[:1])
    assert text.verdict_line(gated(fine, "minority,broken")) == (
        "PASS: no client of --fail-on minority,broken"
    )


# --- against an earlier report


def pair(was: VerdictName | None, now: VerdictName | None) -> Report:
    """One client, judged before and now; None where it was not there."""
    before, after = (
        tuple(client("c", v, None if v == "broken" else 2.5, REASON) for v in [verdict] if v)
        for verdict in (was, now)
    )
    earlier = Earlier(replace(ALL, clients=before), SHA)
    return against(replace(ALL, clients=after), earlier)


KNOWN = {
    *((v, v) for v in VERDICTS[1:]),
    ("contaminated", "minority"),
    ("contaminated", "suspicious"),
    ("minority", "suspicious"),
}
"""Whoever has seen the first need not be told the second."""


@pytest.mark.parametrize("now", VERDICTS[1:])
@pytest.mark.parametrize("was", [None, *VERDICTS])
def test_a_finding_is_known_only_where_the_same_or_a_worse_one_was(
    was: VerdictName | None, now: VerdictName
) -> None:
    report = pair(was, now)
    assert report.baseline is not None
    (found,) = report.baseline.clients
    assert (found.verdict, found.was) == (now, was)
    assert found.state == ("known" if (was, now) in KNOWN else "new")
    assert gated(report, "suspicious").exit_code == (found.state == "new")
    assert gated(report, now + ",").exit_code == (found.state == "new")


@pytest.mark.parametrize("now", [None, "benign"])
@pytest.mark.parametrize("was", [None, *VERDICTS])
def test_what_has_gone_is_said_and_fails_nothing(
    was: VerdictName | None, now: VerdictName | None
) -> None:
    report = gated(pair(was, now), "suspicious")
    assert report.exit_code == 0
    assert report.baseline is not None
    found = [(c.state, c.was, c.verdict) for c in report.baseline.clients]
    assert found == ([] if was in (None, "benign") else [("gone", was, now)])
    assert ("gone: c (was" in text.render(report)) == bool(found)


def test_against_itself_nothing_is_new_and_every_file_is_the_same() -> None:
    report = gated(against(COMPLETE, Earlier(COMPLETE, SHA)), "suspicious")
    assert COMPLETE.exit_code == 1
    assert report.exit_code == 0
    assert report.baseline is not None
    assert {(c.state, c.unchanged) for c in report.baseline.clients} == {("known", True)}
    assert {c.client for c in report.baseline.clients} == {
        c.client for c in CLIENTS if c.verdict != "benign"
    }
    assert text.verdict_line(report) == (
        "PASS: no new client at or above --fail-on suspicious, and 4 known from the baseline"
    )


def test_one_byte_in_one_file_is_a_change_and_files_that_nobody_read_are_no_proof() -> None:
    inputs = to_dict(COMPLETE)["inputs"]
    inputs["clients"][4]["files"][0]["sha256"] = SHA[::-1]
    inputs["clients"][3]["files"] = []
    found = against(replace(COMPLETE, inputs=inputs), Earlier(COMPLETE, SHA)).baseline
    assert found is not None
    same = {c.client: c.unchanged for c in found.clients}
    assert same == {"client-3": True, "client-4": False, "client-5": False, "client-10": True}


def test_a_client_that_is_included_is_counted_once_whether_known_or_not() -> None:
    report = replace(COMPARED, settings={**COMPARED.settings, "include": ["client-5", "client-4"]})
    again = gated(report, "contaminated,")
    assert again.exit_code == 0
    assert text.verdict_line(again) == (
        "PASS: no new client of --fail-on contaminated, but 2 that --include counts as benign"
    )


def test_without_a_verdict_now_nothing_is_known_or_gone_but_broken_clients() -> None:
    found = against(NO_VERDICT, Earlier(COMPLETE, SHA))
    assert found.baseline is not None
    states = {c.client: c.state for c in found.baseline.clients}
    assert "client-1" not in states
    assert states["client-10"] == "known"
    assert gated(found, "broken").exit_code == 3


def test_a_baseline_without_a_verdict_knows_broken_clients_only_and_says_so() -> None:
    report = gated(against(COMPLETE, Earlier(NO_VERDICT, SHA)), "contaminated")
    assert {c.client for c in failing(report, "contaminated")} == {"client-4", "client-5"}
    assert "1 known, 0 gone; it has no verdict" in text.render(report)


def test_screen_and_json_name_the_same_clients_in_the_same_state() -> None:
    data = json.loads(RENDERERS["json"](COMPARED))
    shown = text.render(COMPARED, verbose=1)
    for state in ("new", "known", "gone"):
        (line,) = [s for s in shown.splitlines() if s.startswith(f"{state}: ")]
        names = {c["id"] for c in data["baseline"]["clients"] if c["state"] == state}
        assert names
        assert {part.split(" ")[0] for part in line.partition(": ")[2].split("), ")} == names


# --- a baseline from anybody


def saved(data: Any, folder: Path) -> Path:
    path = folder / "baseline.json"
    path.write_text(json.dumps(data))
    return path


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = saved(to_dict(COMPLETE), tmp_path)
    assert read_baseline(path).sha256 == sha256(path.read_bytes()).hexdigest()


def test_a_spoiled_baseline_is_refused_or_compared_but_never_crashes(tmp_path: Path) -> None:
    data, refused, compared = to_dict(COMPARED), 0, 0
    for path in [p for p in places(data) if p[0] in ("clients", "inputs", "run", "baseline")]:
        for value in (None, "nan", [], {}, 10**30, ...):
            try:
                earlier = read_baseline(saved(spoiled(data, path, value), tmp_path))
            except UsageError as error:
                refused += str(error).startswith("--baseline")
                continue
            report = gated(against(COMPLETE, earlier), "contaminated")
            compared += len([render(report) for render in RENDERERS.values()])
    assert refused > 30
    assert compared > 30


def test_a_client_that_is_in_it_twice_could_be_two_things_and_is_refused(tmp_path: Path) -> None:
    data = to_dict(COMPLETE)
    data["clients"].append(data["clients"][0])
    with pytest.raises(UsageError, match=r"^--baseline .* 'client-1' is in it 2 times"):
        read_baseline(saved(data, tmp_path))


def test_names_in_a_baseline_steer_no_terminal(tmp_path: Path) -> None:
    name = HOSTILE.removesuffix("\udcff")  # which JSON cannot hold
    data = to_dict(
        replace(COMPLETE, clients=(client(f"{name}1", "contaminated", 4.0, *CLIENTS[3].reasons),))
    )
    data["run"]["started_at"] = name
    shown = text.render(
        gated(against(COMPLETE, read_baseline(saved(data, tmp_path))), "never"), verbose=1
    )
    assert "evil" in shown
    assert not {c for c in shown if not c.isprintable()} - {"\n"}


def test_a_report_with_a_comparison_reads_back_as_it_was() -> None:
    assert from_dict(json.loads(RENDERERS["json"](COMPARED))).baseline == COMPARED.baseline
