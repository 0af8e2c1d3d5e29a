"""The gate through the installed script: sets of verdicts, and what is new since an earlier report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Detected
from tests.helpers.commands import CONTAMINATED, WEIGHTS, clair, fingerprint, quick, samples

FIRST, SECOND = sorted(CONTAMINATED)


def states(report: dict[str, Any]) -> dict[str, str]:
    """Client -> what the baseline makes of its finding."""
    return {c["id"]: c["state"] for c in report["baseline"]["clients"]}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a round in which only one of the two contaminated clients was."""
    folder = tmp_path_factory.mktemp("earlier")
    cohort = samples(folder / "round")
    shutil.rmtree(cohort / SECOND)
    report = folder / "earlier.json"
    assert clair("detect", cohort, "-q", "-o", f"json={report}").returncode == 1
    return report


# --- sets


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [
        ("contaminated,broken", 1),
        ("broken,contaminated", 1),
        ("suspicious,broken", 0),
        ("minority,", 0),
        ("contaminated,", 1),
        ("suspicious", 1),
    ],
)
def test_detect_and_report_have_one_gate(
    fail_on: str, code: int, detected: Detected, tmp_path: Path
) -> None:
    for command, what in (("detect", detected.folder), ("report", detected.json)):
        done = quick(tmp_path, command, what, "--fail-on", fail_on, "-f", "json")
        assert done.returncode == json.loads(done.stdout)["exit_code"] == code


def test_a_set_leaves_out_what_is_worse(detected: Detected, tmp_path: Path) -> None:
    cohort = shutil.copytree(detected.folder, tmp_path / "round")
    (cohort / "client-01" / WEIGHTS).write_bytes(b"")
    for name in CONTAMINATED:
        shutil.rmtree(cohort / name)
    assert quick(tmp_path, "detect", cohort, "--fail-on", "contaminated").returncode == 1
    only = quick(tmp_path, "detect", cohort, "--fail-on", "contaminated,")
    assert only.returncode == 0
    assert only.stdout.splitlines()[-1] == "PASS: no client of --fail-on contaminated,"


@pytest.mark.parametrize("command", ["detect", "report"])
@pytest.mark.parametrize("fail_on", ["never,broken", "benign", ",", "broken,bad"])
def test_another_word_is_a_usage_error(
    command: str, fail_on: str, detected: Detected, tmp_path: Path
) -> None:
    what = detected.folder if command == "detect" else detected.json
    done = quick(tmp_path, command, what, "--fail-on", fail_on)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clair: --fail-on: expected suspicious, minority, ")


# --- what is new


def test_only_what_is_new_fails_and_the_rest_is_told(
    detected: Detected, earlier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "now.json"
    done = clair("detect", detected.folder, "--baseline", earlier, "-o", f"json={out}")
    assert done.returncode == 1
    report = json.loads(out.read_text())
    assert states(report) == {FIRST: "known", SECOND: "new"}
    assert [c["unchanged"] for c in report["baseline"]["clients"]] == [True, False]
    assert f"new: {SECOND} (contaminated, was not there)\n" in done.stdout
    assert f"known: {FIRST} (contaminated)\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "FAIL: 1 contaminated, new since the baseline"


def test_a_round_against_its_own_report_passes_and_writes_nothing_else(
    detected: Detected, tmp_path: Path
) -> None:
    before = fingerprint(detected.folder)
    done = clair("detect", detected.folder, "--baseline", detected.json, "-f", "json")
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 0
    assert done.stderr == (
        "PASS: no new client at or above --fail-on contaminated, and 2 known from the baseline\n"
    )
    assert fingerprint(detected.folder) == before


def test_report_gates_against_a_baseline_and_keeps_it_when_gated_again(
    detected: Detected, earlier: Path, tmp_path: Path
) -> None:
    once = tmp_path / "once.json"
    args = ("--baseline", earlier, "-q", "-o", f"json={once}")
    assert quick(tmp_path, "report", detected.json, *args).returncode == 1
    assert states(json.loads(once.read_text())) == {FIRST: "known", SECOND: "new"}
    again = quick(tmp_path, "report", once, "--fail-on", "broken", "-f", "json")
    assert again.returncode == 0
    assert states(json.loads(again.stdout)) == {FIRST: "known", SECOND: "new"}
    gone = quick(tmp_path, "report", earlier, "--baseline", detected.json)
    assert gone.returncode == 0
    assert f"gone: {SECOND} (was contaminated, no longer there)\n" in gone.stdout


def test_refine_gates_and_its_report_has_the_comparison(
    detected: Detected, earlier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ("refine", detected.folder, "--out", out, "-q", "--baseline", earlier)
    assert clair(*args, "--fail-on", "contaminated").returncode == 1
    assert states(json.loads((out / "report.json").read_text())) == {FIRST: "known", SECOND: "new"}


BAD = {
    "no file": (None, "cannot be read"),
    "no JSON": (b"\xff", "invalid JSON"),
    "no report": (b"{}", "not a clair report"),
    "a list": (b"[]", "expected a JSON object"),
    "NaN": (b'{"schema_version": NaN}', "not a JSON number"),
    "deep": (
        b'{"schema_version": "1.0", "d": ' + b"[" * 99 + b"]" * 99 + b"}",
        "nested too deeply",
    ),
    "another major": (b'{"schema_version": "2.0"}', "is not 1.x"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_report_ends_the_run_before_anything_is_read(
    kind: str, detected: Detected, tmp_path: Path
) -> None:
    content, said = BAD[kind]
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_bytes(content)
    for command, more in (("detect", ()), ("refine", ("--out", tmp_path / "out"))):
        done = quick(tmp_path, command, detected.folder, *more, "--baseline", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"clair: --baseline '{path}'")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
