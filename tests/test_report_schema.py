"""report.schema.json describes what clair really writes, and refuses what it never would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from jsonschema import Draft202012Validator, ValidationError

import clair_cli
from clair_cli import Settings
from clair_cli.pipeline import detect, refine
from clair_cli.renderers.text import render
from clair_cli.report import (
    VERDICTS,
    CauseName,
    InitialisationName,
    Report,
    SolverRun,
    from_dict,
    to_dict,
)
from clair_cli.settings import FailOn
from tests.helpers.commands import CLIENTS, WEIGHTS, samples
from tests.helpers.reports import COMPLETE, NO_VERDICT, hostile
from tests.test_report import places, spoiled

SCHEMA = json.loads((Path(clair_cli.__file__).parent / "report.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


def with_broken(adapters: Path, tmp: Path) -> Report:
    folder = samples(tmp / "round")
    (folder / CLIENTS[0] / WEIGHTS).write_bytes(b"")
    return detect(folder)


RUNS: dict[str, Callable[[Path, Path], Report]] = {
    "detect": lambda adapters, tmp: detect(adapters, command="clair detect x"),
    "broken": with_broken,
    "no verdict": lambda adapters, tmp: detect(samples(tmp / "two", CLIENTS[:2])),
    "refine": lambda adapters, tmp: refine(adapters, tmp / "out"),
    "refine with global": lambda adapters, tmp: refine(
        adapters, tmp / "out", Settings(write_global=True, rank=4, fail_on="broken")
    ),
}


def valid(data: Any) -> bool:
    return VALIDATOR.is_valid(json.loads(json.dumps(data, allow_nan=False)))


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", RUNS)
def test_real_reports_are_valid(name: str, adapters: Path, tmp_path: Path) -> None:
    data = to_dict(RUNS[name](adapters, tmp_path))
    VALIDATOR.validate(data)
    assert len(data["clients"]) == (2 if name == "no verdict" else 8)
    assert bool(data["refinement"]) == name.startswith("refine")
    if data["refinement"]:
        VALIDATOR.validate(json.loads((tmp_path / "out" / "report.json").read_text()))
        assert bool(data["refinement"]["global"]) == ("global" in name)


@pytest.mark.parametrize(
    "report", [COMPLETE, NO_VERDICT, hostile()], ids=["complete", "no", "evil"]
)
def test_handmade_reports_are_valid_and_so_are_their_successors(report: Report) -> None:
    data = to_dict(report)
    VALIDATOR.validate(data)
    data |= {"schema_version": "1.7", "newer": {}}
    data["clients"][0]["newer"] = data["counts"]["newer"] = data["population"]["newer"] = []
    VALIDATOR.validate(data)


def objects(schema: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every sub-schema that is an object with fields of its own."""
    if isinstance(schema, dict) and schema.get("type") == "object":
        yield path, schema
    items = schema.items() if isinstance(schema, dict) else enumerate(schema)
    for key, child in items:
        if isinstance(child, dict | list) and key not in ("if", "then", "else", "allOf"):
            yield from objects(child, (*path, key))


def test_every_field_is_described_and_nothing_forbids_new_ones() -> None:
    found = dict(objects(SCHEMA))
    assert len(found) > 10
    for path, schema in found.items():
        assert "additionalProperties" not in schema, path
        assert set(schema["required"]) <= schema["properties"].keys(), path
        for name, field in schema["properties"].items():
            assert "description" in field or "$ref" in field, (*path, name)


FIRST = ("clients", 0)
WRONG = [
    (("schema_version",), "2.0"),
    (("schema_version",), 1.0),
    (("tool", "name"), "other"),
    (("run", "duration_s"), "3 s"),
    (("run", "duration_s"), -1),
    (("run", "environment"), None),
    (("inputs", "clients", 0, "files", 0, "sha256"), "abc"),
    (("inputs", "clients", 0, "files", 0, "size"), -1),
    (("settings", "fail_on"), "always"),
    (("status",), "done"),
    (("exit_code",), 3),
    (("exit_code",), True),
    (("counts", "benign"), 1.5),
    (("counts", "benign"), -1),
    (("population", "modules", 0, "shape"), [64]),
    (("population", "findings", 0, "code"), "CLR1"),
    (("population", "solver"), {}),
    (("population", "solver", "status"), "fine"),
    (("population", "solver", "iterations"), -1),
    (("population", "solver", "refitted"), None),
    ((*FIRST, "id"), ""),
    ((*FIRST, "verdict"), "harmless"),
    ((*FIRST, "verdict"), None),
    ((*FIRST, "score"), "0.4"),
    ((*FIRST, "score"), -0.5),
    ((*FIRST, "limit"), 0),
    (("clients", 3, "reasons"), []),
    (("clients", 6, "reasons"), []),
    (("clients", 6, "score"), 1.0),
    ((*FIRST, "modules", 0, "norm"), None),
    (("refinement", "strength"), 1.5),
    (("refinement", "side"), "middle"),
    (("refinement", "initialisation"), "none of these"),
    (("refinement", "gap"), 0.5),
    (("refinement", "expected"), {}),
    (("refinement", "warnings"), [1]),
    (("refinement", "clients", 0, "rank"), 0),
    (("refinement", "clients", 0, "weight"), 1.5),
    (("refinement", "clients", 0, "unchanged"), 0),
    (("refinement", "global"), {}),
    (("refinement",), {}),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=str)
def test_a_wrong_value_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ValidationError):
        VALIDATOR.validate(spoiled(to_dict(COMPLETE), path, value))


SINCE_1_1 = {"consensus", "solver", "stability", "depends_on"}
"""Fields that a report of schema 1.0 does not have."""
REFINEMENT_1_1 = {
    "refinement": {
        *("inside", "side", "gain", "knowledge", "initialisation", "common_share", "spread"),
        *("spectrum", "gap", "gap_after", "expected", "warnings"),
        *("replicates_agree", "max_lora_rank"),
    },
    "clients": {"strength", "weight", "deviation", "averaged_away", "unchanged"},
    "global": {"truncation_error"},
}
"""The same within `refinement`, by the name of the part."""


def since_1_1(path: tuple[Any, ...]) -> bool:
    part = next(p for p in path[-2::-1] if isinstance(p, str)) if len(path) > 1 else ""
    recent = REFINEMENT_1_1.get(part, set()) if path[0] == "refinement" else set()
    return path[-1] in SINCE_1_1 | recent


SINCE_1_2 = {
    ("population", "minorities"),
    ("counts", "minority"),
    ("clients", "cause"),
    ("clients", "rarity"),
    ("baseline",),
    ("history",),
    ("acceptance",),
    ("clients", "accepted"),
    *(("refinement", name) for name in ("tasks", "guessed", "coherence", "full_matrices")),
    *(("refinement", "clients", name) for name in ("group", "error")),
    ("refinement", "modules", "mean_error"),
    ("refinement", "global", "rank"),
    *(("population", name) for name in ("agreement", "spectra")),
    *(("population", "modules", name) for name in ("spectrum", "sketch_error")),
    ("inputs", "group"),
    ("run", "timings"),
    ("clients", "rank"),
}
"""Fields that older reports lack, with the elements of lists left out of their places."""


def since_1_2(path: tuple[Any, ...]) -> bool:
    return tuple(p for p in path if isinstance(p, str)) in SINCE_1_2


def test_a_missing_field_is_refused() -> None:
    data = to_dict(COMPLETE)
    fields = [
        p for p in places(data) if isinstance(p[-1], str) and not since_1_1(p) and not since_1_2(p)
    ]
    assert len(fields) > 60
    assert [p for p in fields if valid(spoiled(data, p, ...))] == []


def test_a_report_of_schema_1_0_is_accepted_and_read() -> None:
    data = to_dict(COMPLETE)
    data["schema_version"] = "1.0"
    for part in [data["population"], *data["clients"]]:
        for name in SINCE_1_1 & part.keys():
            del part[name]
    done = data["refinement"]
    for name, part in [("refinement", done), ("global", done["global"])]:
        for field in REFINEMENT_1_1[name]:
            del part[field]
    for client in done["clients"]:
        for field in REFINEMENT_1_1["clients"]:
            del client[field]
    assert valid(data)
    report = from_dict(data)
    assert report.population.consensus is report.population.solver is None
    assert valid(to_dict(report))
    assert {c.stability for c in report.clients} == {None}
    assert "refined 3 clients" in render(report)


def test_no_verdict_allows_no_other_exit_code_and_no_refinement() -> None:
    data = to_dict(NO_VERDICT)
    assert valid(data)
    assert not valid(data | {"exit_code": 0})
    assert not valid(data | {"refinement": to_dict(COMPLETE)["refinement"]})


def test_a_minority_and_every_word_of_the_records_is_valid() -> None:
    """Each word that a record may hold, the schema knows; so no report of clair's own breaks it."""
    data = to_dict(COMPLETE)
    reason = {"code": "CLR401", "message": "x", "value": None, "limit": None}
    said = {"score": 4.0, "limit": 3.0, "reasons": [reason]}
    for verdict in VERDICTS:
        numbers = {"score": None} if verdict == "broken" else {}
        VALIDATOR.validate(
            spoiled(data, FIRST, data["clients"][0] | said | {"verdict": verdict} | numbers)
        )
    for fail_on in get_args(FailOn):
        VALIDATOR.validate(spoiled(data, ("settings", "fail_on"), fail_on))
    for status in get_args(get_type_hints(SolverRun)["status"]):
        VALIDATOR.validate(spoiled(data, ("population", "solver", "status"), status))
    for name in get_args(InitialisationName):
        VALIDATOR.validate(spoiled(data, ("population", "consensus", "initialisation"), name))
    cause = {
        "content": 1.0,
        "error": 1.0,
        "size": 1.0,
        "company": -0.5,
        "nearest": "",
        "head": None,
    }
    for kind in (None, *get_args(CauseName)):
        VALIDATOR.validate(spoiled(data, (*FIRST, "cause"), cause | {"kind": kind}))
