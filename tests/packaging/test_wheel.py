"""The wheel has all that the package needs, runs elsewhere, and is typed for those who import it."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import ROOT
from tests.helpers.commands import SAMPLES

USER = """\
from clair_cli import Report, Settings, detect

report: Report = detect("samples", Settings(fail_on="suspicious"))
bad: list[str] = [client.client for client in report.clients if client.verdict == "contaminated"]
"""


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A command that ends well, with what it said; AssertionError otherwise."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of the checkout, and the wheel that was built from it."""
    pytest.importorskip("build")
    home = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home)
    shutil.copytree(
        ROOT / "clair_cli", home / "clair_cli", ignore=shutil.ignore_patterns("__pycache__")
    )
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", home / "dist", home)
    return home / "dist"


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel; its dependencies are those of this one."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    (own,) = home.glob("lib/python*/site-packages")
    others = site.getsitepackages()
    (own / "others.pth").write_text("\n".join(others) + "\n")
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install")
    run(*pip, "--no-deps", "--no-index", "--force-reinstall", wheel)
    return home / "bin" / "python"


def test_wheel_and_sdist_hold_every_file_of_the_package(built: Path) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "clair_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"clair_cli/py.typed", "clair_cli/report.schema.json"} < package
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == package
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package <= names


def test_the_metadata_are_whole_and_fit_for_an_index(built: Path) -> None:
    pytest.importorskip("twine")
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    text = archive.read(name).decode()
    for minor in range(10, 14):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}\n" in text
    assert "License-Expression: Apache-2.0" in text
    assert "Not the container scanner" in text


def test_the_installed_wheel_detects_and_refines_from_another_folder(python: Path) -> None:
    program = Path(__file__).with_name("installed.py")
    assert "clair works" in run(python, program, SAMPLES, cwd="/").stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_user_of_the_wheel_is_type_checked(python: Path, tmp_path: Path, wrong: bool) -> None:
    pytest.importorskip("mypy")
    program = USER.replace("list[str]", "list[int]") if wrong else USER
    (tmp_path / "user.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), "user.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) != wrong, done.stdout
    assert "import-untyped" not in done.stdout
