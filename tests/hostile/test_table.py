"""The page of threats is true as far as a test can tell: every threat has a row, every test exists."""

from __future__ import annotations

import ast
import re

from tests import ROOT

TESTS = ROOT / "tests"
TABLE = (ROOT / "docs" / "explanation" / "threats.md").read_text()


def test_every_threat_has_a_row() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", TABLE, re.MULTILINE)
    assert sorted(int(n) for row in rows for n in row.split(",")) == list(range(1, 31))


def test_every_test_named_in_the_table_exists() -> None:
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", TABLE)
    assert len(named) > 50
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in found, f"{file}::{name}"


def test_every_hostile_test_is_in_the_table() -> None:
    files = [f"hostile/{p.name}" for p in (TESTS / "hostile").glob("test_*.py")]
    assert len(files) >= 5
    assert {f for f in files if f not in TABLE} == set()


def test_every_row_names_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if re.match(r"\| (?!#)", line)]
    assert len(rows) > 30
    assert [r[:80] for r in rows if not re.search(r"`(?:\w+/)?test_\w+\.py", r)] == []
