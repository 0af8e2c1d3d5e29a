"""clair config show: which options count, and where each is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import typer

from clair_cli.cli import options as o
from clair_cli.cli.command import commands_of, decisions, unknown_variables
from clair_cli.cli.configuration import OWN, Configuration, origin, source
from clair_cli.cli.given import meant
from clair_cli.cli.streams import print_out
from clair_cli.errors import UsageError
from clair_cli.renderers import RENDERERS
from clair_cli.results import Configured, Option

SOURCES: Mapping[str, Literal["environment", "file", "default"]] = {
    "ENVIRONMENT": "environment",
    "DEFAULT_MAP": "file",
    "DEFAULT": "default",
}


def config(
    context: typer.Context,
    action: o.Show,
    command: o.OfCommand = None,
    format: o.Format = "text",
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Show which options count here, and where each is from.

    The command line counts before the environment, that before a file, and a file before the default.
    CLAIR_FAIL_ON stands for --fail-on, and so for every option; CLAIR_DETECT_FAIL_ON for detect alone.
    """
    known = commands_of(context)
    if command is not None and command not in known:
        raise UsageError(f"{command}: there is no such command{meant(command, known)}")
    found = [one for name in known for one in _options(context, name)]
    if command is None:
        shown = [one for one in found if one.source != "default"]
    else:
        shown = [one for one in found if one.command == command]
    obeyed: Configuration = context.obj
    print_out(
        RENDERERS[format](
            Configured(
                file=None if obeyed.path is None else str(obeyed.path),
                options=tuple(shown),
                accept=decisions(context),
                passed_over=obeyed.passed_over,
                unknown=tuple(unknown_variables(context)),
            )
        )
    )
    return 0


def _options(context: typer.Context, name: str) -> Iterator[Option]:
    """Every option of a command, as it would count without anything on the command line."""
    root: Any = context.find_root()
    command = root.command.commands[name]
    values = context.obj.values.get(name, {})
    made = type(context)(command, info_name=name, parent=root, resilient_parsing=True)
    made.default_map, made.obj = dict(values), context.obj
    keys = {p.name: p.key for p in commands_of(context)[name]}
    for param in command.params:
        if param.param_type_name == "option" and keys.get(param.name) not in OWN:
            value, where = param.consume_value(made, {})
            made.set_parameter_source(param.name, where)
            kind = SOURCES.get(source(made, param.name), "default")
            place = (
                context.obj.keys[name, param.name] if kind == "file" else origin(made, param.name)
            )
            yield Option(name, keys[param.name], _plain(value), kind, place)


def _plain(value: Any) -> bool | int | float | str | tuple[str, ...] | None:
    if isinstance(value, list | tuple):
        return tuple(map(str, value))
    return str(value) if isinstance(value, Path) else value
