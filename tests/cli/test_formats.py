"""Formats of a report as the command writes them: whole, located, appended where that is asked for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from clair_cli.cli import run
from clair_cli.cli.places import located
from clair_cli.report import from_dict
from tests import ROOT
from tests.helpers import outputs
from tests.helpers.commands import clair, samples

REPORT = ROOT / "tests" / "golden" / "complete.json"
FORMATS = ("markdown", "sarif", "junit", "github", "gitlab", "csv", "jsonl", "parquet")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_stdout_and_a_file_get_the_same_bytes_and_the_same_exit_code(
    name: str, tmp_path: Path
) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    out, shown = tmp_path / "out", tmp_path / "shown"
    with shown.open("wb") as file:
        done = clair("report", REPORT, "-f", name, "-o", f"{name}={out}", stdout=file)
    assert done.returncode == 1
    assert shown.read_bytes() == out.read_bytes() != b""


def test_a_summary_is_appended_to_what_is_there(nowhere: Path) -> None:
    summary = nowhere / "summary.md"
    summary.write_text("before\n")
    os.environ["GITHUB_STEP_SUMMARY"] = str(summary)
    try:
        for _ in range(2):
            assert run(["report", str(REPORT), "-q", "--github"]) == 1
    finally:
        del os.environ["GITHUB_STEP_SUMMARY"]
    text = summary.read_text()
    assert text.startswith("before\n## clair: FAIL")
    assert text.count("## clair: FAIL") == 2
    assert len(outputs.markdown_tables(text)) == 2 * 5


def test_without_a_job_there_is_no_summary(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(REPORT), "--github"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "GITHUB_STEP_SUMMARY is not set" in said.err


def test_paths_begin_at_the_top_of_the_repository_and_are_no_links(tmp_path: Path) -> None:
    top = tmp_path / "repository"
    (top / ".git").mkdir(parents=True)
    (top / "sub").mkdir()
    samples(top / "deep" / "round")
    (top / "sub" / "link").symlink_to(top / "deep" / "round")
    done = clair("detect", "link", "-f", "sarif", cwd=top / "sub")
    assert done.returncode == 1, done.stderr
    result = outputs.sarif(done.stdout)["results"][0]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "deep/round/client-03/adapter_model.safetensors"
    assert (top / outputs.path_of(uri)).is_file()


def test_a_file_that_could_not_be_read_is_named_with_its_ending(tmp_path: Path) -> None:
    folder = samples(tmp_path / "round")
    (folder / "a.npz").write_bytes(b"PK\3\4 and no more")
    (folder / "a.b.npz").write_bytes(b"PK\3\4 and no more")
    done = clair("detect", folder, "-q", "-f", "github", cwd=tmp_path)
    found = {said["file"] for _, said, _ in outputs.commands(done.stdout)}
    assert {"round/a.npz", "round/a.b.npz"} < found


def test_what_is_no_longer_there_keeps_the_path_of_the_report(nowhere: Path) -> None:
    report = from_dict(json.loads(REPORT.read_text()))
    assert located(report).inputs == {**report.inputs, "root": "round-12"}


def test_bytes_do_not_go_to_a_terminal(
    nowhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("clair_cli.cli.streams.is_terminal", lambda: True)
    assert run(["report", str(REPORT), "-f", "parquet"]) == 2
    assert "give -o parquet=FILE" in capsys.readouterr().err


def test_a_client_cannot_command_the_runner_of_a_job(tmp_path: Path) -> None:
    data = json.loads(REPORT.read_text())
    data["clients"][5]["id"] = "::stop-commands::x"
    (tmp_path / "r.json").write_text(json.dumps(data))
    done = clair("report", tmp_path / "r.json", "-v")
    assert isinstance(done, subprocess.CompletedProcess)
    assert "stop-commands" in done.stdout
    assert not any(line.strip().startswith("::") for line in done.stdout.splitlines())
