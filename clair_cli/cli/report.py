"""clair report: a saved report, shown and gated again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clair_cli.cli import options as o
from clair_cli.cli.delivery import delivery
from clair_cli.errors import UsageError
from clair_cli.strict_json import parse_object
from clair_cli.report import from_dict, gated


def report(
    path: o.Saved,
    fail_on: o.Regate = None,
    format: o.Format = "text",
    output: o.Outputs = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> int:
    """Show and gate a saved report again, without reading adapters."""
    goes = delivery(format, output, quiet, verbose)
    saved = from_dict(_read_json(path))
    return goes.deliver(gated(saved, fail_on or str(saved.settings["fail_on"])))


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    return parse_object(data, str(path), UsageError)
