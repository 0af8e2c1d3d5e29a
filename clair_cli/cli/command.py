"""A command of clair: its help in groups, and its options from the command line, the environment and a
file, in this order."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from inspect import unwrap
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from clair_cli.acceptance import accepting
from clair_cli.accepted import Accept
from clair_cli.cli.configuration import Commands, Configuration, configured, origin, source
from clair_cli.cli.given import meant
from clair_cli.cli.help import group_of
from clair_cli.cli.parameters import parameters
from clair_cli.cli.streams import tell
from clair_cli.errors import SettingError, UsageError
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, gated

PREFIX = "CLAIR_"
"""How the variables begin that stand for options."""
GIVEN = {f"{PREFIX}CLIENT", f"{PREFIX}ADAPTER"}
"""Variables that clair select sets for the command that it runs."""
UPLOADS = ("adapters", "adapter", "upload")
"""The arguments that name uploads, which may be files: what lies beside them came with them."""


class Command(TyperCommand):
    """A command whose options may also stand in variables and in a file."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for param in self.params:
            if param.param_type_name == "option":
                param.envvar = variables(str(self.name), param)
                vars(param)["show_envvar"] = False  # the page of decisions says it once

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per group, in the order in which the groups come up."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                groups.setdefault(group_of(param), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse twice: which file counts is known only from the command line."""
        helped = any(a in ctx.help_option_names for a in args)
        if not (helped or ctx.resilient_parsing) and any(
            p.name == "no_config" for p in self.params
        ):
            ctx.obj = self._configured(ctx, args)
            ctx.default_map = dict(ctx.obj.values.get(self.name, {}))
            for said in ctx.obj.passed_over:
                tell(f"clair: {said}")
            for name, hint in unknown_variables(ctx).items():
                tell(f"clair: {safe_text(name)} stands for no option{hint}")
        return super().parse_args(ctx, args)

    def _configured(self, ctx: Any, args: list[str]) -> Configuration:
        ctx.resilient_parsing = True  # what is missing may be in the file
        try:
            super().parse_args(ctx, list(args))
        finally:
            ctx.resilient_parsing = False
        given, ctx.params = ctx.params, {}
        named, off = given.get("config_file"), bool(given.get("no_config"))
        if named is not None and off and source(ctx, "config_file") != source(ctx, "no_config"):
            off = source(ctx, "no_config") == "COMMANDLINE"
            named = None if off else named
        typed = {n: v for n, v in given.items() if source(ctx, n) == "COMMANDLINE"}
        typed.pop("config_file", None)
        for name in UPLOADS:
            told = typed.get(name) or []
            uploads = told if isinstance(told, list) else [told]
            typed[name] = [p.parent if os.path.isfile(p) else p for p in uploads]
        paths = [p for v in typed.values() for p in (v if isinstance(v, list) else [v])]
        folders = [p for p in paths if isinstance(p, Path) and os.path.isdir(p)]
        return configured(named, off, folders, commands_of(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run it; what is wrong with a setting is said of where the setting was made."""
        try:
            return super().invoke(ctx)
        except SettingError as error:
            name, colon, said = str(error).partition(":")
            if place := origin(ctx, name):
                raise UsageError(f"{place}{colon}{said}") from None
            raise


def commands_of(ctx: Any) -> Commands:
    """The parameters of all commands."""
    found = ctx.find_root().command.commands
    return {name: list(parameters(unwrap(c.callback))) for name, c in found.items()}


def variables(command: str, param: Any) -> list[str]:
    """The variables that stand for an option: of this command alone, and of all that have it."""
    option = next((o for o in param.opts if o.startswith("--")), param.opts[0])
    name = option.lstrip("-").replace("-", "_").upper()
    return [f"{PREFIX}{command.upper()}_{name}", f"{PREFIX}{name}"]


def unknown_variables(ctx: Any) -> dict[str, str]:
    """Variables that begin as clair's and stand for no option, each with a hint at the nearest."""
    own = sorted(v for v in os.environ if v.startswith(PREFIX) and v not in GIVEN)
    if not own:
        return {}
    commands = ctx.find_root().command.commands.items()
    known = [v for name, c in commands for p in c.params for v in variables(name, p)]
    return {v: meant(v, known) for v in own if v not in known}


def decisions(ctx: Any) -> tuple[Accept, ...]:
    """The decisions on clients in the file that counts."""
    return ctx.obj.accept if isinstance(ctx.obj, Configuration) else ()


def regated(ctx: Any, saved: Report, fail_on: str | None) -> Report:
    """A saved report under the decisions and the gate of today, by default its own.

    A decision that has ended since counts no more.
    """
    today = datetime.now(timezone.utc).date()
    saved = accepting(saved, decisions(ctx) or saved.acceptance, today)
    return gated(saved, fail_on or str(saved.settings["fail_on"]))
