"""What a file of decisions says: every key is an option that exists, of the type that it takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from clair_cli.accepted import Accept
from clair_cli.cli.finding import PROJECT, find, lies_among
from clair_cli.cli.given import PARSERS, meant
from clair_cli.cli.parameters import Parameter
from clair_cli.errors import SettingError, UsageError
from clair_cli.renderers.safe import safe_text
from clair_cli.strict_json import read_bounded

MAX_BYTES = 2**20
"""Of a file: room for 5 000 decisions."""
OWN = {"config", "no-config"}
"""Options that say which file counts, and so are in none."""
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a string, the path of a file",
}
"""What each type is called."""
ENTRY = {"client": True, "codes": True, "reason": True, "until": False, "sha256": False}
"""The keys of an entry of `accept`, and whether it needs them."""
Commands = Mapping[str, Sequence[Parameter]]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A file as it was understood: per command the values of its options by the function's names.

    `keys` says how the file spells each, and `passed_over` which other files are not obeyed.
    """

    path: Path | None = None
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keys: Mapping[tuple[str, str], str] = field(default_factory=dict)
    accept: tuple[Accept, ...] = ()
    passed_over: tuple[str, ...] = ()


def configured(
    named: Path | None, off: bool, among: Sequence[Path], commands: Commands
) -> Configuration:
    """What --config and --no-config ask for, by default the file that is found.

    Raises UsageError where a file cannot be read, says what no command knows, or is named and lies in
    one of the folders `among`.
    """
    if off and named is not None:
        raise UsageError("--no-config: --config names a file; leave one of them out")
    if off:
        return Configuration()
    if named is not None:
        if lies_among(named, [p.resolve() for p in among]):
            text = f"{str(named)!r} lies among the adapters, which come from strangers"
            raise UsageError(f"--config: {text}; keep it elsewhere")
        return _read(named, commands, ())
    path, told = find(among, lambda path: "clair" in _tools(_parsed(path), path))
    return (
        Configuration(passed_over=tuple(told))
        if path is None
        else _read(path, commands, tuple(told))
    )


def _read(path: Path, commands: Commands, told: tuple[str, ...]) -> Configuration:
    table, where = _parsed(path), f"{str(path)!r}"
    if path.name == PROJECT:
        where += ": tool.clair"
        table = _table(_tools(table, path).get("clair", {}), where)
    base = path.absolute().parent
    values: dict[str, dict[str, Any]] = {name: {} for name in commands}
    keys: dict[tuple[str, str], str] = {}
    accept: tuple[Accept, ...] = ()
    for key, value in sorted(table.items(), key=lambda item: item[0] in commands):
        if key == "accept":
            accept = _decisions(value, where)
        elif key in commands and isinstance(value, dict):  # after those for all, and so above them
            for inner, own in value.items():
                param = _known(inner, {p.key: p for p in _options(commands[key])}, where, key)
                values[key][param.name] = _taken(param, own, f"{where}: {key}.{inner}", base)
                keys[key, param.name] = f"{key}.{inner}"
        else:
            for command, param in _everywhere(key, commands, where).items():
                values[command][param.name] = _taken(param, value, f"{where}: {key}", base)
                keys[command, param.name] = key
    return Configuration(path, values, keys, accept, told)


# --- where a value is from


def source(ctx: Any, name: str) -> str:
    """Where the value of a parameter is from: COMMANDLINE, ENVIRONMENT, DEFAULT_MAP or DEFAULT."""
    return getattr(ctx.get_parameter_source(name), "name", "DEFAULT")


def origin(ctx: Any, name: str) -> str | None:
    """The variable or the key in a file that gave a parameter its value; None where none did."""
    where = source(ctx, name)
    if where == "ENVIRONMENT":
        param = next(p for p in ctx.command.params if p.name == name)
        return next((str(v) for v in param.envvar if os.environ.get(v)), None)
    if where == "DEFAULT_MAP" and isinstance(ctx.obj, Configuration):
        return f"{str(ctx.obj.path)!r}: {ctx.obj.keys[ctx.command.name, name]}"
    return None


# --- the file


def _parsed(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if path.suffix == ".json":
        text = "a file of options is TOML; the config of adapters is given with --adapter-config"
        raise UsageError(f"--config: {str(path)!r}: {text}")
    data = read_bounded(path, MAX_BYTES)
    try:
        found: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise UsageError(f"{str(path)!r}: is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{str(path)!r}: is no TOML: {' '.join(str(error).split())}") from None
    return found


def _tools(document: dict[str, Any], path: Path) -> dict[str, Any]:
    return _table(document.get("tool", {}), f"{str(path)!r}: tool")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a table, got {_shown(value)}")
    return value


# --- keys


def _options(params: Sequence[Parameter]) -> list[Parameter]:
    return [p for p in params if p.key and p.key not in OWN]


def _everywhere(key: str, commands: Commands, where: str) -> dict[str, Parameter]:
    """The option of every command that has it; where it means two things, the file must say which."""
    have = {c: p for c, params in commands.items() for p in _options(params) if p.key == key}
    if not have:
        known = {p.key: p for params in commands.values() for p in _options(params)}
        _known(key, known, where, None, ["accept", *commands])
    kinds: list[Any] = []
    for param in have.values():
        kinds += [] if param.kind in kinds else [param.kind]
    if len(kinds) > 1:
        tables = ", ".join(f"[{command}]" for command in have)
        raise UsageError(f"{where}: {key}: differs between commands; put it under one of {tables}")
    return have


def _known(
    key: str,
    known: Mapping[str, Parameter],
    where: str,
    table: str | None,
    others: Sequence[str] = (),
) -> Parameter:
    """The option called `key`. Raises UsageError, with the nearest one, where there is none."""
    if key in known:
        return known[key]
    raise UsageError(_unknown(key, [*known, *others], f"{where}: {f'{table}.' if table else ''}"))


def _unknown(key: str, known: Sequence[str], where: str) -> str:
    return f"{where}{safe_text(key)}: there is no such key{meant(key.replace('_', '-'), known)}"


# --- values


def _taken(param: Parameter, value: Any, where: str, base: Path) -> Any:
    """The value as the parser takes it; a path is that from the file's folder."""
    origin, kind = get_origin(param.kind), param.kind
    if origin is list:
        if not isinstance(value, list):
            raise UsageError(f"{where}: expected a list of strings, got {_shown(value)}")
        items = [_plain(str, v, f"{where}[{i}]") for i, v in enumerate(value)]
        return [_sent(item, base) for item in items] if param.key == "output" else items
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and param.name in PARSERS and number:  # a word or a number
        return str(value)
    plain = _plain(str if origin is Literal else kind, value, where)
    if origin is Literal and plain not in get_args(kind):
        words = ", ".join(map(str, get_args(kind)))
        raise UsageError(f"{where}: expected {words}, got {_shown(value)}")
    return str(base / plain) if kind is Path else plain


def _plain(kind: Any, value: Any, where: str) -> Any:
    wanted: Any = {float: (int, float), Path: str}.get(kind, kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{where}: expected {WORDS[kind]}, got {_shown(value)}")
    if isinstance(value, str) and (not value or "\0" in value):  # no command line could hold it
        raise UsageError(f"{where}: expected {WORDS[kind]} that is not empty, got {_shown(value)}")
    return value


def _sent(value: str, base: Path) -> str:
    """FORMAT=PATH, with the path from the file's folder; - is stdout."""
    name, equals, path = value.partition("=")
    return value if path in ("", "-") else f"{name}{equals}{base / path}"


def _shown(value: Any) -> str:
    return repr(value)[:60]


# --- decisions


def _decisions(value: Any, where: str) -> tuple[Accept, ...]:
    where = f"{where}: accept"
    if not isinstance(value, list):
        raise UsageError(f"{where}: expected [[accept]], got {_shown(value)}")
    return tuple(_decision(entry, f"{where}[{number}]") for number, entry in enumerate(value, 1))


def _decision(entry: Any, where: str) -> Accept:
    for name in (entry := _table(entry, where)):
        if name not in ENTRY:
            raise UsageError(_unknown(name, list(ENTRY), f"{where}: "))
    for name, needed in ENTRY.items():
        if needed and name not in entry:
            raise UsageError(f"{where}: {name}: is missing")
    try:
        return Accept(
            client=_plain(str, entry["client"], f"{where}: client"),
            codes=_strings(entry["codes"], f"{where}: codes"),
            reason=_plain(str, entry["reason"], f"{where}: reason"),
            until=_day(entry["until"], f"{where}: until") if "until" in entry else None,
            sha256=tuple(map(str.lower, _hashes(entry.get("sha256", []), f"{where}: sha256"))),
        )
    except SettingError as error:
        raise UsageError(f"{where}: {str(error).removeprefix('accept: ')}") from None


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{where}: expected a list of strings, got {_shown(value)}")
    return tuple(_plain(str, v, where) for v in value)


def _hashes(value: Any, where: str) -> tuple[str, ...]:
    return _strings([value] if isinstance(value, str) else value, where)


def _day(value: Any, where: str) -> str:
    if isinstance(value, datetime) or not isinstance(value, date | str):
        raise UsageError(f"{where}: expected a date, such as 2027-03-01, got {_shown(value)}")
    return value.isoformat() if isinstance(value, date) else value
