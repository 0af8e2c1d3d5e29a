"""clair fit: what a cohort taught, in one file that uploads are checked against."""

from __future__ import annotations

from clair_cli.cli import options as o
from clair_cli.cli import sketching as s
from clair_cli.cli.delivery import command_line, place_for, read_from
from clair_cli.cli.given import settings_from
from clair_cli.cli.streams import Progress, fail, print_out
from clair_cli.errors import NoVerdict, UsageError
from clair_cli.formats.reference import SUFFIX
from clair_cli.renderers import RENDERERS


def fit(
    folder: o.Folder,
    output: s.ReferenceFile,
    size: s.SizeOrNone = None,
    seed: s.SeedOrNone = None,
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
    format: o.Format = "text",
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Write what a cohort taught into one file.

    It holds sketches, hashes and verdicts. clair check judges one upload against it, without the
    adapters. Says what the cohort cannot tell apart.
    """
    settings = settings_from({k: v for k, v in locals().items() if k not in ("seed", "size")})
    target = place_for(str(output), "--output", *read_from(folder, follow_symlinks))
    if target.suffix != SUFFIX:
        raise UsageError(
            f"--output: {str(output)!r} is no name of a reference; end it with {SUFFIX}"
        )
    from clair_cli import pipeline
    from clair_cli.cohort import Sketching
    from clair_cli.sketching import DEFAULT

    kind = None
    if size is not None or seed is not None:
        kind = Sketching(size or DEFAULT.size, DEFAULT.seed if seed is None else seed)
    with Progress(quiet or no_progress) as progress:
        report, found = pipeline.fit(folder, target, settings, kind, progress, command_line())
    if found is None:
        why = report.population.findings[-1]
        return fail(
            f"no verdict, nothing was written: {why.code} {why.message}", NoVerdict.exit_code
        )
    if format != "text" or not quiet:
        print_out(RENDERERS[format](found))
    return 0
