"""Pages that are made from the program say what the program says today."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from clair_cli.detection.calibration import DETECTION
from clair_cli.refinement.calibration import REFINEMENT
from clair_cli.settings import Settings
from tests.docs import generate


@pytest.mark.parametrize("page", generate.PARTS, ids=lambda page: page.stem)
def test_the_generated_parts_of_a_page_are_those_of_the_program(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"<!-- generated: (\w+) -->", text) == list(generate.PARTS[page])
    assert text == generate.with_parts(text), "run python -m tests.docs.refresh"


def test_the_page_of_the_command_line_is_what_the_program_prints() -> None:
    assert generate.CLI.read_text() == generate.command_line(), "run python -m tests.docs.refresh"


def test_every_setting_and_every_constant_has_a_row_with_a_meaning() -> None:
    text = generate.SETTINGS.read_text()
    names = [f.name for kind in (DETECTION, REFINEMENT) for f in fields(kind)]
    names += [f.name for f in fields(Settings) if f.name not in ("detection", "refinement")]
    assert len(names) > 80
    for name in names:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert all(cells), name


@pytest.mark.parametrize(
    ("page", "change"),
    [
        (generate.SETTINGS, "| 3 |"),
        (generate.SETTINGS, "robust standard deviations"),
        (generate.REASONS, "no accusation"),
    ],
    ids=str,
)
def test_a_part_that_differs_is_found(page: Path, change: str) -> None:
    text = page.read_text()
    assert change in text
    changed = generate.with_parts(text.replace(change, "else"))
    assert changed == text
