"""What is checked before anything is computed: places, files of earlier runs, and who can be written."""

from __future__ import annotations

from pathlib import Path

from clair_cli import cache, formats, history
from clair_cli.baseline import Earlier, read_baseline
from clair_cli.cohort import Adapter, Cohort, Start
from clair_cli.errors import ClairError, OutputError, UsageError
from clair_cli.opening import check_files
from clair_cli.output import publish
from clair_cli.output.folders import folder_names
from clair_cli.settings import Settings


def earlier(settings: Settings) -> Earlier | None:
    """The baseline, where one is given. Raises UsageError."""
    return None if settings.baseline is None else read_baseline(settings.baseline)


def check_history(settings: Settings) -> None:
    """Raises UsageError where the ledger cannot take this run's round."""
    if settings.history is None:
        return
    if not history.fits(settings.detection):
        text = (
            "evidence was measured with the default constants of detection; leave one of them out"
        )
        raise UsageError(f"--history: {text}")
    history.check(settings.history)


def begin_cache(settings: Settings, *places: Path) -> None:
    """Raises UsageError where the cache lies in what is read or written, or that in the cache."""
    if settings.cache is None:
        return
    linked = publish.linked_folders(places[0]).values() if settings.follow_symlinks else ()
    sent = () if settings.since is None else (settings.since,)
    cache.begin(settings, *places, *linked, *sent)


def check_places(path: Path, out: Path, settings: Settings) -> None:
    """Raises UsageError where the input cannot be read or the output not be written."""
    if not path.is_dir():
        formats.discover(path)  # raises
    publish.check_output(out, path, settings.overwrite)
    if settings.since is not None:
        check_files(settings)
        publish.check_output(out, settings.since, settings.overwrite, "what --since names")
    if settings.follow_symlinks:
        publish.check_apart(out, path)


def not_refinable(cohort: Cohort, settings: Settings) -> dict[str, ClairError]:
    """The clients that cannot be written back, and why: they cost themselves their adapters.

    Raises UsageError, naming the first, where most are such.
    """
    folder_names(cohort.ids)
    found: dict[str, ClairError] = {}
    for adapter in cohort.clients:
        try:
            _check_refinable(adapter, settings)
        except (OutputError, UsageError) as error:
            found[adapter.client] = error
    if 2 * len(found) > len(cohort.clients):
        raise UsageError(f"{next(iter(found.values()))}; nothing was written")
    return found


def _check_refinable(adapter: Adapter, settings: Settings) -> None:
    """Raises UsageError for what has to be allowed, OutputError for what cannot be."""
    starts = {spec.start for spec in adapter.updates.values()}
    if Start.MAGNITUDE in starts and not settings.allow_dora:
        raise UsageError(
            f"{adapter.client} is DoRA, which also scales the rows of W + B A by magnitudes: "
            "--allow-dora refines B A alone and leaves every client its magnitudes"
        )
    formats.check_writable(adapter, (settings.rank, settings.write) != ("keep", "keep"))
