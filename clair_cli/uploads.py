"""One upload beside a cohort: whom it stands for, what is said of it; and what is said of a cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from clair_cli.cohort import Adapter, Broken, Cohort, Entries, natural_key
from clair_cli.cohort.whole import few
from clair_cli.errors import AdapterError, NoVerdict
from clair_cli.formats import client_name
from clair_cli.formats.reference import write_reference
from clair_cli.formats.sketch import Head, sources
from clair_cli.output.replaced import replacing
from clair_cli.report import Reason, Report, Verdict, failing
from clair_cli.results import Checked, Fitted
from clair_cli.settings import Settings

NEAR = 1.0
"""Points from the limit within which another draw, or one client more, may turn a verdict."""


def joined(own: Adapter, members: Entries) -> tuple[Entries, tuple[str, ...]]:
    """The members and the upload, which stands for the member of its name and for those made of its
    file; and whom it stands for."""
    made_of = sources(own)
    gone = [a.client for a in members.adapters if a.client == own.client or sources(a) == made_of]
    kept = [a for a in members.adapters if a.client not in gone]
    left = [b for b in members.broken if b.client != own.client]
    return replace(members, adapters=(*kept, own), broken=tuple(left)), tuple(gone)


def broken(upload: Path, error: AdapterError) -> Broken:
    """An upload that cannot be opened."""
    return Broken(client_name(upload), Reason(error.code, str(error)))


def aside_of(cohort: Cohort, client: str) -> Broken | None:
    """Why the client is not compared, if it is not."""
    return next((b for b in cohort.broken if b.client == client), None)


def unusable(
    against: str, file: str | None, members: int, settings: Settings, found: Broken
) -> Checked:
    """What is said of an upload that is broken, or cannot be compared: it fails unless nothing does."""
    return Checked(
        status="complete",
        exit_code=0 if settings.fail_on == "never" else AdapterError.exit_code,
        fail_on=settings.fail_on,
        verdict=Verdict(found.client, "broken", reasons=(found.reason,)),
        against=against,
        sha256=file,
        members=members,
    )


def judged_upload(
    report: Report, client: str, against: str, file: str | None, left: tuple[str, ...]
) -> Checked:
    """The part of the joint report that is about the upload; the others fail nothing."""
    verdict = next(c for c in report.clients if c.client == client)
    fail_on = str(report.settings["fail_on"])
    failed = verdict in failing(report, fail_on)
    return Checked(
        status=report.status,
        exit_code=NoVerdict.exit_code if report.status == "no_verdict" else int(failed),
        fail_on=fail_on,
        verdict=verdict,
        against=against,
        sha256=file,
        members=len(report.clients) - 1 - report.counts["broken"],
        in_place_of=left,
        findings=(*_broken(report), *report.population.findings),
    )


def _broken(report: Report) -> Iterator[Reason]:
    """A remark on every member that could not be compared."""
    for client in report.clients:
        if client.verdict == "broken":
            reason = client.reasons[0]
            yield Reason(reason.code, f"{client.client} is left out: {reason.message}")


# --- what a reference file keeps, and what is said of it


def keep(path: Path, adapters: Sequence[Adapter], report: Report) -> None:
    """The reference file of these sketches at `path`, whole or not at all. Raises OutputError."""
    with replacing(path) as fresh:
        write_reference(fresh, adapters, slim(report))


def slim(report: Report) -> Report:
    """The report without what is said of every module of every client: it would outgrow the sketches."""
    clients = tuple(replace(c, modules=()) for c in report.clients)
    return replace(report, clients=clients, population=replace(report.population, agreement=None))


def sources_of(entries: Entries, root: str) -> dict[str, Any]:
    """Every file that the sketches were made of, by client, with its size and sha256."""
    files: dict[str, list[dict[str, Any]]] = {b.client: [] for b in entries.broken}
    for adapter in entries.adapters:
        head: Head = adapter.config["sketch"]
        files[adapter.client] = [
            {"name": f.name, "size": f.size, "sha256": f.sha256} for f in head.files
        ]
    clients = [{"id": client, "files": files[client]} for client in sorted(files, key=natural_key)]
    return {"root": root, "clients": clients}


def fitted(path: Path, report: Report, adapters: Sequence[Adapter]) -> Fitted:
    """What is said of the reference file that was written to `path`."""
    data = path.read_bytes()
    kind = adapters[0].sketch
    assert kind is not None
    modules = report.population.modules
    consensus = report.population.consensus
    return Fitted(
        path=str(path),
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        size=kind.size,
        seed=kind.seed,
        modules=len(modules),
        counts=report.counts,
        limit=next((c.limit for c in report.clients if c.limit is not None), None),
        margin=consensus.margin if consensus is not None else None,
        sketch_error=max((m.sketch_error for m in modules), default=0.0),
        unsure=tuple(_unsure(report, adapters)),
    )


def _unsure(report: Report, adapters: Sequence[Adapter]) -> Iterator[str]:
    """What the cohort cannot tell apart, and what is not in it."""
    for client in report.clients:
        if client.verdict == "broken":
            reason = client.reasons[0]
            yield f"{client.client} is not in it: {reason.code} {reason.message}"
        elif client.score is not None and client.limit is not None:
            if abs(client.score - client.limit) < NEAR:
                yield f"{client.client} scores {client.score:.1f}, near the limit {client.limit:.1f}"
            if client.depends_on:
                names = few(client.depends_on)
                yield f"the verdict on {client.client} would be another one without {names}"
    consensus = report.population.consensus
    if consensus is not None and consensus.margin is None:
        yield "nobody is contaminated: how far contaminated clients are from these is not known"
    for group in report.population.minorities:
        text = "differ from the majority in the same way: an upload like them may be either"
        yield f"{few(group.members)} {text}"
    left_out = {text: a.client for a in adapters for text in a.config["sketch"].left_out}
    for text, name in left_out.items():
        yield f"not in the sketches, as of {name}: {text}"
    yield from (f"{r.code} {r.message}" for r in report.population.findings)
