"""What is written of one group at one strength, and of the mean: every client on its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clair_cli import formats
from clair_cli._version import __version__
from clair_cli.cohort import Adapter, Start
from clair_cli.formats import AdapterWriter
from clair_cli.output import publish
from clair_cli.output.folders import GLOBAL
from clair_cli.refined import GlobalAdapter, RefinedClient
from clair_cli.refinement.blame import LeftOut, is_of_client
from clair_cli.refinement.module import RefinedModule
from clair_cli.refinement.plan import Plan
from clair_cli.refinement.whole import Rows

PROVENANCE = "clair.json"


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


class Candidate:
    """Open writers of one group at one strength, and what is to be reported of its clients."""

    def __init__(
        self, plan: Plan, group: int, which: int, folder: Path, names: Mapping[str, str]
    ) -> None:
        self.plan, self.group, self.number = plan, plan.groups[group], group
        self.how, self.keeps = self.group.shrinkages[which], self.group.keeps[which]
        self.names, self.folder = names, folder
        self.writers: dict[str, AdapterWriter] = {}
        self.without: dict[str, Exception] = {}
        self.written = {a.client: plan.written_ranks(a) for a in self.group.clients}
        for adapter in self.group.clients:
            place, ranks = folder / names[adapter.client], self.written[adapter.client]
            place.mkdir(parents=True)
            with self._alone(adapter.client):
                writer = formats.open_writer(adapter, place, plan.modules, ranks)
                self.writers[adapter.client] = writer
        self.totals = _Energies.none(len(self.group.clients))
        self.changed: set[str] = set()
        self.amplitude = [0.0, 0.0]
        self.gains: list[float] = []

    def put(self, module: str, result: RefinedModule) -> None:
        """Write one module of every client."""
        if self.group.clients[0].updates[module].start is Start.MAGNITUDE:
            for client in list(self.writers):
                with self._alone(client):
                    self.writers[client].keep(module)
            return
        for adapter, update in zip(self.group.clients, result.updates, strict=True):
            writer = self.writers.get(adapter.client)
            if writer is None:
                continue
            with self._alone(adapter.client):
                if update is None:
                    writer.keep(module)
                else:
                    writer.put(module, update)
                    self.changed.add(adapter.client)
        self.totals.add(result)
        pairs = zip(self.group.weights, result.deviation, strict=True)
        energy = sum(w * float(d) for w, d in pairs)
        self.amplitude[0] += result.amplitude * energy
        self.amplitude[1] += energy
        self.gains.append(self.how.gain(1 - result.amplitude))

    def put_rows(self, name: str, rows: Rows) -> None:
        """Write rows of one full matrix of every client that does not keep its own."""
        for adapter, own, share in zip(self.group.clients, rows.own, self.keeps, strict=True):
            kept = share * (1 - self.how.outside)
            writer = self.writers.get(adapter.client)
            if own is None or kept == 1 or writer is None:
                continue
            with self._alone(adapter.client):
                refined = rows.mean + kept * (own - rows.mean)
                writer.put_full_rows(name, rows.start, refined)
                self.changed.add(adapter.client)

    @contextmanager
    def _alone(self, client: str) -> Iterator[None]:
        """What fails within costs the client its adapter, and nobody else."""
        try:
            yield
        except Exception as error:
            if not is_of_client(error):
                raise
            if (writer := self.writers.pop(client, None)) is not None:
                writer.abandon()
            shutil.rmtree(self.folder / self.names[client])
            self.without[client] = error

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
            sum(w * float(e) for w, e in zip(self.group.weights, energies, strict=True))
            for energies in (self.totals.deviation, self.totals.kept)
        )
        return max(1 - after / before, 0.0) if before > 0 else 0.0

    def close(self) -> None:
        """Every file on disk, and beside each adapter where it comes from and what was done to it."""
        for client in list(self.writers):
            with self._alone(client):
                self.writers[client].close()
        applied = {"inside": self.how.inside, "side": self.how.side, "gain": self.gain}
        for said in self.clients(self.folder):
            adapter = next(a for a in self.group.clients if a.client == said.client)
            facts = {k: v for k, v in asdict(said).items() if k not in ("client", "path")}
            made = _provenance(adapter, client=adapter.client, refinement=facts | applied)
            publish.write_bytes(self.folder / said.path / PROVENANCE, made)

    def clients(self, above: Path) -> tuple[RefinedClient, ...]:
        """One record per client; paths are relative to `above`."""
        every = enumerate(self.group.clients)
        return tuple(self._of(k, a, above) for k, a in every if a.client not in self.without)

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
            strength=1 - self.keeps[k] * (1 - self.how.outside),
            weight=self.group.weights[k],
            deviation=(deviation / scale) ** 0.5,
            averaged_away=max(1 - kept / deviation, 0.0) if deviation > 0 else 0.0,
            unchanged=written is None
            and adapter.client not in self.changed
            and not formats.record(adapter).converts,
            error=self.group.errors[k],
            group=self.number,
        )


class Mean:
    """The mean of the benign clients, written as an adapter of its own."""

    def __init__(self, plan: Plan, template: Adapter, stage: Path) -> None:
        self.group, self.folder, self.template = plan.groups[0], stage / GLOBAL, template
        self.folder.mkdir()
        self.ranks = plan.mean_ranks(template)
        with self._unless_unfit():
            self.writer = formats.open_writer(template, self.folder, plan.modules, self.ranks)
        self.squared = self.lost = 0.0

    @contextmanager
    def _unless_unfit(self) -> Iterator[None]:
        """Raises LeftOut where the mean cannot be written in the form of the template."""
        try:
            yield
        except Exception as error:
            if not is_of_client(error):
                raise
            raise LeftOut({}, {self.template.client: error}) from error

    def put(self, module: str, result: RefinedModule) -> None:
        """Write one module of the mean."""
        with self._unless_unfit():
            self.writer.put(module, result.common)
        self.squared += result.common_squared
        self.lost += result.common_lost

    def put_rows(self, name: str, rows: Rows) -> None:
        """Write rows of one full matrix of the mean."""
        if name in self.template.full:
            with self._unless_unfit():
                self.writer.put_full_rows(name, rows.start, rows.mean)

    def close(self) -> GlobalAdapter:
        """Everything on disk, with whose mean it is."""
        with self._unless_unfit():
            self.writer.close()
        who = zip(self.group.clients, self.group.weights, strict=True)
        weights = {a.client: weight for a, weight in who if weight}
        data = _provenance(self.template, template=self.template.client, mean_of=weights)
        publish.write_bytes(self.folder / PROVENANCE, data)
        error = (self.lost / self.squared) ** 0.5 if self.squared > 0 else 0.0
        rank = max(self.ranks.get(m, s.rank) for m, s in self.template.updates.items())
        return GlobalAdapter(GLOBAL, self.template.client, error, rank)


def _provenance(adapter: Adapter, **facts: Any) -> bytes:
    """clair.json: the files an adapter was made from, and `facts` on what was done."""
    made: dict[str, Any] = {
        "tool": {"name": "clair", "version": __version__},
        "base_model": adapter.base,
        "format": adapter.format,
        "files": _listed(adapter),
    }
    if adapter.since is not None:
        made["since"] = _listed(adapter.since)
    return json.dumps({**made, **facts}, indent=1, allow_nan=False).encode() + b"\n"


def _listed(adapter: Adapter) -> list[dict[str, Any]]:
    return [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in adapter.files.values()]
