"""clair report: a saved report, shown and gated again."""

from __future__ import annotations

from clair_cli.baseline import against, read_baseline
from clair_cli.cli import options as o
from clair_cli.cli.delivery import delivery
from clair_cli.cli.explain import add_explained, check_explained
from clair_cli.cli.given import saved_report
from clair_cli.report import gated


def report(
    path: o.Saved,
    fail_on: o.Regate = None,
    baseline: o.Baseline = None,
    explain: o.Explain = None,
    format: o.ReportFormat = "text",
    output: o.Outputs = None,
    github: o.GitHub = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> int:
    """Show and gate a saved report again, without reading adapters."""
    goes = delivery(format, output, quiet, verbose, github=github)
    check_explained(explain, goes)
    saved = saved_report(path)
    if baseline is not None:
        saved = against(saved, read_baseline(baseline))
    code = goes.deliver(gated(saved, fail_on or str(saved.settings["fail_on"])))
    add_explained(saved, explain)
    return code
