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
LAYERS = {
    "start": "entry",
    "commands": "cli integrations",
    "steps": "pipeline",
    "what is done with verdicts": "beforehand refinement renderers sketching uploads",
    "what is said of adapters": "detection opening inspection selection",
    "how adapters are read, and where": "formats engines evaluation scores",
    "records, and folders of files": "acceptance baseline cache cohort history ledger output rarity "
    "report results trend update",
    "foundations": "settings detection.calibration refinement.calibration constants decimals errors "
    "accepted clock here linalg schema strict_json progress reasons records refined rows _version",
}
"""Eight floors. A part, which is a module or a folder of them, imports only from the floors below. On
the two lowest neighbours may know each other. There is no circle anywhere."""

DEPTH = {name: depth for depth, row in enumerate(LAYERS.values()) for name in row.split()}
OF_EXTRAS = {"integrations.flower": "flwr", "integrations.nvflare": "nvflare"}
"""Modules that import the framework of an extra, which need not be there."""
ON_DEMAND = {"engines.cluster": "ray", "formats.remote": "fsspec"}
"""Modules that import the library of an extra when they are asked for it, and not before."""
TORCH_LADEN = {"detection", "refinement", "linalg"}
SPEAKERS = {"entry", "cli"}
GROUND = len(LAYERS) - 2
"""From this floor on neighbours may know each other."""
FORBIDDEN = {"pickle", "marshal", "shelve", "mmap", "joblib"}
"""They run code from a file, or die with it when it is truncated."""

SOURCES = {p.relative_to(PACKAGE): ast.parse(p.read_text()) for p in PACKAGE.rglob("*.py")}
MODULES = {".".join(p.with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}


def part(module: str) -> str:
    """The name in LAYERS that a dotted module belongs to, the longest that fits."""
    names = module.split(".")
    fits = (".".join(names[:n]) for n in range(len(names), 0, -1))
    return next((name for name in fits if name in DEPTH), names[0])


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(tree: ast.AST) -> set[str]:
    """The modules of clair that `tree` imports, dotted, without the package's name."""
    found = set()
    for name in imported(tree):
        if name.startswith("clair_cli."):
            name = name.removeprefix("clair_cli.")
            known = name if name in MODULES else name.rpartition(".")[0]
            found.add(known if known in MODULES else name)
    return found


def test_every_module_is_on_one_of_eight_floors() -> None:
    rows = [row.split() for row in LAYERS.values()]
    assert len(rows) <= 8
    assert len(DEPTH) == sum(map(len, rows))
    assert {part(m) for m in MODULES} - {"__init__"} == DEPTH.keys()


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__init__"}))
def test_imports_go_only_downwards(module: str) -> None:
    own = part(module)
    used = {part(n) for n in inner(SOURCES[MODULES[module]])} - {own}
    least = DEPTH[own] + (DEPTH[own] < GROUND)
    assert {n for n in used if DEPTH[n] < least} == set()


def test_there_is_no_circle_anywhere() -> None:
    left = {m: inner(SOURCES[p]) - {m} for m, p in MODULES.items() if m != "__init__"}
    while free := {m for m, used in left.items() if not used & left.keys()}:
        left = {m: used for m, used in left.items() if m not in free}
    assert left == {}


def test_the_floors_are_really_there() -> None:
    found = {m: inner(SOURCES[p]) for m, p in MODULES.items()}
    assert "pipeline" in found["cli.detect"]
    assert "errors" in found["settings"]
    assert found["output.manifest"] == {"errors", "records", "strict_json"}
    assert found["errors"] == set()
    assert "detection.judging" in found["pipeline"]


def test_torch_is_loaded_only_where_numbers_begin() -> None:
    light = {"detection", "refinement", "detection.calibration", "refinement.calibration"}
    names = sorted(
        m
        for m in MODULES.keys() - OF_EXTRAS.keys()
        if m in light or (part(m) not in TORCH_LADEN and m != "__init__")
    )
    assert len(names) > 30
    loaded = (
        "import sys, importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module('clair_cli.' + name)\n"
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
    assert said <= (part(path.parts[0].removesuffix(".py")) in SPEAKERS)


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


def test_a_library_on_demand_is_of_one_module_and_not_loaded_before() -> None:
    for module, library in ON_DEMAND.items():
        roots = {m: {n.split(".")[0] for n in imported(SOURCES[p])} for m, p in MODULES.items()}
        assert {m for m, used in roots.items() if library in used} == {module}
        loaded = f"import sys, clair_cli.{module}; sys.exit({library!r} in sys.modules)"
        assert subprocess.run([sys.executable, "-c", loaded]).returncode == 0


def test_only_the_module_of_an_extra_imports_its_framework() -> None:
    for module, framework in OF_EXTRAS.items():
        roots = {m: {n.split(".")[0] for n in imported(SOURCES[p])} for m, p in MODULES.items()}
        assert {m for m, used in roots.items() if framework in used} == {module}
    assert not {m for m, p in MODULES.items() if inner(SOURCES[p]) & OF_EXTRAS.keys()}
