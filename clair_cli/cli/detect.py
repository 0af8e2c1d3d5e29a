"""clair detect: which clients are contaminated."""

from __future__ import annotations

import typer

from clair_cli.cli import options as o
from clair_cli.cli.command import decisions
from clair_cli.cli.delivery import command_line, delivery, read_from
from clair_cli.cli.explain import add_explained, check_explained
from clair_cli.cli.given import settings_from
from clair_cli.cli.ledger import History, check_history
from clair_cli.cli.streams import Progress, add_timings


def detect(
    context: typer.Context,
    folder: o.Folder,
    read_as: o.ReadAs = None,
    base: o.Base = None,
    config: o.Config = None,
    alpha: o.Alpha = None,
    reference: o.Reference = None,
    since: o.Since = None,
    differences: o.Differences = False,
    ignore: o.Ignore = None,
    follow_symlinks: o.Links = False,
    max_header_bytes: o.MaxHeader = o.MAX_HEADER,
    max_memory: o.MaxMemory = o.MAX_MEMORY,
    client_timeout: o.ClientTimeout = o.CLIENT_TIMEOUT,
    modules: o.Modules = "shared",
    group_by: o.GroupBy = None,
    later_round: o.LaterRound = "note",
    device: o.Device = "auto",
    engine: o.Engine = "local",
    threads: o.Threads = 0,
    exact: o.Exact = False,
    cache: o.Cache = None,
    cache_size: o.CacheSize = o.CACHE_SIZE,
    fail_on: o.FailOn = "contaminated",
    baseline: o.Baseline = None,
    history: History = None,
    explain: o.Explain = None,
    format: o.ReportFormat = "text",
    output: o.Outputs = None,
    github: o.GitHub = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
    no_progress: o.NoProgress = False,
    timings: o.Timings = False,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Say which clients are contaminated, where, how sure, and why."""
    settings = settings_from({**locals(), "accept": decisions(context)})
    goes = delivery(
        format,
        output,
        quiet,
        verbose,
        *read_from(folder, follow_symlinks, since, history),
        github=github,
    )
    check_explained(explain, goes)
    check_history(history, *read_from(folder, follow_symlinks))
    from clair_cli import pipeline  # torch is loaded where numbers begin

    if group_by is not None:
        goes.check_groups(baseline=baseline, explain=explain, history=history)
        with Progress(quiet or no_progress) as progress:
            found = pipeline.detect_groups(folder, group_by, settings, progress, command_line())
        code = goes.deliver_groups(found)
        for group in found.groups:
            add_timings(group.report, timings)
        return code
    with Progress(quiet or no_progress) as progress:
        report = pipeline.detect(folder, settings, progress, command_line())
    code = goes.deliver(report)
    code = add_explained(report, explain, code)
    add_timings(report, timings)
    return code
