"""clair inspect: one adapter by itself."""

from __future__ import annotations

import os

from clair_cli.cli import options as o
from clair_cli.cli.streams import fail, print_out
from clair_cli.errors import AdapterError, UsageError
from clair_cli.renderers import RENDERERS


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
    format: o.Format = "text",
) -> int:
    """Show one adapter: its modules, shapes, ranks, scaling and norms."""
    settings = o.settings_from(locals())
    from clair_cli import inspection
    from clair_cli.opening import check_files

    check_files(settings)
    if not os.path.lexists(adapter):
        raise UsageError(f"{adapter}: no such file or folder")
    try:
        found = inspection.inspect(adapter, settings)
    except AdapterError as error:
        return fail(f"broken: {error.code} {error}", error.exit_code)
    print_out(RENDERERS[format](found))
    return 0
