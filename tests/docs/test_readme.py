"""What the README shows is what a user gets: its console blocks and its Python block are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.helpers.commands import ENVIRONMENT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def plain(text: str) -> str:
    """Without what differs between runs: the seconds."""
    return re.sub(r"\d+\.\d s$", "N s", text.rstrip(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "sample_adapters", folder / "sample_adapters")
    return folder


def sessions() -> list[tuple[str, str]]:
    """Each `$ command` of the README with the output shown below it, in order."""
    found = []
    for block in BLOCKS:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def test_every_console_command_prints_what_the_readme_shows(home: Path) -> None:
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{ENVIRONMENT.get('PATH', '')}"
    assert len(sessions()) >= 5
    for command, shown in sessions():
        done = subprocess.run(
            ["sh", "-c", f"{command} 2>&1" if ">" not in command else command],
            cwd=home, env=ENVIRONMENT | {"PATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        printed = done.stdout + (done.stderr if ">" in command else "")
        assert plain(printed) == plain(shown), command
    assert (home / "refined" / "client-01" / "adapter_model.safetensors").exists()
    assert "contaminated" in (home / "verdicts.txt").read_text()


def test_the_python_block_runs(home: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "d_out=64" in done.stdout


def test_the_quality_table_is_what_sample_adapters_readme_measured() -> None:
    shown = re.search(r"\| 8\.\d+ \| (0\.\d+) \| (0\.\d+) \| (0\.\d+) \|", README)
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


def test_the_readme_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 4
    for link in links:
        assert (ROOT / link).exists(), link
