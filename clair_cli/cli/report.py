"""clair report: a saved report, shown and gated again."""

from __future__ import annotations

from clair_cli.cli import options as o
from clair_cli.cli.delivery import delivery
from clair_cli.errors import UsageError
from clair_cli.report import MAX_BYTES, from_dict, gated
from clair_cli.strict_json import parse_object, read_bounded


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
    saved = from_dict(parse_object(read_bounded(path, MAX_BYTES), str(path), UsageError))
    return goes.deliver(gated(saved, fail_on or str(saved.settings["fail_on"])))
