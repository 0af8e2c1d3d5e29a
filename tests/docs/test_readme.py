"""What the README shows is what a user gets, and its figures are those that were measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import blocks, console, failure, plain, sessions, workplace

PAGE = ROOT / "README.md"
README = PAGE.read_text()
PYTHON = ROOT / "docs" / "reference" / "python.md"
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workplace(tmp_path_factory.mktemp("readme"))


def test_every_console_command_prints_what_the_readme_shows(home: Path) -> None:
    shown = [s for b in blocks(PAGE) if b.language == "console" for s in sessions(b)]
    assert len(shown) >= 3
    for command, output in shown:
        assert plain(console(command, home)) == plain(output), command
    assert (home / "refined" / "client-01" / "adapter_model.safetensors").exists()


def test_the_python_block_runs(home: Path) -> None:
    (block,) = [b for b in blocks(PYTHON) if b.language == "python"]
    assert "d_out" in block.text
    assert failure(block, workplace(home / "python")) is None


def test_the_quality_table_is_what_sample_adapters_readme_measured() -> None:
    shown = re.search(r"\| 8\.\d+ \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \|", TUTORIAL)
    assert shown is not None
    local, average, refined = map(float, shown.groups())
    line = re.search(r"^mean of 6 .*$", (ROOT / "sample_adapters" / "README.md").read_text(), re.M)
    assert line is not None
    losses = [float(x) for x in re.findall(r"(\d+\.\d+) /", line[0])]
    assert losses[1:3] == [local, average]
    assert refined < local < average


def test_every_exit_code_is_in_the_readme_and_in_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clair_cli.entry", "--help"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    for code in ("0", "1", "2", "3", "4", "70", "130"):
        assert re.search(rf"^\s+{code}\b", done.stdout, re.MULTILINE), code
        assert f"| {code}" in README


def test_the_table_of_results_is_the_measured_one() -> None:
    """The rows of the README against those of the page of measurements, which names them longer."""
    measured = (RESULTS / "method-measurements.md").read_text()
    rows = {
        "nobody contaminated: honest clients accused": "honest clients convicted, clean cohorts",
        "strong contamination: exactly": "strong contamination: exactly the right clients",
        "nearly half contaminated: exactly": "thin majorities: exactly the right",
    }
    for ours, theirs in rows.items():
        assert figures(README, ours) == figures(measured, theirs)
    found, accused = (
        figures(README, f"mild contamination: {what}") for what in ("contaminated", "honest")
    )
    mild = figures(measured, "half-corrupted labels, 30 % backdoors", skip=1)
    assert [*mild[::2]] == found
    assert [*mild[1::2]] == accused


def figures(page: str, row: str, skip: int = 0) -> list[float]:
    """The percentages in the one row of a table that begins with `row`, without the first `skip`."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {row}")]
    return [float(x) for x in re.findall(r"(\d+\.?\d*) %", line)][skip:]


def test_the_figures_of_the_field_are_those_of_the_benchmark() -> None:
    """Recall and exact sets, rounded to whole percents, as the table of all judges has them."""
    table = (RESULTS / "detection-full-2000.md").read_text().splitlines()
    columns = next([*map(str.strip, x.split("|"))] for x in table if x.startswith("| judge"))
    for number, judge in enumerate(
        ("NNM + trimmed mean, Delta W *", "DnC, Delta W *", "FLAME, Delta W")
    ):
        (line,) = [x for x in table if x.startswith(f"| {judge} ")]
        cells = dict(zip(columns, map(str.strip, line.split("|")), strict=True))
        exact = [round(100 * float(cells[name].split(" / ")[1])) for name in ("strong", "thin")]
        shown = [
            figures(README, row)[number + 1] for row in ("strong contamination", "nearly half")
        ]
        assert exact == shown
