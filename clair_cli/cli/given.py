"""What a command was given: the settings that it asks for, and the report that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clair_cli.decimals import decimal, whole
from clair_cli.errors import SettingError, UsageError
from clair_cli.renderers.safe import safe_text
from clair_cli.report import MAX_BYTES, Report, from_dict
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object, read_bounded


def saved_report(path: Path) -> Report:
    """The report that is saved in a file, which may be anybody's. Raises UsageError where it is none."""
    try:
        return from_dict(parse_object(read_bounded(path, MAX_BYTES), str(path), UsageError))
    except UsageError as error:
        said = str(error).removeprefix(f"{path}: ").removeprefix(f"{str(path)!r}: ")
        raise UsageError(f"{path}: {said}; give what -o json=FILE wrote") from error


def settings_from(given: Mapping[str, Any]) -> Settings:
    """The settings that the arguments of a command ask for; arguments that are no setting are skipped.

    Raises SettingError for what is neither the word nor the number that an option takes.
    """
    names = {f.name for f in fields(Settings)}
    values = {k: v for k, v in given.items() if k in names and v is not None}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    values |= {k: PARSERS[k](v) for k, v in values.items() if k in PARSERS}
    if "base" in values:
        values.setdefault("read_as", "weights")
    return Settings(**values)


def meant(name: str, known: Iterable[str], like: float = 0.6) -> str:
    """`; did you mean ...?` with the nearest of the known names; empty where none is as `like` it."""
    near = get_close_matches(name, list(known), n=1, cutoff=like)
    return f"; did you mean {safe_text(near[0])}?" if near else ""


def flag(name: str) -> str:
    """The option that sets the setting `name`."""
    return "--" + FLAGS.get(name, name.replace("_", "-"))


FLAGS = {
    "read_as": "as",
    "config": "adapter-config",
    "write_global": "global",
    "max_header_bytes": "max-header",
}
"""Settings whose option has another name."""


def _number_or(
    name: str, kind: Callable[[str], Any], *words: str
) -> Callable[[str], int | float | str]:
    def parse(value: str) -> int | float | str:
        try:
            return value if value in words else kind(value)
        except ValueError:
            text = f"expected {', '.join(words)} or a number, got {value!r}"
            raise SettingError(f"{name}: {text}") from None

    return parse


def _bytes(name: str) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "")
        try:
            return int(decimal(number) * UNITS.get(unit, 1))
        except (ValueError, OverflowError):
            text = f"expected a number of bytes, such as 16G or 500M, got {value!r}"
            raise SettingError(f"{name}: {text}") from None

    return parse


UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""What may follow a number of bytes."""


def _strengths(value: str) -> tuple[Any, ...]:
    return tuple(map(_number_or("path", decimal, "auto"), map(str.strip, value.split(","))))


PARSERS: dict[str, Callable[[str], Any]] = {
    "subspace_rank": _number_or("subspace_rank", whole, "auto"),
    "strength": _number_or("strength", decimal, "auto"),
    "rank": _number_or("rank", whole, "keep", "auto", "exact"),
    "global_rank": _number_or("global_rank", whole, "auto", "exact"),
    "path": _strengths,
    "max_memory": _bytes("max_memory"),
    "cache_size": _bytes("cache_size"),
}
"""Options that take a word or a number, and so arrive as text."""
