"""Which options count, and where each is from."""

from __future__ import annotations

import json
from typing import Any

from clair_cli._version import __version__
from clair_cli.records import encode
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import aligned
from clair_cli.results import Configured, Option


def as_text(found: Configured) -> str:
    """The file, a line per option and per decision, and what is not obeyed."""
    lines = [f"file: {safe_text(found.file) if found.file else 'none'}"]
    if found.file:
        lines.append("  a command does not obey it where it lies among the adapters that it reads")
    if found.options:
        rows = [(o.command, o.name, _value(o.value), _from(o)) for o in found.options]
        lines += ["", *aligned([("command", "option", "value", "from"), *rows])]
    else:
        lines.append("every option is at its default")
    if found.accept:
        decided = [(a.client, ", ".join(a.codes), a.until or "-", a.reason) for a in found.accept]
        lines += ["", *aligned([("accepted", "codes", "until", "reason"), *decided])]
    said = [f"not obeyed: {safe_text(text)}" for text in found.passed_over]
    said += [f"not obeyed: {safe_text(name)} stands for no option" for name in found.unknown]
    return "".join(f"{line}\n" for line in [*lines, *([""] if said else []), *said])


def as_json(found: Configured) -> str:
    """One JSON document."""
    head: dict[str, Any] = {
        "schema_version": "1.0",
        "tool": {"name": "clair", "version": __version__},
    }
    return json.dumps(head | encode(found), indent=1, allow_nan=False) + "\n"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)


def _from(option: Option) -> str:
    return option.source if option.place is None else f"{option.source}: {option.place}"
