"""detect() and refine(): a folder of adapters to a report, and to a folder of refined adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from clair_cli import beforehand, history, uploads
from clair_cli._version import __version__
from clair_cli.acceptance import accepting
from clair_cli.baseline import Earlier, against
from clair_cli.clock import Clock, Stopwatch
from clair_cli.cohort import (
    By,
    Cohort,
    Entries,
    Sketching,
    align,
    grouped,
    natural_key,
    without_sketches,
)
from clair_cli.detection.record import Detection, too_few
from clair_cli.errors import AdapterError, ClairError, NoVerdict, UsageError
from clair_cli.formats.reference import open_reference
from clair_cli.formats.remote import Place
from clair_cli.opening import at_hand, check_files, open_client, open_entries
from clair_cli.output import publish, replaced
from clair_cli.output.folders import REPORT
from clair_cli.output.signature import sealer
from clair_cli.progress import Progress, silent
from clair_cli.rarity import rated
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report, gated, over_rounds
from clair_cli.results import Apart, Checked, Fitted, Survey, Surveyed
from clair_cli.settings import Settings, failing_verdicts
from clair_cli.sketching import all_sketched, kind_of


def detect(
    path: Path | str,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> Report:
    """Which clients of the folder `path` are contaminated, where, how sure, and why.

    Raises UsageError (no such folder) or NoVerdict (what was sent has changed meanwhile); everything
    wrong with single clients, and a missing majority or an empty folder, is in the report. `command`
    goes into its `run`.
    """
    path, settings = Path(path), settings or Settings()
    tell = Stopwatch(on_progress or silent)
    clock, earlier = Clock(command, tell), beforehand.earlier(settings)
    beforehand.check_history(settings)
    with at_hand(path, settings) as place:
        beforehand.begin_cache(settings, place.folder)
        cohort = opened(place, settings, tell)
        detection = examined(cohort, settings, tell)
        return reported(detection, place.name, settings, clock, earlier)


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
    settings = settings or Settings()
    with at_hand(Path(path), settings) as place:
        return _groups_at(place, by, settings, on_progress or silent, command)


def _groups_at(
    place: Place, by: By, settings: Settings, on_progress: Progress, command: str | None
) -> Survey:
    beforehand.begin_cache(settings, place.folder)
    found = grouped(_entries(place, settings, on_progress), by, settings.min_shared_modules)
    apart = [Apart(a.client, a.base) for a in found.apart]
    groups = []
    judged = {a.client for group in found.groups for a in group.entries.adapters}
    for number, group in enumerate(found.groups):
        clock = Clock(command, Stopwatch(on_progress))
        cohort = _aligned(group.entries, settings, by == "base")
        bases = {a.client: a.base for a in group.entries.adapters}
        apart += [Apart(b.client, bases[b.client], b.reason) for b in cohort.broken]
        detection = examined(replace(cohort, broken=()), settings, clock.watch)
        own = tuple(  # what is about nobody is said once
            e for e in settings.accept if e.client in bases or not (number or e.client in judged)
        )
        report = reported(detection, place.name, replace(settings, accept=own), clock)
        inputs = {**report.inputs, "group": group.name}
        groups.append(Surveyed(group.name, replace(report, inputs=inputs)))
    broken = tuple((b.client, b.reason) for b in found.rest.broken)
    return Survey(
        folder=place.name,
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
    clock = Clock(command, tell)
    with at_hand(path, settings) as place:
        return _refined_at(place, out, settings, clock, tell)


def _refined_at(
    place: Place, out: Path, settings: Settings, clock: Clock, tell: Progress
) -> Report:
    beforehand.check_places(place.folder, out, settings)
    counts, earlier = _counts(settings), beforehand.earlier(settings)
    beforehand.check_history(settings)
    beforehand.begin_cache(settings, place.folder, out)
    seal = sealer(settings.sign, __version__) if settings.sign is not None else None
    cohort = opened(place, settings, tell)
    odd = beforehand.not_refinable(cohort, settings)
    detection = examined(cohort, settings, tell)
    report = reported(detection, place.name, settings, clock, earlier)
    if report.status == "no_verdict":
        return report
    with publish.staged(out, settings.overwrite, place.folder, __version__, seal) as stage:
        report = refined(detection, report, stage, settings, counts, odd, tell)
        report = replace(report, run=clock.run(detection.machine.threads, detection.machine.device))
        publish.write_bytes(stage / REPORT, RENDERERS["json"](report).encode())
    return report


def _counts(settings: Settings) -> dict[str, float]:
    """Sample counts per client, where they are given. Raises UsageError."""
    if settings.weights is None:
        return {}
    from clair_cli.refinement.members import read_counts

    return read_counts(settings.weights)


def fit(
    path: Path | str,
    out: Path | str,
    settings: Settings | None = None,
    kind: Sketching | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> tuple[Report, Fitted | None]:
    """Sketch the clients of the folder `path`, judge them by that, and write all as the file `out`.

    The file is written whole or not at all, and not at all without a verdict. Sketches among the
    clients decide the `kind`. Raises what `detect` raises, and OutputError.
    """
    path, out, settings = Path(path), Path(out), settings or Settings()
    tell = Stopwatch(on_progress or silent)
    clock = Clock(command, tell)
    beforehand.begin_cache(settings, path)
    entries = _entries(path, settings, tell)
    with replaced.scratch(out) as folder:
        sketches = all_sketched(entries, kind_of(entries.adapters, kind), folder, settings, tell)
        detection = examined(_aligned(sketches, settings), settings, tell)
        report = reported(detection, path, settings, clock)
        report = replace(report, inputs=uploads.sources_of(sketches, str(path)))
        if report.status == "no_verdict":
            return report, None
        uploads.keep(out, detection.cohort.clients, report)
    return report, uploads.fitted(out, report, detection.cohort.clients)


def check(
    upload: Path | str,
    against: Path | str,
    settings: Settings | None = None,
    update: bool = False,
    on_progress: Progress | None = None,
    command: str | None = None,
    on_judged: Callable[[Checked], object] | None = None,
) -> tuple[Report | None, Checked]:
    """Judge one upload jointly with the clients of a folder, or of the reference file `against`.

    The report is on all of them; there is none where the upload cannot be compared. With `update` one
    that passes the gate is put into the reference file; `on_judged` is told what was found before that
    is written. Raises UsageError and OutputError.
    """
    upload, against, settings = Path(upload), Path(against), settings or Settings()
    clock = Clock(command, Stopwatch(on_progress or silent))
    beforehand.begin_cache(settings, against, upload)
    if not update:
        return _checked(upload, against, settings, clock)[:2]
    if against.is_dir():
        raise UsageError(f"--update: {str(against)!r} is a folder; put the upload into it yourself")
    with replaced.locked(against):
        report, found, cohort = _checked(upload, against, settings, clock)
        if report is None or found.exit_code:
            return report, found
        if on_judged is not None:
            on_judged(found)
        with replaced.scratch(against) as folder:
            kind, own = kind_of(cohort.clients), Entries(cohort.clients)
            uploads.keep(against, all_sketched(own, kind, folder, settings).adapters, report)
    return report, replace(found, updated=True)


def _checked(
    upload: Path, against: Path, settings: Settings, clock: Clock
) -> tuple[Report | None, Checked, Cohort]:
    """The joint report, what it says of the upload, and all clients that were compared."""
    file, tell = None, clock.watch
    if against.is_dir():
        members = _entries(against, settings, tell)
    else:
        check_files(settings)
        reference = open_reference(against, settings)
        file, members = reference.file.sha256, Entries(reference.adapters)
    nobody = Cohort((), (), {})
    refused = partial(uploads.unusable, str(against), file, len(members.adapters), settings)
    try:
        own = open_client(upload, settings)
    except AdapterError as error:
        return None, refused(uploads.broken(upload, error)), nobody
    joint, left = uploads.joined(own, members)
    cohort = _aligned(joint, settings)
    if (aside := uploads.aside_of(cohort, own.client)) is None:
        detection = examined(cohort, settings, tell)
        cohort = detection.cohort
        aside = uploads.aside_of(cohort, own.client)
    if aside is not None:
        return None, refused(aside), nobody
    report = reported(detection, against, settings, clock)
    return report, uploads.judged_upload(report, own.client, str(against), file, left), cohort


# --- the steps


def opened(path: Path | Place, settings: Settings, on_progress: Progress = silent) -> Cohort:
    """The clients of the folder that can be compared, known from their headers."""
    return _aligned(_entries(path, settings, on_progress), settings)


def _entries(path: Path | Place, settings: Settings, on_progress: Progress) -> Entries:
    if settings.device == "cuda":
        from clair_cli.detection.reading import check_device

        check_device(settings)
    return open_entries(path, settings, on_progress)


def _aligned(entries: Entries, settings: Settings, bases: bool = True) -> Cohort:
    if settings.exact or settings.since is not None:
        entries = without_sketches(entries)
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
    path: Path | str,
    settings: Settings,
    clock: Clock,
    earlier: Earlier | None = None,
) -> Report:
    """The report of a detection, gated by `settings.fail_on`, and against an earlier report."""
    from clair_cli.detection.reporting import inputs, population, verdicts

    judged = detection.judgement
    found = population(detection, settings)
    clients = rated(verdicts(detection), settings.detection, detection.only_copied)
    report = Report(
        tool={"name": "clair", "version": __version__},
        run=clock.run(detection.machine.threads, detection.machine.device),
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
    odd: Mapping[str, ClairError],
    on_progress: Progress = silent,
) -> Report:
    """Plan what is to be done to whom, write it below `stage`, and say so in the report.

    `odd` are clients that cannot be written back, and why.
    """
    from clair_cli.detection.reading import numerics
    from clair_cli.refinement.plan import plan_refinement
    from clair_cli.refinement.sparing import write_spared

    wanted = {c.client for c in report.clients if c.verdict != "contaminated"}
    wanted = (wanted | {*settings.include}) - {*settings.exclude}
    odd = {client: error for client, error in odd.items() if client in wanted}
    plan = partial(plan_refinement, detection, over_rounds(report), settings, counts)
    try:
        with numerics(detection.cohort, settings):
            refinement, without = write_spared(plan, stage, on_progress, odd)
    except AdapterError as error:  # it was readable a moment ago, so it has changed since
        raise NoVerdict(f"{error}; nothing was written, run again") from error
    clients = tuple(
        replace(c, reasons=c.reasons + without.get(c.client, ())) for c in report.clients
    )
    return replace(report, refinement=refinement, clients=clients)
