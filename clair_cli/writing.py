"""Refined adapters of the benign clients, written module by module below a staging folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clair_cli import formats, publish
from clair_cli.cohort import Adapter, Cohort
from clair_cli.engines import ENGINES
from clair_cli.errors import NoVerdict
from clair_cli.report import Report
from clair_cli.scan import Scan, stored_dtypes
from clair_cli.settings import Settings

if TYPE_CHECKING:
    from clair_cli.refine import RefinedModule

RESERVED = {publish.GLOBAL, "report.json", publish.MANIFEST, "con", "prn", "aux", "nul"}
PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")


def _folder_names(clients: Sequence[str]) -> dict[str, str]:
    """A folder name per client: its id where that is plain and alone, else client- and a hash of it."""
    folded = [c.casefold() for c in clients]
    names = {}
    for client, key in zip(clients, folded, strict=True):
        plain = PLAIN.fullmatch(client) and key not in RESERVED and folded.count(key) == 1
        digest = hashlib.sha256(os.fsencode(client)).hexdigest()[:8]
        names[client] = client if plain else f"client-{digest}"
    return names


def write_refined(scan: Scan, report: Report, stage: Path) -> dict[str, Any]:
    """Write every benign client's refined adapter below `stage`, one module at a time.

    Raises NoVerdict where no client is benign, OutputError, and AdapterError where an input changed.
    """
    writing = _Refining(scan, report, stage)
    job = partial(_refine_job, writing.plan)
    total = len(scan.cohort.modules)
    try:
        for done, refined in enumerate(ENGINES["local"].map(job, scan.cohort.modules), start=1):
            writing.put(refined)
            scan.on_progress("refining modules", done, total)
        return writing.finish()
    finally:
        writing.abandon()


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What a refinement job needs: names, paths and numbers."""

    clients: tuple[Adapter, ...]
    weights: tuple[float, ...]
    settings: Settings
    strength: float
    device: str
    dtype: Literal["float32", "float64"]


def _refine_job(plan: _Plan, module: str) -> tuple[str, RefinedModule]:
    from clair_cli.refine import refine_module

    updates = [formats.read_update(a, module, plan.dtype, plan.device) for a in plan.clients]
    rank = plan.settings.rank
    ranks = [a.updates[module].rank if rank == "keep" else rank for a in plan.clients]
    s = plan.settings.subspace_rank
    return module, refine_module(updates, plan.weights, ranks, s, plan.strength)


class _Refining:
    """Open writers of all refined adapters, and what is to be reported of them."""

    def __init__(self, scan: Scan, report: Report, stage: Path) -> None:
        import numpy as np

        from clair_cli.decompose import tables
        from clair_cli.refine import auto_strength

        benign = {c.client for c in report.clients if c.verdict == "benign"}
        clients = tuple(a for a in scan.cohort.clients if a.client in benign)
        if not clients:
            raise NoVerdict("no client is benign: there is nothing to refine; see `clair detect`")
        settings = scan.settings
        strength = settings.strength
        if strength == "auto":
            kept = [a.client in benign for a in scan.cohort.clients]
            strength = auto_strength(tables(scan.stacks)[0], np.array(kept))
        weights = (1 / len(clients),) * len(clients)
        dtype = _writing_dtype(scan.cohort, settings)
        self.plan = _Plan(clients, weights, settings, strength, scan.device, dtype)
        self.modules = scan.cohort.modules
        self.rank = None if settings.rank == "keep" else settings.rank
        names = _folder_names([a.client for a in clients])
        self.writers = {}
        for adapter in clients:
            self.writers[adapter.client] = self._open(adapter, stage / names[adapter.client])
        self.names, self.common = names, None
        if settings.write_global:
            self.common = self._open(self._template(), stage / publish.GLOBAL)
        self.totals = {a.client: [0.0, 0.0, 0.0] for a in clients}
        self.deviation = self.averaged = 0.0
        self.found: list[dict[str, Any]] = []

    def _open(self, adapter: Adapter, folder: Path) -> Any:
        folder.mkdir()
        return formats.open_writer(adapter, folder, self.modules, self.rank)

    def _template(self) -> Adapter:
        """The benign client of the largest rank: its config and its other tensors go with the mean."""
        return max(self.plan.clients, key=lambda a: sum(s.rank for s in a.updates.values()))

    def put(self, refined: tuple[str, RefinedModule]) -> None:
        """Write one module of every client and let go of it."""
        module, result = refined
        for k, adapter in enumerate(self.plan.clients):
            self.writers[adapter.client].put(module, result.updates[k])
            for i, part in enumerate((result.squared, result.moved, result.lost)):
                self.totals[adapter.client][i] += float(part[k])
        if self.common is not None:
            self.common.put(module, result.common)
        self.deviation += result.deviation
        self.averaged += result.averaged
        self.found.append(
            {
                "name": module,
                "subspace_rank": result.subspace_rank,
                "spectrum": [float(x) for x in result.spectrum],
            }
        )

    def abandon(self) -> None:
        """Let go of every file that was not finished."""
        for writer in self.writers.values():
            writer.abandon()
        if self.common is not None:
            self.common.abandon()

    def finish(self) -> dict[str, Any]:
        """Close all files; the `refinement` part of the report."""
        for writer in self.writers.values():
            writer.close()
        everything = None
        if self.common is not None:
            self.common.close()
            everything = {"path": publish.GLOBAL, "template": self._template().client}
        return {
            "strength": self.plan.strength,
            "averaged_away": self._averaged_away(),
            "subspace_ranks": [m["subspace_rank"] for m in self.found],
            "modules": self.found,
            "clients": [self._of(a) for a in self.plan.clients],
            "global": everything,
        }

    def _averaged_away(self) -> float:
        """Share of the benign clients' energy around their mean that refinement takes away."""
        outside = self.averaged / self.deviation if self.deviation > 0 else 0.0
        return outside * (1 - (1 - self.plan.strength) ** 2)

    def _of(self, adapter: Adapter) -> dict[str, Any]:
        squared, moved, lost = self.totals[adapter.client]
        scale = squared if squared > 0 else 1.0
        ranks = [s.rank for m, s in adapter.updates.items()]
        return {
            "id": adapter.client,
            "path": self.names[adapter.client],
            "rank": max(ranks) if self.rank is None else self.rank,
            "truncation_error": (lost / scale) ** 0.5,
            "change": (moved / scale) ** 0.5,
        }


def _writing_dtype(cohort: Cohort, settings: Settings) -> Literal["float32", "float64"]:
    """For what is written back: one precision above what is stored, so that only storing rounds."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float64" if stored_dtypes(cohort) & {"F32", "F64"} else "float32"
