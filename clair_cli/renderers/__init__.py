"""Renderers: a report to text. None of them reads a file or looks at a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from clair_cli.renderers import json, text
from clair_cli.report import Report

FormatName = Literal["text", "json"]
RENDERERS: dict[str, Callable[[Report], str]] = {"text": text.render, "json": json.render}
assert set(RENDERERS) == set(get_args(FormatName))
