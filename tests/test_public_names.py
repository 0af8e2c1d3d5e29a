"""The public names: listed before they are loaded, and typed for whoever imports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import clair_cli
from clair_cli._version import __version__


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_dir_shows_every_public_name_and_loads_none_of_them() -> None:
    said = fresh("import sys, clair_cli; print(*dir(clair_cli)); print('numpy' in sys.modules)")
    names, loaded = said.splitlines()
    assert set(clair_cli.__all__) <= set(names.split())
    assert {n for n in names.split() if not n.startswith("__")} == set(clair_cli.__all__)
    assert loaded == "False"


def test_every_public_name_can_be_had() -> None:
    assert len(clair_cli.__all__) > 10
    for name in clair_cli.__all__:
        assert getattr(clair_cli, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        clair_cli.absent  # noqa: B018


def test_the_version_is_one() -> None:
    assert clair_cli.__version__ == __version__


def test_a_type_checker_finds_the_package_and_the_types_of_its_names(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    lines = ["import clair_cli", "reveal_type(clair_cli.detect)"]
    lines += [f"clair_cli.{name}" for name in clair_cli.__all__]
    (tmp_path / "user.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "c", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "-> clair_cli.report.Report" in done.stdout
