"""clair inspect: one adapter by itself, or the clients of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from clair_cli.cli import options as o
from clair_cli.cli.given import settings_from
from clair_cli.cli.streams import fail, print_out
from clair_cli.errors import AdapterError, ClairError, UsageError
from clair_cli.renderers import RENDERERS
from clair_cli.results import InspectedFolder
from clair_cli.settings import Settings


def inspect(
    adapter: o.Adapter,
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
    format: o.Format = "text",
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Show what an adapter holds, or the adapters of a folder."""
    settings = settings_from(locals())
    from clair_cli import inspection
    from clair_cli.opening import check_files

    check_files(settings)
    if not os.path.lexists(adapter):
        raise UsageError(f"{adapter}: no such file or folder")
    try:
        found = inspection.inspect(adapter, settings)
    except AdapterError as error:
        folder = _folder(adapter, settings)
        if folder is None:
            return fail(f"broken: {error.code} {error}", error.exit_code)
        print_out(RENDERERS[format](folder))
        return 1 if any(client.error for client in folder.clients) else 0
    print_out(RENDERERS[format](found))
    return 0


def _folder(path: Path, settings: Settings) -> InspectedFolder | None:
    """What is no adapter, looked at as a folder of clients; None where it is none of two or more."""
    from clair_cli.inspection import inspect_folder
    from clair_cli.opening import open_entries

    try:
        entries = open_entries(path, settings)
    except ClairError:
        return None
    return inspect_folder(path, entries, settings) if len(entries.adapters) > 1 else None
