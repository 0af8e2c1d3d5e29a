"""detect() and refine(): a folder of adapters to a Report, and to a folder of refined adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clair_cli import __version__
from clair_cli.cohort import Cohort, Start
from clair_cli.errors import AdapterError, NoVerdict, OutputError, UsageError
from clair_cli.formats import check_writable
from clair_cli.output import publish
from clair_cli.refinement.members import read_counts
from clair_cli.refinement.write import write_refined
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report
from clair_cli.scan import Progress, Scan, silent
from clair_cli.settings import Settings


def detect(
    path: Path | str,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Which clients of the folder `path` are contaminated, where, how sure, and why.

    Raises UsageError (no such folder) or NoVerdict (nothing in it that could be a client); everything
    wrong with single clients, and a missing majority, is in the report.
    """
    scan = Scan(Path(path), settings or Settings(), on_progress or silent, command)
    return scan.report()


def _check_dora(cohort: Cohort, settings: Settings) -> None:
    for adapter in [] if settings.allow_dora else cohort.clients:
        if any(spec.start is Start.MAGNITUDE for spec in adapter.updates.values()):
            raise UsageError(
                f"{adapter.client} is DoRA, which also scales the rows of W + B A by magnitudes: "
                "--allow-dora refines B A alone and leaves every client its magnitudes"
            )


def refine(
    path: Path | str,
    out: Path | str,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Detect, then write refined adapters of the benign clients and the report into the folder `out`.

    `out` appears whole or not at all, and not at all where no verdict can be given. Raises what
    `detect` raises, UsageError where `out` cannot be used, and OutputError where writing fails.
    `command` goes into the report's `run`.
    """
    path, out, settings = Path(path), Path(out), settings or Settings()
    if not path.is_dir():
        raise UsageError(f"{str(path)!r}: no such folder; give the one that holds the clients")
    publish.check_output(out, path, settings.overwrite)
    counts = {} if settings.weights is None else read_counts(settings.weights)
    scan = Scan(path, settings, on_progress or silent, command)
    _check_dora(scan.cohort, settings)
    for adapter in scan.cohort.clients:
        try:
            check_writable(adapter, (settings.rank, settings.write) != ("keep", "keep"))
        except OutputError as error:
            raise UsageError(f"{error}; nothing was written") from None
    report = scan.report()
    if report.status == "no_verdict":
        return report
    with publish.staged(out, settings.overwrite, path, __version__) as stage:
        try:
            refinement = write_refined(scan, report, stage, counts)
        except AdapterError as error:  # it was readable a moment ago, so it has changed since
            raise NoVerdict(f"{error}; nothing was written, run again") from error
        report = replace(report, refinement=refinement, run=scan.run())
        publish.write_bytes(stage / "report.json", RENDERERS["json"](report).encode())
    return report
