"""Adapters looked at and not judged, without torch: one with its norms, or a folder of them."""

from __future__ import annotations

from pathlib import Path

from clair_cli import formats
from clair_cli.cohort import Adapter, Cohort, Entries, align, natural_key
from clair_cli.errors import contained
from clair_cli.formats import open_adapter
from clair_cli.formats.deadline import deadline
from clair_cli.results import (
    InspectedClient,
    InspectedFolder,
    InspectedFull,
    InspectedModule,
    Inspection,
    SharedFull,
)
from clair_cli.settings import Settings


def inspect(path: Path, settings: Settings) -> Inspection:
    """Open one adapter and look at every number in it. Raises AdapterError where it is broken."""
    with contained("cannot be read"), deadline(settings.client_timeout):
        return _inspected(open_adapter(path, settings))


def _inspected(adapter: Adapter) -> Inspection:
    names = sorted(adapter.updates, key=natural_key)
    used = {t for s in adapter.updates.values() for t in s.tensors.values()}
    used |= {spec.tensor for spec in adapter.full.values()}
    return Inspection(
        client=adapter.client,
        format=adapter.format,
        base=adapter.base,
        files=tuple((f.name, f.size, f.sha256) for f in adapter.files.values()),
        modules=tuple(_module(adapter, name) for name in names),
        passed_through=tuple(sorted(set(adapter.tensors) - used)),
        notes=adapter.notes,
        full=tuple(_full(adapter, name) for name in sorted(adapter.full, key=natural_key)),
    )


def _module(adapter: Adapter, name: str) -> InspectedModule:
    spec, norm = adapter.updates[name], formats.norm(adapter, name)
    return InspectedModule(name, spec.d_out, spec.d_in, spec.rank, spec.scale, spec.dtype, norm)


def _full(adapter: Adapter, name: str) -> InspectedFull:
    spec = adapter.full[name]
    return InspectedFull(name, spec.shape, spec.dtype, formats.full_norm(adapter, name))


def inspect_folder(path: Path, entries: Entries, settings: Settings) -> InspectedFolder:
    """The clients of the folder `path`, by their headers, and what `detect` would compare."""
    cohort = align(entries, settings.min_shared_modules, settings.modules == "same")
    return InspectedFolder(
        folder=str(path),
        clients=_clients(entries, cohort),
        modules=len(cohort.modules),
        full=tuple(SharedFull(n, s, len(cohort.having(n))) for n, s in cohort.full.items()),
        findings=cohort.findings,
    )


def _clients(entries: Entries, cohort: Cohort) -> tuple[InspectedClient, ...]:
    """All clients of the folder in natural order, those that cannot be compared included."""
    errors = {b.client: b.reason for b in cohort.broken}
    notes = {a.client: a.notes for a in cohort.clients}
    opened = {a.client: a for a in entries.adapters}
    found = [InspectedClient(b.client, error=b.reason) for b in entries.broken]
    for client, adapter in opened.items():
        found.append(
            InspectedClient(
                client=client,
                format=adapter.format,
                base=adapter.base,
                modules=len(adapter.updates),
                ranks=tuple(sorted({spec.rank for spec in adapter.updates.values()})),
                full=len(adapter.full),
                notes=notes.get(client, adapter.notes),
                error=errors.get(client),
            )
        )
    return tuple(sorted(found, key=lambda c: natural_key(c.client)))
