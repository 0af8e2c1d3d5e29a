"""The manual page: every command and option is in it, and who reads such pages has no complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clair_cli.cli import app
from clair_cli.cli.manual import roff
from clair_cli.cli.parameters import parameters
from tests import ROOT

LINTERS = {
    "groff": ["groff", "-man", "-ww", "-Tutf8", "-z"],
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning"],
    "man": ["man", "--warnings", "-l", "-E", "UTF-8"],
}
DATELESS = re.compile(r".*missing date, using \"\": TH\n?")
"""A page with a date would differ from day to day."""


def shown(roffed: str) -> str:
    """The text of a page, without its requests and escapes."""
    return roffed.replace(r"\-", "-").replace(r"\fB", "").replace(r"\fR", "")


def test_every_command_every_option_and_every_exit_code_is_in_the_page() -> None:
    page = shown(roff())
    assert len(app.registered_commands) >= 10
    for command in app.registered_commands:
        assert command.callback is not None
        section = page.partition(f".SS clair {command.callback.__name__}")[2].partition(".SS ")[0]
        for param in parameters(command.callback):
            assert f".TP\n{param.head}\n" in section
        for code in re.findall(r"^ +(\d+)  ", str(command.epilog), re.MULTILINE):
            assert re.search(rf"^ *{code}  ", section, re.MULTILINE), code


def test_no_line_begins_with_what_would_be_a_request() -> None:
    requests = {line.split()[0] for line in roff().splitlines() if line[:1] in (".", "'")}
    assert requests == {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".I", ".nf", ".fi"}


@pytest.mark.parametrize("linter", LINTERS)
def test_the_page_is_as_manual_pages_are(linter: str, tmp_path: Path) -> None:
    if shutil.which(linter) is None:
        pytest.skip(f"{linter} is not installed")
    page = tmp_path / "clair.1"
    page.write_text(roff())
    done = subprocess.run([*LINTERS[linter], str(page)], capture_output=True, text=True)
    assert DATELESS.sub("", done.stderr + done.stdout * (linter == "mandoc")) == ""
    spoiled = page.with_name("spoiled.1")
    spoiled.write_text(roff().replace(".SH SYNOPSIS", ".XX SYNOPSIS"))
    again = subprocess.run([*LINTERS[linter], str(spoiled)], capture_output=True, text=True)
    assert "XX" in again.stderr + again.stdout


def test_make_man_writes_the_page_that_the_module_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clair_cli.cli.manual"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == roff()
    recipe = (ROOT / "Makefile").read_text().partition("\nman:")[2].partition("\n\n")[0]
    assert "-m clair_cli.cli.manual > build/man/clair.1" in recipe
