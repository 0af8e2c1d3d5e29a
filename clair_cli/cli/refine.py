"""clair refine: better adapters for the benign clients."""

from __future__ import annotations

import typer

from clair_cli.cli import options as o
from clair_cli.cli import refining as r
from clair_cli.cli.command import decisions
from clair_cli.cli.delivery import command_line, delivery, read_from
from clair_cli.cli.explain import add_explained, check_explained
from clair_cli.cli.given import settings_from
from clair_cli.cli.ledger import History, check_history
from clair_cli.cli.streams import Progress, add_timings, print_out
from clair_cli.renderers.safe import safe_text


def refine(
    context: typer.Context,
    folder: o.Folder,
    out: o.Out,
    overwrite: o.Overwrite = False,
    sign: o.Sign = None,
    write_global: o.WriteGlobal = False,
    global_rank: o.GlobalRank = "auto",
    rank: o.Rank = "keep",
    write: o.Write = "keep",
    tasks: r.Tasks = "auto",
    strength: r.Strength = "auto",
    path: r.Strengths = None,
    subspace_rank: r.SubspaceRank = "auto",
    side: r.Side = "auto",
    replicates: r.Replicates = "auto",
    weights: r.Weights = None,
    include: r.Include = None,
    exclude: r.Exclude = None,
    refine_suspicious: r.RefineSuspicious = False,
    allow_dora: r.AllowDora = False,
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
    later_round: o.LaterRound = "note",
    device: o.Device = "auto",
    engine: o.Engine = "local",
    threads: o.Threads = 0,
    exact: o.Exact = False,
    cache: o.Cache = None,
    cache_size: o.CacheSize = o.CACHE_SIZE,
    fail_on: o.FailOn = "never",
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
    """Detect, then write refined adapters of the benign clients.

    They go into the new folder --out, together with the report. A client that is contaminated or
    broken gets none.
    """
    settings = settings_from({**locals(), "accept": decisions(context)})
    goes = delivery(
        format,
        output,
        quiet,
        verbose,
        *read_from(folder, follow_symlinks, since, history),
        out,
        github=github,
    )
    check_explained(explain, goes)
    check_history(history, *read_from(folder, follow_symlinks), out)
    from clair_cli import pipeline  # torch is loaded where numbers begin

    with Progress(quiet or no_progress) as progress:
        report = pipeline.refine(folder, out, settings, progress, command_line())
    code = goes.deliver(report)
    if report.refinement is not None and goes.talks:
        print_out(f"refined adapters and report: {safe_text(str(out))}\n")
    code = add_explained(report, explain, code)
    add_timings(report, timings)
    return code
