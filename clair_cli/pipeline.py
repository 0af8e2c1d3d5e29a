"""detect() and refine(): a folder of adapters to a report, and to a folder of refined adapters."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from clair_cli import formats, history
from clair_cli._version import __version__
from clair_cli.acceptance import accepting
from clair_cli.baseline import Earlier, against, read_baseline
from clair_cli.cohort import By, Cohort, Entries, Start, align, grouped, natural_key
from clair_cli.detection.record import Detection, Machine, too_few
from clair_cli.errors import AdapterError, NoVerdict, OutputError, UsageError
from clair_cli.opening import check_files, open_entries
from clair_cli.output import publish
from clair_cli.output.folders import REPORT, folder_names
from clair_cli.output.signature import sealer
from clair_cli.progress import Progress, Stopwatch, silent
from clair_cli.rarity import rated
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report, gated, over_rounds
from clair_cli.results import Apart, Survey, Surveyed
from clair_cli.settings import Settings, failing_verdicts


def detect(
    path: Path | str,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Which clients of the folder `path` are contaminated, where, how sure, and why.

    Raises UsageError (no such folder) or NoVerdict (nothing in it that could be a client); everything
    wrong with single clients, and a missing majority, is in the report. `command` goes into its `run`.
    """
    path, settings = Path(path), settings or Settings()
    tell = Stopwatch(on_progress or silent)
    clock, earlier = _Clock(command, tell), _earlier(settings)
    _check_history(settings)
    cohort = opened(path, settings, tell)
    detection = examined(cohort, settings, tell)
    return reported(detection, path, settings, clock, earlier)


def detect_groups(
    path: Path | str,
    by: By = "base",
    settings: Settings | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Survey:
    """Detect in each group of clients of the folder `path` that can be compared: a cohort by itself.

    They are of one base model, unless `by` is "shapes", and their modules have the same shapes. Raises
    what `detect` raises.
    """
    path, settings = Path(path), settings or Settings()
    found = grouped(
        _entries(path, settings, on_progress or silent), by, settings.min_shared_modules
    )
    apart = [Apart(a.client, a.base) for a in found.apart]
    groups = []
    judged = {a.client for group in found.groups for a in group.entries.adapters}
    for number, group in enumerate(found.groups):
        clock = _Clock(command, Stopwatch(on_progress or silent))
        cohort = _aligned(group.entries, settings, by == "base")
        bases = {a.client: a.base for a in group.entries.adapters}
        apart += [Apart(b.client, bases[b.client], b.reason) for b in cohort.broken]
        detection = examined(replace(cohort, broken=()), settings, clock.watch)
        own = tuple(  # what is about nobody is said once
            e for e in settings.accept if e.client in bases or not (number or e.client in judged)
        )
        report = reported(detection, path, replace(settings, accept=own), clock)
        inputs = {**report.inputs, "group": group.name}
        groups.append(Surveyed(group.name, replace(report, inputs=inputs)))
    broken = tuple((b.client, b.reason) for b in found.rest.broken)
    return Survey(
        folder=str(path),
        by=by,
        fail_on=settings.fail_on,
        groups=tuple(groups),
        apart=tuple(sorted(apart, key=lambda a: natural_key(a.client))),
        broken=broken,
        findings=found.rest.findings,
        exit_code=_worst(groups, bool(broken) and "broken" in failing_verdicts(settings.fail_on)),
    )


def _worst(groups: Sequence[Surveyed], failed: bool) -> int:
    """1 where something fails the gate, 3 where nothing has a verdict."""
    codes = {g.report.exit_code for g in groups}
    return 1 if failed or 1 in codes else 0 if 0 in codes else NoVerdict.exit_code


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
    """
    path, out, settings = Path(path), Path(out), settings or Settings()
    tell = Stopwatch(on_progress or silent)
    clock, counts = _Clock(command, tell), _check_places(path, out, settings)
    earlier = _earlier(settings)
    _check_history(settings)
    seal = sealer(settings.sign, __version__) if settings.sign is not None else None
    cohort = opened(path, settings, tell)
    _check_refinable(cohort, settings)
    detection = examined(cohort, settings, tell)
    report = reported(detection, path, settings, clock, earlier)
    if report.status == "no_verdict":
        return report
    with publish.staged(out, settings.overwrite, path, __version__, seal) as stage:
        report = refined(detection, report, stage, settings, counts, tell)
        report = replace(report, run=clock.run(detection.machine))
        publish.write_bytes(stage / REPORT, RENDERERS["json"](report).encode())
    return report


# --- the steps


def opened(path: Path, settings: Settings, on_progress: Progress = silent) -> Cohort:
    """The clients of the folder that can be compared, known from their headers."""
    return _aligned(_entries(path, settings, on_progress), settings)


def _entries(path: Path, settings: Settings, on_progress: Progress) -> Entries:
    if settings.device == "cuda":
        from clair_cli.detection.reading import check_device

        check_device(settings)
    return open_entries(path, settings, on_progress)


def _aligned(entries: Entries, settings: Settings, bases: bool = True) -> Cohort:
    return align(entries, settings.min_shared_modules, settings.modules == "same", bases)


def examined(cohort: Cohort, settings: Settings, on_progress: Progress = silent) -> Detection:
    """Read every module once, decompose the stacks, judge every client."""
    if too_few(cohort):
        return Detection(cohort)
    from clair_cli.detection.full import read_full
    from clair_cli.detection.judging import judged
    from clair_cli.detection.later import later_round
    from clair_cli.detection.reading import numerics, read_modules, without_failed

    on_progress("loading libraries", 1, 1)
    with numerics(cohort, settings) as machine:
        cohort, stacks = read_modules(cohort, settings, machine, on_progress)
        if too_few(cohort):
            return Detection(cohort, stacks, machine=machine)
        if remark := later_round(cohort, stacks, settings.detection):
            cohort = replace(cohort, findings=(*cohort.findings, remark))
            if settings.later_round == "refuse":
                return Detection(cohort, stacks, machine=machine)
        full = read_full(cohort, settings, machine.device, on_progress)
        if full.failed:
            cohort, stacks, full = without_failed(cohort, stacks, full)
        if too_few(cohort):
            return Detection(cohort, stacks, machine=machine)
        return judged(cohort, stacks, full, settings, machine, on_progress)


def reported(
    detection: Detection,
    path: Path,
    settings: Settings,
    clock: _Clock,
    earlier: Earlier | None = None,
) -> Report:
    """The report of a detection, gated by `settings.fail_on`, and against an earlier report."""
    from clair_cli.detection.reporting import inputs, population, verdicts

    judged = detection.judgement
    found = population(detection, settings)
    clients = rated(verdicts(detection), settings.detection, detection.only_copied)
    report = Report(
        tool={"name": "clair", "version": __version__},
        run=clock.run(detection.machine),
        inputs=inputs(detection.cohort, str(path), settings.since),
        settings=settings.as_dict(),
        status="complete" if judged is not None and judged.identified else "no_verdict",
        exit_code=0,
        population=found,
        clients=clients,
    )
    if settings.history is not None:
        report = history.recorded(report, settings.history)
    report = report if earlier is None else against(report, earlier)
    report = accepting(report, settings.accept, clock.started_at.date())
    return gated(report, settings.fail_on)


def refined(
    detection: Detection,
    report: Report,
    stage: Path,
    settings: Settings,
    counts: Mapping[str, float],
    on_progress: Progress = silent,
) -> Report:
    """Plan what is to be done to whom, write it below `stage`, and say so in the report."""
    from clair_cli.detection.reading import numerics
    from clair_cli.refinement.plan import plan_refinement
    from clair_cli.refinement.sparing import write_spared

    plan = partial(plan_refinement, detection, over_rounds(report), settings, counts)
    try:
        with numerics(detection.cohort, settings):
            refinement, without = write_spared(plan, stage, on_progress)
    except AdapterError as error:  # it was readable a moment ago, so it has changed since
        raise NoVerdict(f"{error}; nothing was written, run again") from error
    clients = tuple(
        replace(c, reasons=c.reasons + without.get(c.client, ())) for c in report.clients
    )
    return replace(report, refinement=refinement, clients=clients)


# --- what is checked before anything is read


def _earlier(settings: Settings) -> Earlier | None:
    """The baseline, where one is given. Raises UsageError."""
    return None if settings.baseline is None else read_baseline(settings.baseline)


def _check_history(settings: Settings) -> None:
    """Raises UsageError where the ledger cannot take this run's round."""
    if settings.history is None:
        return
    if not history.fits(settings.detection):
        text = (
            "evidence was measured with the default constants of detection; leave one of them out"
        )
        raise UsageError(f"--history: {text}")
    history.check(settings.history)


def _check_places(path: Path, out: Path, settings: Settings) -> dict[str, float]:
    """Sample counts per client, once input and output are known to be usable. Raises UsageError."""
    if not path.is_dir():
        raise UsageError(f"{str(path)!r}: no such folder; give the one that holds the clients")
    publish.check_output(out, path, settings.overwrite)
    if settings.since is not None:
        check_files(settings)
        publish.check_output(out, settings.since, settings.overwrite, "what --since names")
    if settings.follow_symlinks:
        publish.check_apart(out, path)
    if settings.weights is None:
        return {}
    from clair_cli.refinement.members import read_counts

    return read_counts(settings.weights)


def _check_refinable(cohort: Cohort, settings: Settings) -> None:
    """Raises UsageError, naming the client, for what could not be written back."""
    folder_names(cohort.ids)
    for adapter in cohort.clients:
        starts = {spec.start for spec in adapter.updates.values()}
        if Start.MAGNITUDE in starts and not settings.allow_dora:
            raise UsageError(
                f"{adapter.client} is DoRA, which also scales the rows of W + B A by magnitudes: "
                "--allow-dora refines B A alone and leaves every client its magnitudes"
            )
    for adapter in cohort.clients:
        try:
            formats.check_writable(adapter, (settings.rank, settings.write) != ("keep", "keep"))
        except OutputError as error:
            raise UsageError(f"{error}; nothing was written") from None


@dataclass(frozen=True, slots=True)
class _Clock:
    """When a run began, by which command, and where its time goes."""

    command: str | None
    watch: Stopwatch
    began: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def run(self, machine: Machine) -> dict[str, Any]:
        """All that may differ between equal runs."""
        self.watch.count("reporting")
        torch = sys.modules.get("torch")
        environment = {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "torch": getattr(torch, "__version__", None),
            "threads": machine.threads,
            "device": machine.device,
        }
        return {
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "duration_s": time.monotonic() - self.began,
            "timings": self.watch.timings(),
            "command": self.command,
            "environment": environment,
        }
