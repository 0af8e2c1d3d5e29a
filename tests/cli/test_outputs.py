"""Where a report goes: --format, --output and --quiet, and stdout takes one document."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clair_cli.cli import run
from clair_cli.cli.delivery import delivery
from clair_cli.errors import UsageError
from tests import ROOT

REPORT = ROOT / "tests" / "golden" / "complete.json"
JSON, TEXT = REPORT.read_text(), REPORT.with_suffix(".txt").read_text()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which a file called - would be seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "product"),
    [
        (("-q", "-o", "json=-"), JSON),
        (("-q", "-o", "text=-"), TEXT),
        (("-f", "json", "-o", "json=-"), JSON),
        (("-o", "text=-"), TEXT),
        (("-q", "-o", "json=-", "-o", "json=-"), JSON),
        (("-q",), ""),
    ],
    ids=str,
)
def test_a_dash_is_stdout_and_what_is_asked_for_twice_is_written_once(
    options: tuple[str, ...], product: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(REPORT), *options]) == 1
    said = capsys.readouterr()
    assert said.out == product
    assert said.err == ("" if product == TEXT else "FAIL: 2 contaminated, 1 broken\n")
    assert os.listdir(nowhere) == []


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "json=-"),
        ("-f", "json", "-o", "text=-"),
        ("-f", "json", "-q", "-o", "text=-"),
        ("-q", "-o", "text=-", "-o", "json=-"),
    ],
    ids=str,
)
def test_two_documents_on_stdout_are_refused(
    options: tuple[str, ...], nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(REPORT), *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "json and text would both go to stdout" in said.err
    assert os.listdir(nowhere) == []


def test_a_file_called_dash_is_reached_by_its_folder(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(REPORT), "-o", "json=./-"]) == 1
    assert capsys.readouterr().out == TEXT
    assert (nowhere / "-").read_text() == JSON


def test_files_are_written_beside_what_stdout_shows(nowhere: Path) -> None:
    assert run(["report", str(REPORT), "-q", "-o", "json=-", "-o", "text=a.txt"]) == 1
    assert (nowhere / "a.txt").read_text() == TEXT


def test_only_a_table_is_for_a_person() -> None:
    assert delivery("text", None, False, 0).talks
    assert not delivery("text", None, True, 0).talks
    assert not delivery("json", None, False, 0).talks
    assert not delivery("text", ["json=-"], True, 0).talks


@pytest.mark.parametrize(
    "words",
    [
        ("report", "r.json", "-o", "html=r.json"),
        ("trend", "r.json", "other.json", "-o", "csv=other.json"),
        ("detect", "round", "--history", "ledger", "-o", "json=ledger"),
        ("report", "r.json", "-o", "html=linked.json"),
        ("report", "r.json", "-o", "html=new", "-o", "json=./new"),
        ("trend", "r.json", "r.json", "-o", "html=new", "-o", "json=new"),
    ],
)
def test_no_output_takes_the_place_of_what_is_read_or_of_another(
    nowhere: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    for name in ("r.json", "other.json"):
        (nowhere / name).write_bytes(REPORT.read_bytes())
    (nowhere / "ledger").write_text("kept")
    (nowhere / "linked.json").symlink_to("r.json")
    (nowhere / "round").mkdir()
    before = {p.name: p.read_bytes() for p in nowhere.iterdir() if p.is_file()}
    assert run(list(words)) == 2
    said = capsys.readouterr().err
    assert "is read by this command" in said or "two formats would go to" in said
    assert {p.name: p.read_bytes() for p in nowhere.iterdir() if p.is_file()} == before


def test_no_file_may_lie_among_the_adapters(tmp_path: Path) -> None:
    (tmp_path / "round").mkdir()
    with pytest.raises(UsageError, match="lies among the adapters"):
        delivery("text", [f"json={tmp_path}/round/x.json"], False, 0, tmp_path / "round")
    assert delivery("text", [f"json={tmp_path}/x.json"], False, 0, tmp_path / "round").files
