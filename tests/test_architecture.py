"""The layers, read from the imports themselves, and what must not be in the source at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clair_cli

PACKAGE = Path(clair_cli.__file__).parent
LAYERS = [
    row.split()
    for row in (
        "entry",
        "cli",
        "pipeline inspection selection",
        "writing",
        "membership",
        "scan",
        "noise",
        "renderers engines formats judge refinement",
        "publish evidence strength",
        "decompose frame leftovers",
        "stack",
        "linalg agreement places manifest",
        "cohort",
        "report",
        "settings",
        "errors",
    )
]
"""A module, or a folder of them, imports only from the rows below, and inside its folder."""

DEPTH = {name: depth for depth, row in enumerate(LAYERS) for name in row}
TORCH_LADEN = {"refinement", "decompose", "frame", "stack", "linalg"}
SPEAKERS = {"entry", "cli"}
FORBIDDEN = {"pickle", "marshal", "shelve", "mmap", "joblib"}
"""They run code from a file, or die with it when it is truncated."""

SOURCES = {p.relative_to(PACKAGE): ast.parse(p.read_text()) for p in PACKAGE.rglob("*.py")}


def part(path: Path) -> str:
    """The name in LAYERS that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(tree: ast.AST) -> set[str]:
    """The parts of clair that `tree` imports."""
    names = (n.split(".") for n in imported(tree) if n.startswith("clair_cli."))
    return {n[1] for n in names} & (DEPTH.keys() | {part(p) for p in SOURCES})


def test_every_file_has_its_layer() -> None:
    assert {part(p) for p in SOURCES} - {"__init__"} == DEPTH.keys()


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) != "__init__"], ids=str)
def test_imports_go_only_downwards(path: Path) -> None:
    own = part(path)
    upwards = {n for n in inner(SOURCES[path]) if n != own and DEPTH[n] <= DEPTH[own]}
    assert not upwards


def test_the_layers_are_really_there() -> None:
    found = {part(p): inner(tree) for p, tree in SOURCES.items()}
    assert "pipeline" in found["cli"]
    assert "errors" in found["settings"]
    assert found["publish"] == {"errors", "leftovers", "manifest"}
    assert found["errors"] == set()


def test_torch_is_loaded_only_where_numbers_begin() -> None:
    names = ["clair_cli", *(f"clair_cli.{name}" for name in DEPTH.keys() - TORCH_LADEN)]
    loaded = (
        "import sys, importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(name + ' loads torch')\n"
        "import clair_cli.detection.stacks\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def speaks(node: ast.AST) -> bool:
    """print(...), input(...), or anything of sys.stdout, sys.stderr, sys.exit."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"print", "input", "exit", "quit"}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr) in {
            ("sys", name) for name in ("stdout", "stderr", "stdin", "exit", "__stdout__")
        }
    return isinstance(node, ast.ImportFrom) and node.module == "sys"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_only_the_command_line_speaks(path: Path) -> None:
    said = any(map(speaks, ast.walk(SOURCES[path])))
    assert said == (part(path) in SPEAKERS)


def runs_code(node: ast.AST) -> bool:
    """eval, exec, compile, __import__, or torch.load."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in {"eval", "exec", "compile", "__import__"}
    return ast.unparse(node.func) in {"torch.load", "torch.jit.load", "np.load", "numpy.load"}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_can_run_code_from_a_file_or_map_it(path: Path) -> None:
    tree = SOURCES[path]
    assert not {n.split(".")[0] for n in imported(tree)} & FORBIDDEN
    assert not any(map(runs_code, ast.walk(tree)))


def uses_safetensors(tree: ast.AST) -> bool:
    return any(name.split(".")[0] == "safetensors" for name in imported(tree))


def test_the_mapping_reader_sees_only_what_clair_wrote() -> None:
    users = {p.as_posix() for p, tree in SOURCES.items() if uses_safetensors(tree)}
    assert users <= {"formats/safetensors_file.py"}


def test_the_checks_above_see_what_they_look_for() -> None:
    bad = ast.parse("import mmap\nprint(1)\ntorch.load(f)\nfrom clair_cli import cli")
    assert "mmap" in set(imported(bad))
    assert any(map(speaks, ast.walk(bad)))
    assert any(map(runs_code, ast.walk(bad)))
    assert inner(bad) == {"cli"}
