"""clair report: a saved report, shown and gated again."""

from __future__ import annotations

import typer

from clair_cli.baseline import against, read_baseline
from clair_cli.cli import options as o
from clair_cli.cli.command import regated
from clair_cli.cli.delivery import delivery
from clair_cli.cli.explain import add_explained, check_explained
from clair_cli.cli.given import saved_report
from clair_cli.errors import UsageError


def report(
    context: typer.Context,
    paths: o.Saved,
    fail_on: o.Regate = None,
    baseline: o.Baseline = None,
    explain: o.Explain = None,
    format: o.ReportFormat = "text",
    output: o.Outputs = None,
    github: o.GitHub = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Show and gate a saved report again, without reading adapters.

    Of several reports, one a round and oldest first, the last is shown; a page has the trend over all.
    """
    goes = delivery(format, output, quiet, verbose, *paths, github=github)
    check_explained(explain, goes)
    if len(paths) > 1 and not goes.pages:
        text = f"{len(paths)} reports make a trend: run clair trend, or add -o html=report.html"
        raise UsageError(text)
    *earlier, saved = map(saved_report, paths)
    if baseline is not None:
        saved = against(saved, read_baseline(baseline))
    shown = regated(context, saved, fail_on)
    code = goes.deliver(shown, tuple(earlier))
    return add_explained(shown, explain, code)
