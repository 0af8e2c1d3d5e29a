"""One adapter looked at by itself: modules, shapes, ranks, scaling and norms, without torch."""

from __future__ import annotations

from pathlib import Path

from clair_cli import formats
from clair_cli.cohort import Adapter, natural_key
from clair_cli.formats import open_adapter
from clair_cli.results import InspectedModule, Inspection
from clair_cli.settings import Settings


def inspect(path: Path, settings: Settings) -> Inspection:
    """Open one adapter and look at every number in it. Raises AdapterError where it is broken."""
    adapter = open_adapter(path, settings)
    names = sorted(adapter.updates, key=natural_key)
    used = {t for s in adapter.updates.values() for t in s.tensors.values()}
    return Inspection(
        client=adapter.client,
        format=adapter.format,
        base=adapter.base,
        files=tuple((f.name, f.size, f.sha256) for f in adapter.files.values()),
        modules=tuple(_module(adapter, name) for name in names),
        passed_through=tuple(sorted(set(adapter.tensors) - used)),
        notes=adapter.notes,
    )


def _module(adapter: Adapter, name: str) -> InspectedModule:
    spec, norm = adapter.updates[name], formats.norm(adapter, name)
    return InspectedModule(name, spec.d_out, spec.d_in, spec.rank, spec.scale, spec.dtype, norm)
