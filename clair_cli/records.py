"""Records to JSON-ready values and back: what is read back is parsed by its types, not trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
DIGITS = 9
"""Significant digits of a float in JSON: beyond them threads and processors differ."""
LONGEST = 80
"""Characters of one value in the short form of a record."""


def key(name: str) -> dict[str, str]:
    """The metadata of a field that JSON calls `name`."""
    return {"key": name}


def encode(value: Any) -> Any:
    """JSON-ready values: fields in their order, floats to DIGITS, what `extra` holds at the end."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {_key(f): encode(getattr(value, f.name)) for f in _own_fields(type(value))}
        return own | encode(getattr(value, "extra", {}))
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    return value


def decode(kind: type[Record], data: Any, where: str = "") -> Record:
    """A record of `kind` from what `encode` gave, or a newer version of it.

    A field that is missing takes its default. Unknown ones are kept in `extra`, where the record has
    it. Raises ValueError, naming the place, where a value is not what its field says.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'it'}: expected an object, found {_shown(data)}")
    found: dict[str, Any] = {}
    plan = _plan(kind)  # type: ignore[arg-type]
    for name, own, hint, needed in plan:
        if own in data:
            value = data[own]
            plain = type(value) is hint and hint is not float  # most are, and there may be many
            found[name] = value if plain else _value(hint, value, _place(where, own))
        elif needed:
            raise ValueError(f"{_place(where, own)} is missing")
    if "extra" in _types(kind):  # type: ignore[arg-type]
        known = {own for _, own, _, _ in plan}
        found["extra"] = {k: v for k, v in data.items() if k not in known}
    return kind(**found)


def _place(where: str, own: str) -> str:
    return f"{where}.{own}".lstrip(".")


@cache
def _plan(kind: Any) -> tuple[tuple[str, str, Any, bool], ...]:
    """Name, key, type of every field, and whether it has no default."""
    hints = _types(kind)
    return tuple(
        (f.name, _key(f), hints[f.name], f.default is MISSING and f.default_factory is MISSING)
        for f in _own_fields(kind)
    )


def brief(record: Any) -> str:
    """A record on one short line, for who looks at it in a session: what is not as by default.

    Of lists and mappings their number is said, of records within that they are there.
    """
    parts = []
    for f in fields(record):
        value = getattr(record, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if value is None or value == default:
            continue
        many = isinstance(value, list | tuple | Mapping)
        if many and not (_is_plain(value) and len(repr(value)) <= LONGEST):
            parts.append(f"{len(value)} {f.name}")
        else:
            parts.append(f"{f.name}={_in_brief(value)}")
    return f"{type(record).__name__}({', '.join(parts)})"


def _is_plain(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, str | int | float) for v in values)


def _in_brief(value: Any) -> str:
    if is_dataclass(value):
        return "..."
    if isinstance(value, float):
        return f"{value:.4g}"
    return shortened(repr(str(value) if isinstance(value, Path) else value))


def shortened(text: str) -> str:
    """At most LONGEST characters, of which the middle is left out."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 3]}...{text[-half:]}"


def _own_fields(kind: type) -> list[Field[Any]]:
    return [f for f in fields(kind) if f.name != "extra"]


def _key(f: Field[Any]) -> str:
    return str(f.metadata.get("key", f.name))


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(args, data, where)
    if origin is tuple:
        return _items(args, data, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, data, where)
    if hint is float and _is(data, float | int) and math.isfinite(data):
        return float(data)
    if origin is Literal and data in args:
        return data
    if origin is Mapping and isinstance(data, Mapping):  # one that nobody looks into
        return dict(data)
    plain = origin is None and isinstance(hint, type)  # Python 3.10 calls Mapping[str, int] a type
    if hint is Any or (hint is not float and plain and _is(data, hint)):
        return data
    expected = {float: "a finite number"}.get(hint, getattr(hint, "__name__", str(hint)))
    raise ValueError(f"{where}: expected {expected}, found {_shown(data)}")


def _is(data: Any, kind: Any) -> bool:
    """Of the type, where true and false are no numbers."""
    return isinstance(data, kind) and (kind is bool or not isinstance(data, bool))


def _one_of(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    *others, last = [k for k in kinds if k is not type(None)]
    for kind in others:
        try:
            return _value(kind, data, where)
        except ValueError:
            continue
    return _value(last, data, where)


def _items(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    many = kinds[-1] is Ellipsis
    if not isinstance(data, list) or not (many or len(data) == len(kinds)):
        raise ValueError(f"{where}: expected a list, found {_shown(data)}")
    each = [kinds[0]] * len(data) if many else kinds
    return tuple(
        _value(k, d, f"{where}[{i}]") for i, (k, d) in enumerate(zip(each, data, strict=True))
    )


def _shown(data: Any) -> str:
    return repr(data)[:40]
