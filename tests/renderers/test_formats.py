"""Every format of a report is what its readers ask for, whatever the names in it are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clair_cli.cli.delivery import Delivery
from clair_cli.errors import UsageError
from clair_cli.reasons import RULES
from clair_cli.renderers import BINARY, REPORTS, ReportFormat, markdown, render, sarif
from clair_cli.renderers.findings import findings
from clair_cli.renderers.safe import inert, one_line, safe_text
from clair_cli.renderers.words import as_high
from clair_cli.report import Rarity, Rate, Reason, Report, Verdict, from_dict, gated, to_dict
from clair_cli.rows import COLUMNS, identity
from tests.helpers import outputs
from tests.helpers.reports import CLIENTS, COMPLETE, HOSTILE, NO_VERDICT, client, hostile

REPORTS_MADE = {"complete": COMPLETE, "no verdict": NO_VERDICT, "hostile": hostile()}
NOBODY = gated(replace(NO_VERDICT, clients=(), inputs={"root": ".", "clients": []}), "contaminated")
REPORTS_MADE["nobody"] = NOBODY
EACH = pytest.mark.parametrize("report", REPORTS_MADE.values(), ids=REPORTS_MADE)


def text(report: Report, name: ReportFormat) -> str:
    found = render(report, name)
    assert isinstance(found, str)
    return found


def odd(report: Report) -> list[Verdict]:
    return [c for c in report.clients if c.verdict not in ("benign", None)]


def test_every_format_has_a_renderer_and_only_binary_ones_give_bytes() -> None:
    assert set(REPORTS) == set(get_args(ReportFormat))
    assert len(REPORTS) >= 10
    assert {n for n in REPORTS if isinstance(render(COMPLETE, n), bytes)} == BINARY
    with pytest.raises(UsageError, match="expected text"):
        render(COMPLETE, "pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(REPORTS) - BINARY))
@EACH
def test_no_format_has_anything_in_it_that_steers_a_terminal(name: Any, report: Report) -> None:
    shown = text(report, name)
    assert not shown or shown.endswith("\n")
    assert not {c for c in shown.replace("\r\n", "\n") if ord(c) < 0x20} - {"\n"}
    assert not {"\x7f", "\x9b", "\u202e", "\udcff"} & set(shown)


# --- SARIF


@EACH
def test_sarif_has_one_result_per_odd_client_and_code(report: Report) -> None:
    run = outputs.sarif(text(report, "sarif"))
    pairs = {(c.client, r.code) for c in odd(report) for r in c.reasons}
    extra = 1 if report.status == "no_verdict" else 0
    assert len(run["results"]) == len(pairs) + extra
    (invocation,) = run["invocations"]
    assert invocation["exitCode"] == report.exit_code
    assert invocation["executionSuccessful"] == (report.status == "complete")
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {
        r["ruleId"] for r in run["results"]
    }


def test_what_changes_no_verdict_is_a_notification_and_no_result() -> None:
    run = outputs.sarif(text(COMPLETE, "sarif"))
    told = [n["message"]["text"] for n in run["invocations"][0]["toolExecutionNotifications"]]
    assert told == [
        "benign clients differ widely from each other",
        "client-6: a.bin: a pickle file beside, not opened",
    ]
    assert not any("client-6" in r["message"]["text"] for r in run["results"])


def test_a_run_without_a_verdict_does_not_look_like_one_without_findings() -> None:
    run = outputs.sarif(text(NOBODY, "sarif"))
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("CLR301", "error")
    assert outputs.commands(text(NOBODY, "github"))[0][0] == "error"
    assert outputs.code_quality(text(NOBODY, "gitlab"))[0]["check_name"] == "CLR301"
    assert outputs.junit(text(NOBODY, "junit")).attrib["errors"] == "1"


def test_fingerprints_do_not_depend_on_time_score_folder_or_words() -> None:
    other = replace(
        COMPLETE,
        run={**COMPLETE.run, "started_at": "2031-01-01T00:00:00+00:00", "duration_s": 9.0},
        inputs={**COMPLETE.inputs, "root": "round-13"},
        clients=tuple(
            replace(
                c,
                score=c.score and c.score + 1,
                reasons=tuple(replace(r, message=f"{r.message}!", value=7.0) for r in c.reasons),
            )
            for c in reversed(COMPLETE.clients)
        ),
    )
    first, second = (
        {(f.client, f.code): f.fingerprint for f in findings(r)} for r in (COMPLETE, other)
    )
    assert first == second
    assert len(set(first.values())) == len(first) >= 5


def test_rules_are_the_words_of_the_table_of_codes() -> None:
    run = outputs.sarif(text(COMPLETE, "sarif"))
    for rule in run["tool"]["driver"]["rules"]:
        known = RULES[rule["id"]]
        assert outputs.said(rule["fullDescription"]["text"]) == known.seen.replace("`", "")
        assert known.seen in rule["help"]["markdown"]
        assert known.do in rule["help"]["markdown"]


def test_a_code_of_a_newer_clair_is_a_rule_too() -> None:
    newer = client("new", "contaminated", 9.0, Reason("CLR299", "of tomorrow"))
    bare = client("bare", "contaminated", 9.0)
    run = outputs.sarif(text(replace(COMPLETE, clients=(newer, bare)), "sarif"))
    assert [r["ruleId"] for r in run["results"]] == ["CLR299", "contaminated"]


def test_more_results_than_github_takes_are_cut_and_the_worst_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sarif, "MAX_RESULTS", 2)
    run = outputs.sarif(text(COMPLETE, "sarif"))
    assert [r["message"]["text"].split()[2] for r in run["results"]] == ["contaminated"] * 2
    told = run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert told.startswith("3 results left out")


def test_every_finding_says_how_rare_its_score_is_among_honest_clients() -> None:
    sure = as_high(Rarity(21, 9791, None, Rate(0, 5052), Rate(21, 4739)))
    assert sure == "1 in 466 honest clients of the benchmark scored as high"
    told = replace(
        COMPLETE,
        clients=tuple(
            replace(c, rarity=Rarity(21, 9791, None, Rate(0, 5052), Rate(21, 4739)))
            if c.score is not None
            else c
            for c in COMPLETE.clients
        ),
    )
    scored = [c for c in odd(told) if c.score is not None]
    assert len(scored) >= 2
    measured = [f for f in findings(told) if f.client in {c.client for c in scored}]
    assert all(sure in f.head for f in measured)
    suite = outputs.junit(text(told, "junit"))
    heads = {case.attrib["name"]: xml.tostring(case, "unicode") for case in suite}
    rows = {row[1]: row[-1] for row in outputs.markdown_tables(text(told, "markdown"))}
    assert all(sure in heads[c.client] and sure in rows[c.client] for c in scored)


# --- JUnit


@pytest.mark.parametrize("fail_on", ["suspicious", "minority", "contaminated", "broken", "never"])
def test_a_suite_fails_where_the_gate_does(fail_on: str) -> None:
    report = gated(COMPLETE, fail_on)
    suite = outputs.junit(text(report, "junit"))
    assert int(suite.attrib["tests"]) == len(CLIENTS)
    bad = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    assert (bad > 0) == (report.exit_code == 1)
    cases = {case.attrib["name"]: [child.tag for child in case] for case in suite}
    broken = ["skipped"] if fail_on == "never" else ["error"]
    assert cases["client-10"] == broken
    fails = fail_on in ("suspicious", "minority", "contaminated")
    assert cases["client-4"] == (["failure"] if fails else ["system-out"])
    assert cases["client-1"] == ["system-out"]


# --- annotations


def test_an_annotation_is_an_error_where_the_gate_fails_and_else_a_warning() -> None:
    kinds = {m.split()[0]: k for k, _, m in outputs.commands(text(COMPLETE, "github"))}
    assert kinds == {
        "client-3": "warning",
        "client-4": "error",
        "client-5": "error",
        "client-10": "error",
    }
    never = outputs.commands(text(gated(COMPLETE, "never"), "github"))
    assert {kind for kind, _, _ in never} == {"warning"}
    assert never[0][1]["file"] == "round-12/client-4/a.safetensors"


def obeyed(line: str) -> bool:
    """Whether the runner of GitHub or of Azure sees a command: its own rule, from its source."""
    return line.lstrip().startswith("::") or "##[" in line or "##vso[" in line


@pytest.mark.parametrize(
    "line",
    [
        "::error::x",
        "  ::add-mask::x",
        "##[group]x",
        "\t##vso[task]x",
        "a ##[error]b",
        "x##vso[a]",
        "###[a]",
    ],
)
def test_no_line_of_a_text_is_a_command_to_a_runner(line: str) -> None:
    assert obeyed(line)
    tamed = inert(f"one\n{line}\na ::b:: ## c\n")
    assert tamed.splitlines()[0::2] == ["one", "a ::b:: ## c"]
    assert not any(map(obeyed, tamed.splitlines()))


@pytest.mark.parametrize("name", ["##[error]x", "::error::x", "a ##[set-env name=A]b"])
@pytest.mark.parametrize("format", ["text", "json", "markdown", "csv", "jsonl", "junit", "github"])
def test_a_client_is_no_command_in_any_format_on_the_screen(
    format: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = replace(
        COMPLETE, clients=tuple(replace(c, client=name) for c in COMPLETE.clients[3:5])
    )
    assert Delivery(format, (), 2).deliver(report) == report.exit_code
    said = capsys.readouterr()
    lines = said.out.splitlines() + said.err.splitlines()
    own = [
        line for line in lines if format == "github" and re.match("::(error|warning) file=", line)
    ]
    assert not any(obeyed(line) for line in lines if line not in own)
    assert len(own) == (format == "github")
    if format == "json":
        assert {c["id"] for c in json.loads(said.out)["clients"]} == {name}


def test_gitlab_orders_by_how_bad_it_is() -> None:
    entries = outputs.code_quality(text(COMPLETE, "gitlab"))
    assert [e["severity"] for e in entries] == ["critical"] * 3 + ["major", "minor"]
    assert entries[0]["location"]["path"] == "round-12/client-4/a.safetensors"


# --- tables


def test_tables_have_one_row_per_client_and_one_run() -> None:
    rows = outputs.csv_rows(text(COMPLETE, "csv"))
    assert list(rows[0]) == list(COLUMNS)
    assert [r["id"] for r in rows] == [c.client for c in CLIENTS]
    assert {r["run"] for r in rows} == {identity(to_dict(COMPLETE))["id"]}
    (four,) = (r for r in rows if r["id"] == "client-4")
    assert (four["codes"], four["score"]) == ("CLR203; CLR208", "9.8")
    (six,) = (r for r in rows if r["id"] == "client-6")
    assert (six["refined_rank"], six["refined_unchanged"]) == ("8", "true")


def test_a_negative_number_stays_a_number() -> None:
    cause = {"kind": "opposes", "content": -0.5, "error": 1.0, "size": 1.0, "company": -0.1}
    data = to_dict(COMPLETE)
    data["clients"][0]["cause"] = cause | {"nearest": "-x", "head": None}
    row = outputs.csv_rows(text(from_dict(data), "csv"))[0]
    assert (row["content"], row["nearest"]) == ("-0.5", "'-x")


def test_lines_of_json_are_the_entries_of_the_report() -> None:
    lines = [json.loads(line) for line in text(COMPLETE, "jsonl").splitlines()]
    entries = to_dict(COMPLETE)["clients"]
    run = lines[0]["run"]
    assert [{k: v for k, v in x.items() if k not in ("run", "refined")} for x in lines] == entries
    assert all(x["run"] == run for x in lines)
    assert run["started_at"] == COMPLETE.run["started_at"]
    assert [len(x["refined"]) for x in lines] == [1, 1, 0, 0, 0, 1, 0]


def test_a_run_is_known_by_its_inputs_and_settings_and_not_by_its_time() -> None:
    data = to_dict(COMPLETE)
    later = {**data, "run": {"started_at": "x"}, "inputs": {**data["inputs"], "root": "y"}}
    other = {**data, "settings": {**data["settings"], "limit": 4.0}}
    assert identity(later)["id"] == identity(data)["id"] != identity(other)["id"]


def test_parquet_holds_what_the_csv_holds() -> None:
    pytest.importorskip("pyarrow")
    found = render(COMPLETE, "parquet")
    assert isinstance(found, bytes)
    rows = outputs.parquet_rows(found)
    assert list(rows[0]) == list(COLUMNS)
    assert rows[3]["codes"] == ["CLR203", "CLR208"]
    assert rows[5]["refined_unchanged"] is True
    assert rows[6]["score"] is None
    assert found == render(COMPLETE, "parquet")


@pytest.mark.parametrize("library", ["pyarrow", "pandas"])
def test_a_library_that_is_not_there_is_named_with_its_extra(library: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from tests.helpers.reports import COMPLETE
from clair_cli import UsageError, render
try:
    COMPLETE.to_pandas() if {library!r} == "pandas" else render(COMPLETE, "parquet")
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    extra = "pandas" if library == "pandas" else "parquet"
    assert f"needs the library {library}; install clair-cli[{extra}]" in done.stdout


# --- Markdown


def test_markdown_lists_all_but_the_benign_worst_first() -> None:
    head, *rows = outputs.markdown_tables(text(COMPLETE, "markdown"))
    assert head == ["verdict", "client", "score", "limit", "why"]
    assert [r[1] for r in rows] == ["client-5", "client-4", "client-10", "client-3"]
    assert rows[1][4].splitlines()[0] == "CLR203 direction opposite to the consensus"
    assert text(COMPLETE, "markdown").startswith("## clair: FAIL: 2 contaminated, 1 broken\n")


def test_markdown_has_room_for_so_much_and_says_what_is_left_out() -> None:
    long = Reason("CLR101", "x" * 500)
    many = tuple(client(f"c-{k}", "broken", None, *[long] * 9) for k in range(300))
    shown = text(replace(COMPLETE, clients=many), "markdown")
    assert len(shown.encode()) < 2**20
    rows = outputs.markdown_tables(shown)
    assert f"and {301 - len(rows)} more" in shown.splitlines()
    assert len(rows) < 301 and markdown.ROOM < 2**20  # noqa: PT018


# --- names


NAMES = st.one_of(
    st.sampled_from(
        [
            HOSTILE, "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "\uff1d1", "a" * 5000,
            "two\nlines", "a\r\nb", 'q"u"o', "a,b;c", "%0A::error::x", "::error::x", "a%b:c,d",
            "<script>alert(1)</script>", "</testcase>", "]]>", "&lt;", "{0}", "[x](http://y)",
            "{{x}}", "\\", "|", "a|b\\|c", "`", "**b**", "_i_", "~~s~~", "![i](x)", "<b>", "# h",
            "http://x.y", "www.x.y", "a@b.c", "@team", "$x$", ":skull:", "\ufffe\uffff", "\x00",
            "\x85\u2028\u2029", "\u00a0", "\ud800", "../../x", "/etc/passwd", "..", ".", "%2e%2e",
            "C:\\x", "é", "日本", "---", "- x", "1. x", "    code", " lead", "trail ",
        ]
    ),
    st.text(max_size=40),
    st.text(st.characters(), min_size=1, max_size=20),
    st.text("=+-@\t\r\n\"'`|\\<>&[]{}()*_~#!$:%,;./ \x1b\u202e\udcff", max_size=20),
)  # fmt: skip


def named(client: str, other: str, module: str, message: str, path: str) -> Report:
    """COMPLETE with these words in every field that holds words of others."""
    odd_one = replace(
        CLIENTS[3],
        client=client,
        depends_on=(other, client),
        reasons=(Reason("CLR203", message), Reason(other or "x", message)),
        modules=tuple(replace(m, name=module) for m in CLIENTS[3].modules),
    )
    benign = replace(CLIENTS[0], client=f"b{client}", reasons=(Reason("CLR114", message),))
    done = COMPLETE.refinement
    assert done is not None
    refined = replace(done.clients[0], client=f"b{client}", path=path)
    report = replace(
        COMPLETE,
        tool={"name": "clair", "version": "1.2.3"},
        run={**COMPLETE.run, "command": message, "environment": {"device": other}},
        inputs={
            "root": path,
            "clients": [{"id": client, "files": [{"name": other, "size": 1, "sha256": "0" * 64}]}],
        },
        population=replace(COMPLETE.population, findings=(Reason("CLR305", message),)),
        clients=(benign, odd_one),
        refinement=replace(done, clients=(refined,), warnings=(message,)),
    )
    return gated(report, "contaminated")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES, NAMES, NAMES, NAMES, NAMES)
def test_any_name_comes_back_from_every_format_or_is_escaped(
    client: str, other: str, module: str, message: str, path: str
) -> None:
    report = named(client, other, module, message, path)
    run = outputs.sarif(text(report, "sarif"))
    shown = [outputs.said(r["message"]["text"]) for r in run["results"]]
    assert all(s.startswith(f"{safe_text(client)} is contaminated") for s in shown)
    assert any(s.endswith(safe_text(message)) for s in shown)
    for result in run["results"]:
        outputs.path_of(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])

    suite = outputs.junit(text(report, "junit"))
    assert [case.attrib["name"] for case in suite] == [one_line(f"b{client}"), one_line(client)]

    ((kind, _, said),) = outputs.commands(text(report, "github"))
    assert kind == "error"
    assert said.startswith(f"{safe_text(client)} is contaminated")
    entries = outputs.code_quality(text(report, "gitlab"))
    assert entries[0]["description"].startswith(f"{safe_text(client)} is contaminated")

    rows = outputs.csv_rows(text(report, "csv"))
    assert [r["id"].removeprefix("'") for r in rows] == [
        one_line(name).removeprefix("'") for name in (f"b{client}", client)
    ]
    lines = [json.loads(line) for line in text(report, "jsonl").splitlines()]
    assert [x["id"] for x in lines] == [f"b{client}", client]
    assert lines[1]["reasons"][0]["message"] == message
    assert lines[1]["modules"][0]["name"] == module

    head, row = outputs.markdown_tables(text(report, "markdown"))
    assert len(row) == len(head)
    assert row[1] == safe_text(client).strip(" ")
    assert row[4].splitlines()[0].strip(" ") == safe_text(f"CLR203 {message}").strip(" ")
    found = render(report, "parquet")
    assert isinstance(found, bytes)
    exact = client.encode("utf-8", "backslashreplace").decode()
    assert outputs.parquet_rows(found)[1]["id"] == exact
