"""One hostile client costs the others at most as much again as they cost, and a constant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clair_cli.output import publish
from clair_cli.report import to_dict
from fuzz import clients, documents, kept
from fuzz.clients import ByteDraw
from fuzz.targets import TARGETS
from tests.helpers.commands import ENVIRONMENT, SAMPLES, SCRIPT
from tests.helpers.reports import COMPLETE
from tests.hostile.costly import COSTLY, HOSTILE, SAME, save_honest

SECONDS, MEMORY = 6.0, 256 * 2**20
"""The constant: what any one client may cost, of one core and of memory."""
TIMES = 2


@dataclass(frozen=True)
class Cost:
    """What a run of the command took: seconds of the processor, and bytes at its peak."""

    seconds: float
    memory: int
    report: dict[str, Any]


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    print(code, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=file)
"""
"""From a small process of its own: what a process is started from counts in its peak."""


def run(*args: object, codes: tuple[int, ...] = (0, 1)) -> Cost:
    """clair in a process of its own, which is measured, and must end with one of these codes."""
    with tempfile.NamedTemporaryFile("r") as file:
        command = [sys.executable, "-ISc", MEASURED, file.name, str(SCRIPT), *map(str, args)]
        done = subprocess.run([*command, "-f", "json"], env=ENVIRONMENT, capture_output=True)
        code, seconds, memory = file.read().split()
    assert int(code) in codes, (done.stdout[-500:], done.stderr[-500:])
    return Cost(float(seconds), int(memory), json.loads(done.stdout or b"{}"))


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {c["id"]: c["verdict"] for c in report["clients"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    """What detecting and refining the honest clients costs."""
    folder = tmp_path_factory.mktemp("alone")
    save_honest(folder / "round")
    return {
        "detect": run("detect", folder / "round"),
        "refine": run("refine", folder / "round", "--out", folder / "out", "--global"),
    }


def within(found: Cost, base: Cost) -> bool:
    """Whether it costs at most as much again, and the constant."""
    time, memory = TIMES * base.seconds + SECONDS, TIMES * base.memory + MEMORY
    print(f"{found.seconds:.1f} of {base.seconds:.1f} s, {found.memory >> 20} MiB")
    return found.seconds <= time and found.memory <= memory


@pytest.mark.parametrize("name", COSTLY)
def test_a_hostile_client_costs_at_most_as_much_again_and_a_constant(
    name: str, alone: dict[str, Cost], tmp_path: Path
) -> None:
    """Refining detects first: what it costs is within the bound of detecting, too, or that is run."""
    names = save_honest(tmp_path / "round")
    COSTLY[name](tmp_path / "round")
    found = run("refine", tmp_path / "round", "--out", tmp_path / "out", "--global")
    assert within(found, alone["refine"])
    if not within(found, alone["detect"]):
        assert within(run("detect", tmp_path / "round"), alone["detect"])
    said = verdicts(found.report)
    assert {said[n] for n in names} == {"benign"}, said
    assert {c["id"] for c in found.report["refinement"]["clients"]} >= set(names)
    assert any(client.startswith(HOSTILE) for client in said)
    assert name not in SAME or said[HOSTILE] == "benign"


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `clair select` chooses from."""
    out = tmp_path_factory.mktemp("candidates") / "out"
    run("refine", SAMPLES, "--out", out, "--path", "0,1")
    return out


DOCUMENTS: dict[str, Any] = {
    "report": to_dict(COMPLETE),
    "manifest": documents.MANIFEST,
    "scores": documents.SCORES,
    "counts": documents.COUNTS,
    "candidates": None,
}
"""That beside candidates is the one that they have."""


KEPT: dict[str, Callable[[], bytes]] = {
    "sketch": partial(kept.honest, "sketch"),
    "reference": partial(kept.honest, "reference"),
    "ledger": kept.rounds,
    "decisions": kept.options,
}
"""What clair writes for its own later use, or its user for it: an honest one."""


COVERED = {
    "header": "drawn: ",
    "npz": "zips: ",
    "config": "configs: ",
    "client": "drawn: ",
    "configs": "configs: ",
    "zips": "zips: ",
    "report": "report",
    "manifest": "manifest",
    "candidates": "candidates",
    "counts": "counts",
    "same": "stored otherwise",
    **{name: name for name in kept.SPOILED},
}
"""Target of the fuzzers -> what is measured here that its generator has made."""


def test_every_generator_of_the_fuzzers_is_measured() -> None:
    assert COVERED.keys() == TARGETS.keys()
    measured = [*COSTLY, *DOCUMENTS, *KEPT]
    assert [t for t, what in COVERED.items() if not any(m.startswith(what) for m in measured)] == []


@pytest.mark.parametrize("kind", KEPT)
def test_a_hostile_file_that_clair_keeps_costs_at_most_as_much_again_and_a_constant(
    kind: str, tmp_path: Path
) -> None:
    honest = KEPT[kind]()
    base = kept_read(kind, honest, tmp_path / "honest")
    draws = [ByteDraw(bytes((i * s) % 251 for i in range(64))) for s in (37, 113)]
    made = [
        kept.spoiled(draw, honest)
        if kind in ("sketch", "reference")
        else clients.damaged(draw, honest[: len(honest) // 2] + honest)
        for draw in draws
    ]
    for number, data in enumerate([*made, honest * 400, b"[" * 2**22, b"9" * 2**22]):
        assert within(kept_read(kind, data, tmp_path / f"{number}"), base), (kind, number)


def kept_read(kind: str, data: bytes, folder: Path) -> Cost:
    """The command that reads the file, in a process of its own."""
    folder.mkdir()
    place, codes = kept.cohort(folder / "round"), (0, 1, 2, 3)
    if kind == "sketch":
        (place / "client-9.safetensors").write_bytes(data)
        return run("detect", place, "--as", "update", codes=codes)
    name = {"reference": "r.clair", "ledger": "rounds.jsonl", "decisions": "clair.toml"}[kind]
    (folder / name).write_bytes(data)
    if kind == "reference":
        upload = (place / "client-0.npz", "--against", folder / name)
        return run("check", *upload, "--as", "update", codes=codes)
    if kind == "ledger":
        return run("detect", place, "--as", "update", "--history", folder / name, codes=codes)
    return run("config", "show", "--config", folder / name, codes=codes)


def test_folders_nested_without_end_cost_nothing(candidates: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(candidates, tmp_path / "out"))
    base = run("verify", out, codes=(0,))
    at = os.open(out, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert within(run("verify", out, codes=(1,)), base)
    subprocess.run(["rm", "-rf", str(out / "d")], check=True)  # too deep for pytest


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_hostile_document_costs_at_most_as_much_again_and_a_constant(
    kind: str, candidates: Path, tmp_path: Path
) -> None:
    """What is read back: changed field by field as the fuzzers do, or as large as it may be."""
    honest = DOCUMENTS[kind] or json.loads((candidates / "report.json").read_bytes())
    base = read_back(kind, json.dumps(honest).encode(), tmp_path / "honest", candidates)
    made = [
        documents.changed(ByteDraw(bytes((i * s) % 251 for i in range(64))), honest)
        for s in (37, 113)
    ]
    large = json.dumps([{"x": "y" * 10}] * 200_000).encode()
    for number, data in enumerate([*made, large, b"[" * 2**22, b"9" * 2**22]):
        assert within(read_back(kind, data, tmp_path / f"{number}", candidates), base), data[:200]


def read_back(kind: str, data: bytes, folder: Path, candidates: Path) -> Cost:
    """The command that reads the document, in a process of its own."""
    folder.mkdir()
    file = folder / ("manifest.json" if kind == "manifest" else f"{kind}.json")
    file.write_bytes(data)
    if kind == "report":
        return run("report", file, codes=(0, 1, 2, 3))
    if kind == "manifest":
        return run("verify", folder, codes=(0, 1, 2))
    if kind == "counts":
        arguments = ("--weights", file, "--out", folder / "out")
        return run("refine", SAMPLES, *arguments, codes=(0, 2, 3))
    if kind == "candidates":
        own = Path(shutil.copytree(candidates, folder / "own"))
        (own / "report.json").write_bytes(data)
        (own / "manifest.json").unlink()
        publish.write_manifest(own, "0")
        return run("select", own, "--eval", "echo {adapter} 0.5", codes=(0, 1, 2, 3))
    arguments = ("--eval", "echo {adapter} 0.5", "--resume", file, "--out", folder / "chosen")
    return run("select", candidates, *arguments, codes=(0, 1, 2))
