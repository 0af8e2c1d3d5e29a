"""The parameters of a command, read from the function behind it: for the reference, and for files.

So nothing depends on a version of the parser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

CONTEXT = "context"
"""The parameter by which a function gets the parser's own record of the call."""
METAVARS = {int: "N", float: "X", Path: "PATH"}
"""What stands for a value whose option does not say, by its type."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument or option: how it is spelt, what stands for its value, and what it says of itself."""

    spelt: str
    value: str
    group: str
    help: str
    required: bool
    name: str
    """As the function calls it."""
    kind: Any
    """The type of its value, where it has one."""
    default: Any

    @property
    def key(self) -> str:
        """What a file calls it: the long option without its dashes; empty for an argument."""
        return next((n[2:] for n in self.spelt.split(", ") if n.startswith("--")), "")

    @property
    def head(self) -> str:
        """What is typed, as in a usage line."""
        return f"{self.spelt} {self.value}".strip()


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a command in the order of its signature."""
    hints = get_type_hints(function, include_extras=True)
    for name, default in inspect.signature(function).parameters.items():
        if name == CONTEXT:
            continue
        kind, info = get_args(_annotated(hints[name]))
        required = default.default is inspect.Parameter.empty
        argument = info.rich_help_panel is None
        given = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str)]
        names = given or [f"--{name.replace('_', '-')}"]
        yield Parameter(
            spelt="" if argument else ", ".join(sorted(names, key=len)),
            value=info.metavar or ("" if info.count else _value(kind)),
            group="Arguments" if argument else info.rich_help_panel,
            help=info.help + _extra(info, None if required else default.default),
            required=required,
            name=name,
            kind=_kind(kind),
            default=None if required else default.default,
        )


def _annotated(hint: Any) -> Any:
    """The hint itself, or the annotated part of one that is made optional by its default."""
    if get_origin(hint) is Annotated:
        return hint
    return next(part for part in get_args(hint) if get_origin(part) is Annotated)


def _value(kind: Any) -> str:
    """What stands for the value in a usage line; nothing for a switch."""
    kinds = [k for k in (get_args(kind) or (kind,)) if k is not type(None)]
    if get_origin(kind) is Literal:
        return "|".join(map(str, kinds))
    if get_origin(kinds[0]) is Literal:
        return _value(kinds[0])
    return "" if kinds[0] is bool else METAVARS.get(kinds[0], "TEXT")


def _extra(info: Any, default: Any) -> str:
    """The range of a number, and the default where there is one to say."""
    low = "" if info.min is None else f" At least {info.min:g}"
    high = "" if info.max is None else f", at most {info.max:g}"
    said = f"{low}{high}." if low else ""
    silent = default is None or default is False or getattr(info, "count", False)
    return said if silent else f"{said} Default: {default}."


def _kind(kind: Any) -> Any:
    """The type without None."""
    if get_origin(kind) in (Literal, list):
        return kind
    return next((k for k in get_args(kind) if k is not NoneType), kind)
