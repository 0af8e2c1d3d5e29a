"""JSON Schema, as much of it as clair's own schema uses: the first place where a value breaks it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]
TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, Mapping),
    "number": lambda v: _is_number(v),
    "integer": lambda v: _is_number(v) and v == math.floor(v),
}
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda v, bound: not _is_number(v) or v >= bound,
    "maximum": lambda v, bound: not _is_number(v) or v <= bound,
    "exclusiveMinimum": lambda v, bound: not _is_number(v) or v > bound,
    "minLength": lambda v, bound: not isinstance(v, str) or len(v) >= bound,
    "maxLength": lambda v, bound: not isinstance(v, str) or len(v) <= bound,
    "pattern": lambda v, bound: not isinstance(v, str) or re.search(bound, v) is not None,
    "minItems": lambda v, bound: not isinstance(v, list) or len(v) >= bound,
    "maxItems": lambda v, bound: not isinstance(v, list) or len(v) <= bound,
    "const": lambda v, bound: _same(v, bound),
    "enum": lambda v, bound: any(_same(v, b) for b in bound),
    "type": lambda v, bound: any(
        TYPES[t](v) for t in ([bound] if isinstance(bound, str) else bound)
    ),
}
"""Keyword -> whether a value keeps to it."""


@cache
def schema_texts() -> dict[str, str]:
    """The schemas of the package by the document that they are of, as they lie there."""
    files = sorted(Path(__file__).parent.glob("*.schema.json"))
    return {f.name.removesuffix(".schema.json"): f.read_text(encoding="utf-8") for f in files}


@cache
def report_schema() -> Schema:
    """What every report of schema 1.x keeps to."""
    found: Schema = json.loads(schema_texts()["report"])
    return found


def violation(
    value: Any, schema: Schema, root: Schema | None = None, where: str = ""
) -> str | None:
    """`clients[3].score: expected ..., found ...` of the first violation, None where there is none."""
    root = schema if root is None else root
    if "$ref" in schema:
        inner = root["$defs"][schema["$ref"].rpartition("/")[2]]
        if found := violation(value, inner, root, where):
            return found
    for word, holds in BOUNDS.items():
        if word in schema and not holds(value, schema[word]):
            return f"{where or 'it'}: expected {word} {_words(schema[word])}, found {_shown(value)}"
    return (
        _in_object(value, schema, root, where)
        or _in_list(value, schema, root, where)
        or _in_branches(value, schema, root, where)
    )


def _in_object(value: Any, schema: Schema, root: Schema, where: str) -> str | None:
    if not isinstance(value, Mapping):
        return None
    for name in schema.get("required", ()):
        if name not in value:
            return f"{_below(where, name)} is missing"
    for name, inner in schema.get("properties", {}).items():
        if name in value and (found := violation(value[name], inner, root, _below(where, name))):
            return found
    return None


def _in_list(value: Any, schema: Schema, root: Schema, where: str) -> str | None:
    if "items" in schema and isinstance(value, list):
        for number, item in enumerate(value):
            if found := violation(item, schema["items"], root, f"{where}[{number}]"):
                return found
    return None


def _in_branches(value: Any, schema: Schema, root: Schema, where: str) -> str | None:
    """oneOf and anyOf, whose branches exclude each other here; allOf; if, then, else."""
    for word in ("oneOf", "anyOf"):
        found = [violation(value, branch, root, where) for branch in schema.get(word, ())]
        if found and None not in found:
            return found[-1]
    for branch in schema.get("allOf", ()):
        if text := violation(value, branch, root, where):
            return text
    if "if" in schema:
        chosen = "else" if violation(value, schema["if"], root, where) else "then"
        return violation(value, schema.get(chosen, {}), root, where)
    return None


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (isinstance(value, int) or math.isfinite(value))


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _words(bound: Any) -> str:
    if isinstance(bound, list):
        return " or ".join("null" if b is None else str(b) for b in bound)
    return str(bound)


def _shown(value: Any) -> str:
    return repr(value)[:40]
