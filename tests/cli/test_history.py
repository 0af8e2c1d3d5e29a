"""--history and trend through the installed script: the gate, a killed run, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from clair_cli import ledger
from clair_cli.ledger import Entry
from tests.conftest import Detected
from tests.helpers.commands import WEIGHTS, clair, fingerprint, quick, samples
from tests.test_ledger import line

ODD, SIX = "client-01", tuple(f"client-{k:02}" for k in (1, 2, 4, 5, 7, 8))
"""Benign in every round of the samples, and all benign clients of them."""


def grown(path: Path, factor: float = 16.0, rounds: int = 3) -> Path:
    """A ledger in which client-01 has been odd for some rounds."""
    for _ in range(rounds):
        with ledger.opened(path) as book:
            one = line(1.9, ODD)
            entries = tuple(Entry(e.client, "", e.verdict, e.score, factor) for e in one.clients)
            book.append(ledger.replace(one, clients=entries))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples(tmp_path_factory.mktemp("six") / "round", SIX)


def test_whom_the_rounds_convict_fails_the_gate_and_is_named(cohort: Path, tmp_path: Path) -> None:
    path, report = grown(tmp_path / "history"), tmp_path / "report.json"
    args = ("detect", cohort, "--history", path)
    done = clair(*args, "-o", f"json={report}")
    assert done.returncode == 1
    assert "client-01 benign" in done.stdout
    assert "over 4 rounds: contaminated (evidence" in done.stdout
    assert done.stdout.rstrip().endswith("FAIL: 1 contaminated")
    said = json.loads(report.read_text())
    assert said["exit_code"] == 1
    assert [s["id"] for s in said["history"]["clients"] if s["convicted"]] == [ODD]
    again = clair("report", report)
    assert again.returncode == 1
    assert "over 4 rounds: contaminated" in again.stdout
    for name in ("sarif", "junit", "markdown", "github"):
        shown = quick(tmp_path, "report", report, "-f", name)
        assert "CLR215" in shown.stdout, name
    lines = len(ledger.read(path).lines)
    assert quick(tmp_path, *args, "--fail-on", "never").returncode == 0
    assert len(ledger.read(path).lines) == lines == 4, "the same round is not counted twice"


def test_whom_the_rounds_convict_gets_no_refined_adapter(cohort: Path, tmp_path: Path) -> None:
    path, out = grown(tmp_path / "history"), tmp_path / "out"
    done = clair("refine", cohort, "--out", out, "--history", path, "--fail-on", "contaminated")
    assert done.returncode == 1
    assert {p.name for p in out.iterdir() if p.is_dir()} == {*SIX} - {ODD}
    said = json.loads((out / "report.json").read_text())
    assert said["history"]["head"] == ledger.read(path).head


def test_an_included_client_is_decided_about(cohort: Path, tmp_path: Path) -> None:
    path, out = grown(tmp_path / "history"), tmp_path / "out"
    options = ("--fail-on", "contaminated", "--include", ODD)
    assert clair("refine", cohort, "--out", out, "--history", path, *options).returncode == 0
    assert (out / ODD).is_dir()


KILL = """
import os, signal
write = os.write
def torn(fd, data):
    if bytes(data[:12]) == b'{"previous":':
        write(fd, bytes(data[:{count}]))
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data)
os.write = torn
"""


@pytest.mark.parametrize("count", [1, 200, 9999])
def test_a_run_that_is_killed_as_it_writes_is_run_again_and_counts_once(
    count: int, cohort: Path, tmp_path: Path
) -> None:
    path = tmp_path / "history"
    args = ("detect", cohort, "--history", path)
    killed = quick(tmp_path, *args, hook=KILL.replace("{count}", str(count)))
    assert killed.returncode == -signal.SIGKILL
    done = quick(tmp_path, *args)
    assert done.returncode == 0
    found = ledger.read(path)
    assert (len(found.lines), found.torn) == (1, 0)
    whole = count == 9999
    assert ("of an unfinished line" in done.stdout) is not whole
    assert ("nothing added by this run" in done.stdout) is whole


def test_a_changed_line_is_refused_before_anything_is_read(cohort: Path, tmp_path: Path) -> None:
    path = grown(tmp_path / "history")
    path.write_bytes(path.read_bytes().replace(b'"score": 1.9', b'"score": 0.1', 1))
    before = path.read_bytes()
    for command in (("detect", cohort), ("refine", cohort, "--out", tmp_path / "out")):
        done = quick(tmp_path, *command, "--history", path)
        assert done.returncode == 2
        assert "line 1: its sha256 is not that of the line" in done.stderr
        assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_ledger_never_lies_among_the_adapters(cohort: Path, tmp_path: Path) -> None:
    print_before = fingerprint(cohort)
    for place in (cohort / "history", cohort / ODD / "history"):
        done = quick(tmp_path, "detect", cohort, "--history", place)
        assert done.returncode == 2
        assert "--history" in done.stderr
    assert fingerprint(cohort) == print_before
    nowhere = quick(tmp_path, "detect", cohort, "--history", tmp_path / "no" / "history")
    assert nowhere.returncode == 2


def test_a_run_that_cannot_write_its_round_says_so(cohort: Path, tmp_path: Path) -> None:
    hook = KILL.replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "raise OSError(28, 'No space left')"
    )
    done = quick(
        tmp_path, "detect", cohort, "--history", tmp_path / "h", hook=hook.replace("{count}", "9")
    )
    assert done.returncode == 4
    assert "No space left" in done.stderr
    assert (tmp_path / "h").read_bytes() == b""


def test_trend_has_the_exit_code_of_the_last_round(detected: Detected, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    shutil.copy(detected.json, saved)
    page, table = tmp_path / "t.html", tmp_path / "t.csv"
    done = clair("trend", saved, saved, "-o", f"html={page}", "-o", f"csv={table}")
    assert done.returncode == json.loads(saved.read_text())["exit_code"]
    assert "2 rounds in the order given" in done.stdout
    assert "Every client in every round" in page.read_text()
    assert table.read_bytes().count(b"\r\n") == 17
    assert quick(tmp_path, "trend", saved, "--fail-on", "never").returncode == 0
    silent = quick(tmp_path, "trend", saved, "--fail-on", "contaminated", "-q")
    assert (silent.returncode, silent.stdout) == (1, "")
    assert silent.stderr.startswith("FAIL: ")
    assert silent.stderr.count("\n") == 1
    assert json.loads(quick(tmp_path, "trend", saved, saved, "-f", "json").stdout)["rounds"]


def test_trend_refuses_what_is_no_report(cohort: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for data in ("{}", "[1]", '{"schema_version": "1.6"}', "\0"):
        bad.write_text(data)
        done = quick(tmp_path, "trend", bad)
        assert done.returncode == 2
        assert done.stderr.startswith("clair: ")
    for place in ("html", "svg=x", f"html={tmp_path}", "json=-"):
        assert quick(tmp_path, "trend", bad, "-o", place).returncode == 2
    assert quick(tmp_path, "trend", cohort / ODD / WEIGHTS).returncode == 2
