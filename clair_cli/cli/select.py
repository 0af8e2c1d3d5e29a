"""clair select: the best strength per client."""

from __future__ import annotations

from clair_cli.cli import options as o
from clair_cli.cli import refining as r
from clair_cli.cli.delivery import place_for
from clair_cli.cli.streams import Progress, print_out, tell
from clair_cli.errors import NoVerdict, UsageError
from clair_cli.renderers import RENDERERS
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.selection import verdict_line


def select(
    folder: r.Candidates,
    evaluate: r.Evaluate,
    higher: r.Higher = False,
    timeout: r.Timeout = 600.0,
    jobs: r.Jobs = 1,
    resume: r.Resume = None,
    out: r.Chosen = None,
    overwrite: o.Overwrite = False,
    format: o.Format = "text",
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Keep every client's best strength, by a command of yours.

    The command runs once per candidate that clair refine --path has written, without a shell, and
    measures it on the client's own validation data.
    """
    from clair_cli import selection
    from clair_cli.output.publish import check_output

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if not timeout < 1e9:  # nan, too
        raise UsageError(f"--timeout: expected seconds, got {timeout}")
    if out is not None:
        check_output(out, folder, overwrite)
    kept = [folder] if out is None else [folder, out]
    scores = None if resume is None else place_for(str(resume), "--resume", *kept)
    with Progress(quiet or no_progress) as progress:
        found = selection.select(folder, evaluate, higher, timeout, progress, jobs, scores)
    if format != "text" or not quiet:
        print_out(RENDERERS[format](found))
    if out is not None and found.exit_code != NoVerdict.exit_code:
        document = RENDERERS["json"](found).encode()
        selection.write_selection(found, document, folder, out, overwrite)
        if format == "text" and not quiet:
            print_out(f"chosen adapters and selection.json: {safe_text(str(out))}\n")
    if quiet and found.exit_code:
        tell(verdict_line(found))
    return found.exit_code
