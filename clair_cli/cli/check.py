"""clair check: one new upload against a cohort."""

from __future__ import annotations

import typer

from clair_cli.cli import options as o
from clair_cli.cli import sketching as s
from clair_cli.cli.command import decisions
from clair_cli.cli.delivery import command_line
from clair_cli.cli.explain import show
from clair_cli.cli.given import settings_from
from clair_cli.cli.streams import Progress, print_out, tell
from clair_cli.errors import OutputError, UsageError
from clair_cli.renderers import RENDERERS
from clair_cli.renderers.safe import visible
from clair_cli.renderers.sketches import checked_as_text, verdict_line
from clair_cli.results import Checked, explained


def check(
    context: typer.Context,
    upload: s.Upload,
    against: s.Against,
    read_as: o.ReadAs = None,
    base: o.Base = None,
    config: o.Config = None,
    alpha: o.Alpha = None,
    reference: o.Reference = None,
    ignore: o.Ignore = None,
    follow_symlinks: o.Links = False,
    max_header_bytes: o.MaxHeader = o.MAX_HEADER,
    max_memory: o.MaxMemory = o.MAX_MEMORY,
    client_timeout: o.ClientTimeout = o.CLIENT_TIMEOUT,
    modules: o.Modules = "shared",
    device: o.Device = "auto",
    threads: o.Threads = 0,
    cache: o.Cache = None,
    cache_size: o.CacheSize = o.CACHE_SIZE,
    update: s.Update = False,
    fail_on: o.FailOn = "contaminated",
    explain: s.ExplainIt = False,
    format: o.Format = "text",
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
    no_progress: o.NoProgress = False,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Judge one upload beside a cohort, or a file of clair fit.

    Only the upload fails: what is said of the cohort's own clients is for clair detect. A broken upload,
    or one that cannot be compared, fails unless --fail-on never.
    """
    settings = settings_from({**locals(), "accept": decisions(context)})
    if explain and format != "text":
        raise UsageError("--explain: is text; JSON has the reasons anyway")
    for path in (upload, against):
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    from clair_cli import pipeline

    judged: list[Checked] = []
    try:
        with Progress(quiet or no_progress) as progress:
            report, found = pipeline.check(
                upload, against, settings, update, progress, command_line(), judged.append
            )
    except OutputError as error:
        for found in judged:  # what was said is not lost with the file
            _say(found, format, quiet, verbose)
        raise OutputError(f"{error}; nothing was taken in") from None
    _say(found, format, quiet, verbose, update)
    if quiet and found.exit_code:
        tell(verdict_line(found))
    if explain and report is not None and not quiet:
        print_out("\n")
        show(explained(report, [found.verdict.client]))
    return found.exit_code


def _say(found: Checked, format: str, quiet: bool, verbose: int, update: bool = False) -> None:
    if format != "text":
        print_out(RENDERERS[format](found))
    elif not quiet:
        print_out(visible(checked_as_text(found, verbose > 0, update)))
