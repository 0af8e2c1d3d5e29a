"""Benchmarks and examples are packages: their modules find each other by name, and arrows go one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import ROOT

FOLDERS = ("benchmarks", "examples", "fuzz", "tests")


def modules(folder: str) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert len(paths) > 2
    return {dotted(p): ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(tree: ast.Module) -> set[str]:
    """Every module a file might mean, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_changes_where_modules_are_found(folder: str):
    for name, tree in modules(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("sys", "path"), f"{name}, line {node.lineno}"


def test_imports_among_benchmarks_and_examples_have_no_circle():
    trees = modules("benchmarks") | modules("examples")
    graph = {name: imported(tree) & trees.keys() - {name} for name, tree in trees.items()}
    assert "benchmarks.theory_records" in graph["benchmarks.theory_tables"]
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_examples_know_nothing_of_benchmarks():
    for name, tree in modules("examples").items():
        assert not [m for m in imported(tree) if m.startswith("benchmarks")], name
