"""The reference of every command and option as Markdown: python -m clair_cli.cli.reference.

It is made from the functions behind the commands, so that it depends on no terminal and on no version
of the parser.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, wrap
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from clair_cli.cli import app
from clair_cli.cli.streams import print_out

WIDTH = 100
"""Characters of a line of prose."""
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

    @property
    def head(self) -> str:
        """What is typed, as in a usage line."""
        return f"{self.spelt} {self.value}".strip()


def markdown() -> str:
    """One section per command with its usage, its options in groups, and its exit codes."""
    lines = ["# The commands", "", *_prose(str(app.info.help)), ""]
    lines += _prose("Every command, and `clair` itself, answers to `-h` and `--help`.")
    for command in app.registered_commands:
        if command.callback is not None:
            lines += _section(command.callback, str(command.epilog))
    return "\n".join(lines) + "\n"


def _section(function: Callable[..., Any], epilog: str) -> Iterator[str]:
    params = list(parameters(function))
    yield from ("", f"## clair {function.__name__}", "", "```text", usage(function), "```")
    for paragraph in (inspect.getdoc(function) or "").split("\n\n"):
        yield from ("", *_prose(" ".join(paragraph.split())))
    for group in dict.fromkeys(p.group for p in params):
        yield from ("", f"### {group}", "")
        for param in (p for p in params if p.group == group):
            yield from _prose(f"- `{param.head}`: {_escaped(param.help)}", "  ")
    title, _, codes = epilog.removeprefix("\b\n").partition(":\n")
    yield from ("", f"### {title}", "", "```text", *dedent(codes).splitlines(), "```")


def usage(function: Callable[..., Any]) -> str:
    """What is typed at least, and that there is more."""
    heads = [
        p.head if p.required else f"[{p.head}]"
        for p in parameters(function)
        if p.required or not p.spelt
    ]
    return " ".join(["clair", function.__name__, *heads, "[OPTIONS]"])


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a command in the order of its signature."""
    hints = get_type_hints(function, include_extras=True)
    for name, default in inspect.signature(function).parameters.items():
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


def _escaped(text: str) -> str:
    return re.sub(r"Default: (\S+)\.$", r"Default: `\1`.", text.replace("*", r"\*"))


def _prose(text: str, indent: str = "") -> list[str]:
    return wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    print_out(markdown())
