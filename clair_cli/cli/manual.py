"""The manual page of clair and its commands in roff: python -m clair_cli.cli.manual > clair.1

It is made from the functions behind the commands, as the reference is, and needs no parser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

from clair_cli._version import __version__
from clair_cli.cli import app
from clair_cli.cli.parameters import parameters
from clair_cli.cli.reference import usage
from clair_cli.cli.streams import print_out

ENVIRONMENT = {
    "CLAIR_FAIL_ON": "Stands for --fail-on, and so for every option; CLAIR_DETECT_FAIL_ON for that of "
    "detect alone.",
    "NO_COLOR": "Where it is set, no colours are used.",
    "OMP_NUM_THREADS": "Threads of the linear algebra, where --threads does not say. Without it "
    "numpy's OpenBLAS has one on x86; OPENBLAS_NUM_THREADS says otherwise.",
}


def roff() -> str:
    """One page: what clair is, then a section per command with its options and exit codes."""
    about = str(app.info.help)
    lines = [
        f'.TH CLAIR 1 "" "clair {__version__}" "User Commands"',
        ".SH NAME",
        rf"clair \- {_text(about[:1].lower() + about[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B clair",
        r".I COMMAND",
        r"[\fIOPTIONS\fR]",
        ".SH DESCRIPTION",
        _text(about),
        r"Every command, and clair itself, answers to \fB\-h\fR and \fB\-\-help\fR.",
        ".SH COMMANDS",
    ]
    for command in app.registered_commands:
        if command.callback is not None:
            lines += _command(command.callback, str(command.epilog))
    lines.append(".SH ENVIRONMENT")
    for name, said in ENVIRONMENT.items():
        lines += _tagged(name, said)
    return "\n".join(lines) + "\n"


def _command(function: Callable[..., Any], epilog: str) -> Iterator[str]:
    yield from (f".SS {_text(usage(function))}",)
    first = True
    for paragraph in (inspect.getdoc(function) or "").split("\n\n"):
        yield from ([] if first else [".PP"])
        yield _text(" ".join(paragraph.split()))
        first = False
    for param in parameters(function):
        yield from _tagged(param.head, param.help)
    title, _, codes = epilog.removeprefix("\b\n").partition(":\n")
    yield from (".PP", f"{_text(title)}:", ".PP", ".nf")
    yield from map(_text, dedent(codes).splitlines())
    yield ".fi"


def _tagged(name: str, said: str) -> Iterator[str]:
    yield from (".TP", rf"\fB{_text(name)}\fR", _text(said))


def _text(text: str) -> str:
    """What roff prints as `text`: no escape, no request at the begin of the line."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return r"\&" + escaped if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    print_out(roff())
