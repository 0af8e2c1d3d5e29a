"""The reference of every command and option as Markdown: python -m clair_cli.cli.reference.

It is made from the functions behind the commands, so that it depends on no terminal and on no version
of the parser.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from textwrap import dedent, wrap
from typing import Any

from clair_cli.cli import app
from clair_cli.cli.parameters import parameters
from clair_cli.cli.streams import print_out

WIDTH = 100
"""Characters of a line of prose."""


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


def _escaped(text: str) -> str:
    return re.sub(r"Default: (\S+)\.$", r"Default: `\1`.", text.replace("*", r"\*"))


def _prose(text: str, indent: str = "") -> list[str]:
    return wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    print_out(markdown())
