"""Every record that reaches a screen has a renderer of each format; none steers a terminal."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

import pytest

from clair_cli import results
from clair_cli.accepted import Accept
from clair_cli.reasons import Rule
from clair_cli.renderers import RENDERERS, TABLE, FormatName, Record
from clair_cli.report import Reason, Report
from clair_cli.results import (
    Apart,
    Checked,
    Choice,
    Configured,
    Difference,
    Fitted,
    InspectedClient,
    InspectedFolder,
    InspectedModule,
    Inspection,
    NotInspected,
    Option,
    Rules,
    Selection,
    SharedFull,
    SketchWritten,
    Survey,
    Surveyed,
    Tried,
    Verification,
    explained,
)
from tests.helpers.reports import HOSTILE, SHA, hostile

TRIED = (
    Tried(f"strength-0/{HOSTILE}", 0.0, 0.123456789012345),
    Tried("strength-1/c", 1.0, None, HOSTILE),
)
MODULE = InspectedModule(HOSTILE, 4, 3, 2, 0.5, "F32", 1 / 3)
RULE = Rule("CLR101", HOSTILE, ("broken",), HOSTILE, HOSTILE, HOSTILE)
EVIL: Report = hostile()
RECORDS: dict[str, Record] = {
    "report": EVIL,
    "explained": explained(EVIL),
    "rule": RULE,
    "rules": Rules((RULE,)),
    "configured": Configured(
        HOSTILE, (Option("detect", "base", HOSTILE, "file", HOSTILE),),
        (Accept(client=HOSTILE, codes=("CLR203",), reason=HOSTILE),), (HOSTILE,), (HOSTILE,),
    ),
    "inspection": Inspection(
        HOSTILE, "peft", HOSTILE, ((HOSTILE, 8, SHA),), (MODULE,), (HOSTILE,) * 7,
        (Reason("CLR114", HOSTILE),),
    ),
    "folder": InspectedFolder(
        HOSTILE,
        (
            InspectedClient(HOSTILE, HOSTILE, HOSTILE, 1, (4,), 1, (Reason("CLR114", HOSTILE),)),
            InspectedClient(HOSTILE, error=Reason("CLR101", HOSTILE)),
        ),
        1,
        (SharedFull(HOSTILE, (3, 2), 2),),
        (Reason("CLR304", HOSTILE),),
    ),
    "selection": Selection(
        HOSTILE, True, (Choice(HOSTILE, TRIED, TRIED[0]), Choice("c", TRIED[1:], None))
    ),
    "not inspected": NotInspected(HOSTILE, Reason("CLR101", HOSTILE)),
    "survey": Survey(
        HOSTILE, "base", "contaminated", (Surveyed(HOSTILE, EVIL),),
        (Apart(HOSTILE, HOSTILE), Apart(HOSTILE, None, Reason("CLR104", HOSTILE))),
        ((HOSTILE, Reason("CLR101", HOSTILE)),), (Reason("CLR304", HOSTILE),), 1,
    ),
    "sketch": SketchWritten(HOSTILE, 8, SHA, HOSTILE, 2, 64, 0, (HOSTILE,)),
    "fitted": Fitted(HOSTILE, 8, SHA, 64, 0, 2, EVIL.counts, 3.0, 1.0, 0.1, (HOSTILE,)),
    "checked": Checked(
        "complete", 1, "contaminated", next(c for c in EVIL.clients if "evil" in c.client), HOSTILE,
        SHA, 3, (HOSTILE,), (Reason("CLR304", HOSTILE),),
    ),
    "verification": Verification(HOSTILE, 3, (Difference(HOSTILE, HOSTILE),)),
}  # fmt: skip


def test_the_table_covers_every_record_in_every_format() -> None:
    formats = set(get_args(FormatName))
    assert {type(r) for r in RECORDS.values()} == set(get_args(Record)) == TABLE.keys()
    assert all(set(found) == formats for found in TABLE.values())
    assert set(RENDERERS) == formats
    whole = {"Inspection", "InspectedFolder", "Selection", "Verification", "Explained", "Rules"}
    whole |= {"Configured", "NotInspected", "Survey", "SketchWritten", "Fitted", "Checked"}
    parts = {"InspectedModule", "InspectedFull", "InspectedClient", "SharedFull"}
    parts |= {"Tried", "Choice", "Difference", "Explanation", "Option", "Surveyed", "Apart"}
    assert {n for n, kind in vars(results).items() if _is_own_record(kind)} == whole | parts


def _is_own_record(kind: object) -> bool:
    own = getattr(kind, "__module__", None) == results.__name__
    return own and dataclasses.is_dataclass(kind)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("renderer", RENDERERS)
def test_nothing_in_a_record_steers_a_terminal(name: str, renderer: str) -> None:
    shown = RENDERERS[renderer](RECORDS[name])
    assert "evil" in shown
    assert shown.endswith("\n")
    assert not {c for c in shown if ord(c) < 0x20} - {"\n"}
    assert not {"\x7f", "\x9b", "\u202e", "\udcff"} & set(shown)


def test_json_of_an_inspection_has_every_field_to_the_last_digit() -> None:
    found = RECORDS["inspection"]
    data = json.loads(RENDERERS["json"](found))
    assert list(data) == [f.name for f in dataclasses.fields(Inspection)]
    assert data["modules"] == [dataclasses.asdict(MODULE)]
    assert data["modules"][0]["norm"] == 1 / 3


def test_json_of_a_selection_names_what_was_chosen() -> None:
    data = json.loads(RENDERERS["json"](RECORDS["selection"]))
    assert [c["chosen"] for c in data["clients"]] == [TRIED[0].path, None]
    assert data["clients"][0]["candidates"] == [dataclasses.asdict(t) for t in TRIED]
    assert list(data) == ["schema_version", "tool", "command", "higher_is_better", "clients"]


def test_json_of_a_verification_names_every_difference() -> None:
    data = json.loads(RENDERERS["json"](RECORDS["verification"]))
    assert data["differences"] == [{"name": HOSTILE, "difference": HOSTILE}]
    own = ["folder", "files", "differences", "compared", "signed", "checked"]
    assert list(data) == ["schema_version", "tool", *own]


@pytest.mark.parametrize(
    ("bests", "code"), [([True, True], 0), ([True, False], 1), ([False, False], 3)]
)
def test_a_selection_knows_how_it_ended(bests: list[bool], code: int) -> None:
    choices = tuple(Choice("c", TRIED, TRIED[0] if best else None) for best in bests)
    assert Selection("x", False, choices).exit_code == code
