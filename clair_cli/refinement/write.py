"""Refined adapters of the benign clients, written module by module below a staging folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clair_cli import engines, formats
from clair_cli._version import __version__
from clair_cli.cohort import Adapter, Start
from clair_cli.detection.reading import read_estimate
from clair_cli.output import publish
from clair_cli.output.folders import GLOBAL, folder_names, strength_folder
from clair_cli.progress import Progress, silent
from clair_cli.refinement.module import ModuleRefiner, RefinedModule
from clair_cli.refinement.plan import Plan
from clair_cli.refinement.remarks import warnings
from clair_cli.refinement.replicates import errors, replicated
from clair_cli.refinement.strength import expected
from clair_cli.report import GlobalAdapter, ModuleRefinement, RefinedClient, Refinement
from clair_cli.update import LowRankUpdate

PROVENANCE = "clair.json"
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 takes for --max-lora-rank."""


def write_refined(plan: Plan, stage: Path, on_progress: Progress = silent) -> Refinement:
    """Write every refined adapter below `stage`, one module at a time.

    Raises OutputError, and AdapterError where an input changed.
    """
    writing = _Writing(plan, stage)
    job = partial(refine_job, plan)
    results = engines.choose(plan.settings.engine).map(job, plan.modules)
    try:
        for done, (module, refined) in enumerate(results, start=1):
            writing.put(module, refined)
            on_progress("refining modules", done, len(plan.modules))
        return writing.finish()
    finally:
        writing.abandon()


def refine_job(plan: Plan, module: str) -> tuple[str, list[RefinedModule]]:
    """One module of all clients, refined once for every strength of the plan."""
    updates = [read_estimate(a, module, plan.dtype, plan.device) for a in plan.clients]
    refiner = ModuleRefiner(
        updates, plan.weights, _noise(plan, module), numbers=plan.settings.refinement
    )
    ranks = [plan.rank(a, module) for a in plan.clients]
    return module, [
        refiner.refined(how, ranks, mix=None if mix is None else torch.from_numpy(mix))
        for how, mix in zip(plan.shrinkages, plan.mixes, strict=True)
    ]


def _noise(plan: Plan, module: str) -> list[LowRankUpdate]:
    """Updates whose energies sum to the error of all that give, where directions are weighed by it."""
    if not any(how.by_direction and how.side != "client" for how in plan.shrinkages):
        return []
    numbers = plan.settings.refinement
    pairs = zip(plan.clients, plan.weights, strict=True)
    telling = [a for a, weight in pairs if weight and replicated(a)]
    share = (sum(w > 0 for w in plan.weights) / len(telling)) ** 0.5
    noise: list[LowRankUpdate] = []
    for adapter in telling:
        found = errors(adapter, module, plan.dtype, plan.device, numbers)
        factor = share * plan.error_scales.get(adapter.client, 1.0)
        noise += [replace(u, scale=u.scale * factor) for u in found]
    return noise


@dataclass(slots=True)
class _Energies:
    """Sums over modules, per client (K,), as in `RefinedModule`."""

    squared: NDArray[np.float64]
    moved: NDArray[np.float64]
    lost: NDArray[np.float64]
    deviation: NDArray[np.float64]
    kept: NDArray[np.float64]

    @classmethod
    def none(cls, count: int) -> _Energies:
        """The sums before any module, zero for `count` clients."""
        return cls(*(np.zeros(count) for _ in fields(cls)))

    def add(self, module: RefinedModule) -> None:
        """Add the energies of one module more."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(module, f.name))


class _Candidate:
    """Open writers of one strength, and what is to be reported of its clients."""

    def __init__(self, plan: Plan, which: int, folder: Path, names: dict[str, str]) -> None:
        self.plan, self.how, self.names, self.folder = plan, plan.shrinkages[which], names, folder
        self.writers, self.written = {}, {}
        for adapter in plan.clients:
            place = folder / names[adapter.client]
            place.mkdir(parents=True)
            ranks = self.written[adapter.client] = plan.written_ranks(adapter)
            self.writers[adapter.client] = formats.open_writer(adapter, place, plan.modules, ranks)
        self.totals = _Energies.none(len(plan.clients))
        self.changed: set[str] = set()
        self.amplitude = [0.0, 0.0]
        self.gains: list[float] = []

    def put(self, module: str, result: RefinedModule) -> None:
        """Write one module of every client."""
        if self.plan.clients[0].updates[module].start is Start.MAGNITUDE:
            for writer in self.writers.values():
                writer.keep(module)
            return
        for adapter, update in zip(self.plan.clients, result.updates, strict=True):
            writer = self.writers[adapter.client]
            if update is None:
                writer.keep(module)
            else:
                writer.put(module, update)
                self.changed.add(adapter.client)
        self.totals.add(result)
        energy = sum(w * float(d) for w, d in zip(self.plan.weights, result.deviation, strict=True))
        self.amplitude[0] += result.amplitude * energy
        self.amplitude[1] += energy
        self.gains.append(self.how.gain(1 - result.amplitude))

    @property
    def kept(self) -> float:
        """Share of the deviations' amplitude that is kept, over all modules."""
        kept, all_of_it = self.amplitude
        return kept / all_of_it if all_of_it > 0 else 1.0

    @property
    def gain(self) -> float:
        """By how much the mean was enlarged, over all modules."""
        return sum(self.gains) / len(self.gains) if self.gains else 0.0

    def averaged_away(self) -> float:
        """Share of the clients' energy around their mean that refinement takes away."""
        before, after = (
            sum(w * float(e) for w, e in zip(self.plan.weights, energies, strict=True))
            for energies in (self.totals.deviation, self.totals.kept)
        )
        return max(1 - after / before, 0.0) if before > 0 else 0.0

    def close(self) -> None:
        """Every file on disk, and beside each adapter where it comes from and what was done to it."""
        for writer in self.writers.values():
            writer.close()
        applied = {"inside": self.how.inside, "side": self.how.side, "gain": self.gain}
        for said, adapter in zip(self.clients(self.folder), self.plan.clients, strict=True):
            facts = {k: v for k, v in asdict(said).items() if k not in ("client", "path")}
            made = _provenance(adapter, client=adapter.client, refinement=facts | applied)
            publish.write_bytes(self.folder / said.path / PROVENANCE, made)

    def clients(self, above: Path) -> tuple[RefinedClient, ...]:
        """One record per client; paths are relative to `above`."""
        return tuple(self._of(k, a, above) for k, a in enumerate(self.plan.clients))

    def _of(self, k: int, adapter: Adapter, above: Path) -> RefinedClient:
        squared, moved, lost, deviation, kept = (
            float(getattr(self.totals, f.name)[k]) for f in fields(self.totals)
        )
        scale = squared if squared > 0 else 1.0
        ranks = {m: s.rank for m, s in adapter.updates.items()}
        written = self.written[adapter.client]
        return RefinedClient(
            client=adapter.client,
            path=(self.folder / self.names[adapter.client]).relative_to(above).as_posix(),
            rank=max((ranks | (written or {})).values()),
            truncation_error=(lost / scale) ** 0.5,
            change=(moved / scale) ** 0.5,
            strength=self.how.outside,
            weight=self.plan.weights[k],
            deviation=(deviation / scale) ** 0.5,
            averaged_away=max(1 - kept / deviation, 0.0) if deviation > 0 else 0.0,
            unchanged=written is None
            and adapter.client not in self.changed
            and not formats.record(adapter).converts,
        )


class _Mean:
    """The mean of the benign clients, written as an adapter of its own."""

    def __init__(self, plan: Plan, stage: Path) -> None:
        self.plan, self.folder = plan, stage / GLOBAL
        giving = [a for a, w in zip(plan.clients, plan.weights, strict=True) if w]
        # the client of the largest rank that counts: its config and other tensors go with the mean
        self.template = max(giving, key=lambda a: sum(s.rank for s in a.updates.values()))
        self.folder.mkdir()
        ranks = plan.written_ranks(self.template)
        self.writer = formats.open_writer(self.template, self.folder, plan.modules, ranks)
        self.squared = self.lost = 0.0

    def put(self, module: str, result: RefinedModule) -> None:
        """Write one module of the mean."""
        self.writer.put(module, result.common)
        self.squared += result.common_squared
        self.lost += result.common_lost

    def close(self) -> GlobalAdapter:
        """Everything on disk, with whose mean it is."""
        self.writer.close()
        who = zip(self.plan.clients, self.plan.weights, strict=True)
        weights = {a.client: weight for a, weight in who if weight}
        data = _provenance(self.template, template=self.template.client, mean_of=weights)
        publish.write_bytes(self.folder / PROVENANCE, data)
        error = (self.lost / self.squared) ** 0.5 if self.squared > 0 else 0.0
        return GlobalAdapter(GLOBAL, self.template.client, error)


@dataclass(slots=True)
class _Writing:
    """Every candidate and the mean, written module by module."""

    plan: Plan
    stage: Path
    candidates: list[_Candidate] = field(init=False)
    mean: _Mean | None = field(init=False)
    modules: list[ModuleRefinement] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        names = folder_names([a.client for a in self.plan.clients])
        path, self.candidates = self.plan.settings.path, []
        for which in range(len(self.plan.shrinkages)):
            folder = self.stage / strength_folder(path[which]) if path else self.stage
            self.candidates.append(_Candidate(self.plan, which, folder, names))
        self.mean = _Mean(self.plan, self.stage) if self.plan.settings.write_global else None

    def put(self, module: str, results: list[RefinedModule]) -> None:
        """Write one module of every client and let go of it."""
        for candidate, result in zip(self.candidates, results, strict=True):
            candidate.put(module, result)
        first = results[0]
        if self.mean is not None:
            self.mean.put(module, first)
        spectrum = tuple(float(x) for x in first.spectrum)
        self.modules.append(ModuleRefinement(module, first.subspace_rank, spectrum))

    def abandon(self) -> None:
        """Let go of every file that was not finished."""
        for candidate in self.candidates:
            for writer in candidate.writers.values():
                writer.abandon()
        if self.mean is not None:
            self.mean.writer.abandon()

    def finish(self) -> Refinement:
        """Close all files; what was done, as the report says it."""
        for candidate in self.candidates:
            candidate.close()
        first, known, plan = self.candidates[0], self.plan.known, self.plan
        clients = tuple(c for one in self.candidates for c in one.clients(self.stage))
        done = Refinement(
            strength=first.how.outside,
            inside=first.how.inside,
            side=first.how.side,
            gain=first.gain,
            knowledge="adapters alone" if known.noise is None else "replicates",
            replicates_agree=known.agreed,
            averaged_away=first.averaged_away(),
            subspace_ranks=tuple(round(m.subspace_rank) for m in self.modules),
            initialisation=known.initialisation,
            common_share=known.common_share,
            spread=known.spread,
            spectrum=tuple(float(x) for x in known.spectrum),
            gap=known.gap,
            gap_after=known.gap_after,
            expected=expected(first.kept, known),
            max_lora_rank=self._served(clients),
            modules=tuple(self.modules),
            clients=clients,
            mean=self.mean.close() if self.mean is not None else None,
        )
        remarks = (*plan.remarks, *warnings(done, plan.settings, plan.relative))
        return replace(done, warnings=remarks)

    def _served(self, clients: tuple[RefinedClient, ...]) -> int | None:
        """The least value a server takes that admits all; None where it serves no such files."""
        rank = max(c.rank for c in clients[: len(self.plan.clients)])
        served = all(formats.record(a).served for a in self.plan.clients)
        return next((r for r in SERVED_RANKS if r >= rank), rank) if served else None


def _provenance(adapter: Adapter, **facts: Any) -> bytes:
    """clair.json: the files an adapter was made from, and `facts` on what was done."""
    files = [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in adapter.files.values()]
    made: Mapping[str, Any] = {
        "tool": {"name": "clair", "version": __version__},
        "base_model": adapter.base,
        "format": adapter.format,
        "files": files,
    }
    return json.dumps({**made, **facts}, indent=1, allow_nan=False).encode() + b"\n"
