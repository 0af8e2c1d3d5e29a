"""Rows that are kept as lines of JSON, each written as soon as it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def kept(file: Path) -> list[Row]:
    """What is there; nothing where there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def keep(file: Path, row: Row) -> None:
    """Add a row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
