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


def test_the_figures_are_those_of_seeds_that_nothing_was_set_on() -> None:
    """Every "n of m" of the README stands in that column of the table of what is wanted."""
    page = (RESULTS / "real.md").read_text()
    wanted = page.split("## What is wanted")[1].split("\n## ")[0]
    column = [line.split("|")[4] for line in wanted.splitlines() if line.count("|") >= 5]
    measured = {x for cell in column for x in re.findall(r"(\d+) of (\d+)", cell)}
    part = README.split("## How good is it?")[1].split("\n## ")[0]
    shown = re.findall(r"(\d+) of (\d+)", part)
    assert len(shown) >= 6
    assert set(shown) <= measured
