"""Renderers: every record that reaches a screen or a file, as text or as JSON.

None of them reads a file or looks at a tensor. What comes out of RENDERERS has been through `visible`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

from clair_cli.reasons import Rule
from clair_cli.renderers import explanation, inspection, json, selection, text, verification
from clair_cli.renderers.safe import visible
from clair_cli.report import Report
from clair_cli.results import (
    Explained,
    InspectedFolder,
    Inspection,
    Rules,
    Selection,
    Verification,
)

FormatName = Literal["text", "json"]
Record: TypeAlias = (
    Report | Inspection | InspectedFolder | Selection | Verification | Explained | Rule | Rules
)
Renderer = Callable[[Record], str]

TABLE: dict[type, dict[FormatName, Callable[[Any], str]]] = {
    Report: {"text": text.render, "json": json.render},
    Inspection: {"text": inspection.as_text, "json": inspection.as_json},
    InspectedFolder: {"text": inspection.folder_as_text, "json": inspection.as_json},
    Selection: {"text": selection.as_text, "json": selection.as_json},
    Verification: {"text": verification.as_text, "json": verification.as_json},
    Explained: {"text": explanation.as_text, "json": explanation.as_json},
    Rule: {"text": explanation.rule_as_text, "json": explanation.rule_as_json},
    Rules: {"text": explanation.rules_as_text, "json": explanation.rules_as_json},
}
"""How each record is written in each format."""


def _renderer(name: FormatName) -> Renderer:
    return lambda record: visible(TABLE[type(record)][name](record))


RENDERERS: dict[str, Renderer] = {name: _renderer(name) for name in get_args(FormatName)}
"""By format: takes any record of TABLE."""
