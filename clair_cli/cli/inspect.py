"""clair inspect: adapters by themselves, or the clients of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from clair_cli.cli import options as o
from clair_cli.cli.given import settings_from
from clair_cli.cli.streams import fail, print_out
from clair_cli.errors import AdapterError, ClairError, UsageError
from clair_cli.renderers import RENDERERS
from clair_cli.renderers.inspection import as_jsonl
from clair_cli.report import Reason
from clair_cli.results import InspectedFolder, Inspection, NotInspected
from clair_cli.settings import Settings


def inspect(
    adapters: o.Adapters,
    read_as: o.ReadAs = None,
    base: o.Base = None,
    config: o.Config = None,
    alpha: o.Alpha = None,
    reference: o.Reference = None,
    differences: o.Differences = False,
    follow_symlinks: o.Links = False,
    max_header_bytes: o.MaxHeader = o.MAX_HEADER,
    max_memory: o.MaxMemory = o.MAX_MEMORY,
    client_timeout: o.ClientTimeout = o.CLIENT_TIMEOUT,
    format: o.InspectFormat = "text",
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Show what adapters hold, or the adapters of a folder.

    Of several paths each is looked at by itself, and one that is broken does not stop the others.
    """
    settings = settings_from(locals())
    from clair_cli.opening import check_files

    check_files(settings)
    for path in adapters:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file or folder")
    if len(adapters) > 1 and format == "json":
        raise UsageError("--format: json is one document; of several paths ask for jsonl")
    worst = 0
    for number, path in enumerate(adapters):
        found = _looked_at(path, settings)
        worst = max(worst, found.exit_code)
        if isinstance(found, NotInspected) and len(adapters) == 1 and format != "jsonl":
            return fail(f"broken: {found.error.code} {found.error.message}", found.exit_code)
        if format == "jsonl":
            print_out(as_jsonl(found))
        else:
            print_out(("\n" if number else "") + RENDERERS[format](found))
    return worst


def _looked_at(path: Path, settings: Settings) -> Inspection | InspectedFolder | NotInspected:
    """The adapter, what is no adapter as a folder of clients, or why it is neither."""
    from clair_cli import inspection

    try:
        return inspection.inspect(path, settings)
    except AdapterError as error:
        folder = _folder(path, settings)
        return folder or NotInspected(str(path), Reason(error.code, str(error)))


def _folder(path: Path, settings: Settings) -> InspectedFolder | None:
    """What is no adapter, looked at as a folder of clients; None where it is none of two or more."""
    from clair_cli.inspection import inspect_folder
    from clair_cli.opening import open_entries

    try:
        entries = open_entries(path, settings)
    except ClairError:
        return None
    return inspect_folder(path, entries, settings) if len(entries.adapters) > 1 else None
