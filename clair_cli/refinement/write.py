"""Refined adapters of the benign clients, written module by module below a staging folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clair_cli import __version__, formats
from clair_cli.cohort import Adapter, Cohort, Start
from clair_cli.engines import ENGINES
from clair_cli.output import publish
from clair_cli.refinement.members import membership, remarks
from clair_cli.refinement.replicates import errors, estimate, noise_of, replicated
from clair_cli.report import Report
from clair_cli.scan import Scan, stored_dtypes
from clair_cli.settings import Settings

if TYPE_CHECKING:
    from clair_cli.refinement.module import RefinedModule
    from clair_cli.refinement.strength import Knowledge, Shrinkage
    from clair_cli.update import LowRankUpdate

DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
"""File names that Windows keeps for itself."""
RESERVED = {publish.GLOBAL, "report.json", publish.MANIFEST} | DEVICES
PROVENANCE = "clair.json"
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 takes for --max-lora-rank."""
SERVED = {"peft", "loha", "lokr", "adalora", "delora", "vera"}
"""Formats of which PEFT LoRA is written, which it serves."""
TOTALS = ("squared", "moved", "lost", "deviation", "kept")
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


def write_refined(
    scan: Scan, report: Report, stage: Path, counts: Mapping[str, float]
) -> dict[str, Any]:
    """Write every refined adapter below `stage`, one module at a time.

    `counts` are sample counts per client for the means, where given. Raises NoVerdict where no client
    is benign, OutputError, UsageError, and AdapterError where an input changed.
    """
    plan, known = _planned(scan, report, counts)
    writing = _Refining(plan, known, scan.cohort.modules, stage)
    job = partial(_refine_job, plan)
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
    hows: tuple[Shrinkage, ...]
    mixes: tuple[Any, ...]
    """F (K, K) of each of `hows` on the side "client", else None."""
    error_scales: Mapping[str, float]
    settings: Settings
    remarks: tuple[str, ...]
    device: str
    dtype: Literal["float32", "float64"]

    def rank(self, adapter: Adapter, module: str) -> int:
        """The rank to write one module at."""
        if self.settings.rank == "keep":
            return adapter.updates[module].rank
        if self.settings.rank == "exact":
            specs = [a.updates[module] for a in self.clients]
            copies = [max(len(a.replicates), 1) if a.only_replicates else 1 for a in self.clients]
            stacked = sum(s.rank * c for s, c in zip(specs, copies, strict=True))
            return min(stacked, specs[0].d_out, specs[0].d_in)
        return self.settings.rank

    def written_ranks(self, adapter: Adapter, modules: Sequence[str]) -> dict[str, int] | None:
        """Module -> the rank it is padded to, its scale in the factors; None: as they are."""
        style = self.settings.write
        if style == "keep" and self.settings.rank == "keep":
            return None
        judged = {m: self.rank(adapter, m) for m in modules}
        if style == "keep":
            return dict.fromkeys(judged, max(judged.values()))
        ranks = {m: spec.rank for m, spec in adapter.updates.items()} | judged
        return ranks if style == "compact" else dict.fromkeys(ranks, max(ranks.values()))


def _planned(scan: Scan, report: Report, counts: Mapping[str, float]) -> tuple[_Plan, Knowledge]:
    import numpy as np

    from clair_cli.detection.solver import tables
    from clair_cli.refinement.strength import choose, client_mix, look

    settings, cohort = scan.settings, scan.cohort
    who = membership(report, cohort, settings, counts)
    giving = [a for a, gives in zip(who.clients, who.giving, strict=True) if gives]
    members = np.isin([a.client for a in cohort.clients], [a.client for a in giving])
    stacks = scan.absolute()
    modules = [s.module for s in stacks]
    inner = tables(stacks)[0]
    rows = np.stack([s.rows.numpy() for s in stacks])
    dtype = _writing_dtype(cohort, settings)
    theirs = inner[:, members][:, :, members]
    noise = noise_of(giving, theirs, modules, dtype, scan.device)
    told = (None, None) if noise is None else (noise.share, noise.agreed)
    known = look(inner, rows if cohort.factored else None, members, *told)
    relative = not all(giving[0].updates[m].absolute for m in modules)
    if relative:  # what the clients have in common is not known apart from what the base lost
        known = replace(known, common_share=0.0)
    asked = [replace(settings, strength=s, path=()) for s in settings.path] or [settings]
    hows = tuple(choose(s, known, bool(settings.path)) for s in asked)
    if relative:
        hows = tuple(replace(h, boost=0.0) for h in hows)
    here = np.array(who.giving)
    mixes = tuple(client_mix(h, known, here) if h.side == "client" else None for h in hows)
    scales = {} if noise is None else {c: s * known.lack**0.5 for c, s in noise.scales.items()}
    said = (*remarks(report, who, settings), *_replicates_say(giving, known, settings))
    if any(s.start is Start.MAGNITUDE for a in who.clients for s in a.updates.values()):
        said = (*said, "DoRA: B A is refined, and every client keeps its own magnitudes")
    plan = _Plan(who.clients, who.weights, hows, mixes, scales, settings, said, scan.device, dtype)
    return plan, known


def _replicates_say(giving: Sequence[Adapter], known: Knowledge, settings: Settings) -> list[str]:
    """That the replicates say to keep all, or why those there are, or asked for, say nothing."""
    having = [a.client for a in giving if a.replicates]
    if known.lack < 1:
        text = f"replicates have {known.agreed:.0%} of an adapter's energy in common"
        share = "nothing" if known.lack == 0 else "less"
        return [f"{text}: the clients have data enough, and {share} is averaged away for it"]
    if known.noise is not None or not (having or settings.replicates == "checkpoints"):
        return []
    found = ", ".join(having) or "no client"
    return [f"replicates of {found} alone tell nothing: two adapters of two clients at least do"]


def _refine_job(plan: _Plan, module: str) -> tuple[str, list[RefinedModule]]:
    import torch

    from clair_cli.refinement.module import ModuleRefiner

    updates = [estimate(a, module, plan.dtype, plan.device) for a in plan.clients]
    pairs = zip(plan.clients, plan.weights, strict=True)
    telling = [a for a, weight in pairs if weight and replicated(a)]
    noise: list[LowRankUpdate] = []
    if any(how.by_direction and how.side != "client" for how in plan.hows):
        share = (sum(w > 0 for w in plan.weights) / len(telling)) ** 0.5
        for adapter in telling:
            found = errors(adapter, module, plan.dtype, plan.device)
            factor = share * plan.error_scales.get(adapter.client, 1.0)
            noise += [replace(u, scale=u.scale * factor) for u in found]
    refiner = ModuleRefiner(updates, plan.weights, noise)
    ranks = [plan.rank(a, module) for a in plan.clients]
    return module, [
        refiner.refined(how, ranks, mix=None if mix is None else torch.from_numpy(mix))
        for how, mix in zip(plan.hows, plan.mixes, strict=True)
    ]


class _Candidate:
    """Open writers of one strength, and what is to be reported of its clients."""

    def __init__(
        self, plan: _Plan, which: int, modules: Sequence[str], folder: Path, names: dict[str, str]
    ) -> None:
        self.plan, self.how, self.names, self.folder = plan, plan.hows[which], names, folder
        self.writers, self.written = {}, {}
        for adapter in plan.clients:
            place = folder / names[adapter.client]
            place.mkdir(parents=True)
            ranks = self.written[adapter.client] = plan.written_ranks(adapter, modules)
            self.writers[adapter.client] = formats.open_writer(adapter, place, modules, ranks)
        self.totals = {a.client: dict.fromkeys(TOTALS, 0.0) for a in plan.clients}
        self.changed: set[str] = set()
        self.amplitude = [0.0, 0.0]
        self.gains: list[float] = []

    def put(self, module: str, result: RefinedModule) -> None:
        if self.plan.clients[0].updates[module].start is Start.MAGNITUDE:
            for writer in self.writers.values():
                writer.keep(module)
            return
        energy = 0.0
        for k, (adapter, update) in enumerate(zip(self.plan.clients, result.updates, strict=True)):
            writer = self.writers[adapter.client]
            if update is None:
                writer.keep(module)
            else:
                writer.put(module, update)
                self.changed.add(adapter.client)
            for name in TOTALS:
                self.totals[adapter.client][name] += float(getattr(result, name)[k])
            energy += self.plan.weights[k] * float(result.deviation[k])
        self.amplitude[0] += result.amplitude * energy
        self.amplitude[1] += energy
        self.gains.append(self.how.gain(1 - result.amplitude))

    @property
    def kept(self) -> float:
        """Share of the deviations' amplitude that is kept, over all modules."""
        kept, all_of_it = self.amplitude
        return kept / all_of_it if all_of_it > 0 else 1.0

    def averaged_away(self) -> float:
        """Share of the clients' energy around their mean that refinement takes away."""
        pairs = list(zip(self.plan.clients, self.plan.weights, strict=True))
        before = sum(w * self.totals[a.client]["deviation"] for a, w in pairs)
        after = sum(w * self.totals[a.client]["kept"] for a, w in pairs)
        return max(1 - after / before, 0.0) if before > 0 else 0.0

    def strength(self) -> dict[str, Any]:
        """What was applied."""
        how = self.how
        gain = sum(self.gains) / len(self.gains) if self.gains else 0.0
        return {"strength": how.outside, "inside": how.inside, "side": how.side, "gain": gain}

    def sign(self) -> None:
        """Beside each adapter where it comes from and what was done; no loader looks at clair.json."""
        for said, adapter in zip(self.clients(self.folder), self.plan.clients, strict=True):
            facts = {k: v for k, v in said.items() if k not in ("id", "path")} | self.strength()
            place = self.folder / said["path"] / PROVENANCE
            publish.write_bytes(
                place, _provenance(adapter, client=adapter.client, refinement=facts)
            )

    def clients(self, above: Path) -> list[dict[str, Any]]:
        """One entry per client; paths are relative to `above`."""
        return [self._of(k, a, above) for k, a in enumerate(self.plan.clients)]

    def _of(self, k: int, adapter: Adapter, above: Path) -> dict[str, Any]:
        total = self.totals[adapter.client]
        scale = total["squared"] if total["squared"] > 0 else 1.0
        off = total["deviation"] if total["deviation"] > 0 else 1.0
        ranks = {m: s.rank for m, s in adapter.updates.items()}
        written = self.written[adapter.client]
        return {
            "id": adapter.client,
            "path": (self.folder / self.names[adapter.client]).relative_to(above).as_posix(),
            "rank": max((ranks | (written or {})).values()),
            "truncation_error": (total["lost"] / scale) ** 0.5,
            "change": (total["moved"] / scale) ** 0.5,
            "strength": self.how.outside,
            "weight": self.plan.weights[k],
            "deviation": (total["deviation"] / scale) ** 0.5,
            "averaged_away": max(1 - total["kept"] / off, 0.0) if total["deviation"] > 0 else 0.0,
            "unchanged": written is None
            and adapter.client not in self.changed
            and not formats.converts(adapter),
        }


class _Refining:
    """Every candidate and the mean, written module by module."""

    def __init__(self, plan: _Plan, known: Knowledge, modules: Sequence[str], stage: Path) -> None:
        self.plan, self.known, self.modules, self.stage = plan, known, modules, stage
        names = _folder_names([a.client for a in plan.clients])
        self.candidates: list[_Candidate] = []
        self.common: Any = None
        for which in range(len(plan.hows)):
            folder = (
                stage / strength_folder(plan.settings.path[which]) if plan.settings.path else stage
            )
            self.candidates.append(_Candidate(plan, which, modules, folder, names))
        if plan.settings.write_global:
            (stage / publish.GLOBAL).mkdir()
            template = self._template()
            ranks = plan.written_ranks(template, modules)
            self.common = formats.open_writer(template, stage / publish.GLOBAL, modules, ranks)
        self.common_total = [0.0, 0.0]
        self.found: list[dict[str, Any]] = []

    def _template(self) -> Adapter:
        """The client of the largest rank that counts: its config and other tensors go with the mean."""
        giving = [a for a, w in zip(self.plan.clients, self.plan.weights, strict=True) if w]
        return max(giving, key=lambda a: sum(s.rank for s in a.updates.values()))

    def put(self, refined: tuple[str, list[RefinedModule]]) -> None:
        """Write one module of every client and let go of it."""
        module, results = refined
        for candidate, result in zip(self.candidates, results, strict=True):
            candidate.put(module, result)
        if self.common is not None:
            self.common.put(module, results[0].common)
            self.common_total[0] += results[0].common_squared
            self.common_total[1] += results[0].common_lost
        spectrum = [float(x) for x in results[0].spectrum]
        inside = results[0].subspace_rank
        self.found.append({"name": module, "subspace_rank": inside, "spectrum": spectrum})

    def abandon(self) -> None:
        """Let go of every file that was not finished."""
        for candidate in self.candidates:
            for writer in candidate.writers.values():
                writer.abandon()
        if self.common is not None:
            self.common.abandon()

    def finish(self) -> dict[str, Any]:
        """Close all files; the `refinement` part of the report."""
        from clair_cli.refinement.strength import expected

        for candidate in self.candidates:
            for writer in candidate.writers.values():
                writer.close()
            candidate.sign()
        first, known = self.candidates[0], self.known
        said = {
            **first.strength(),
            "knowledge": "adapters alone" if known.noise is None else "replicates",
            "replicates_agree": known.agreed,
            "averaged_away": first.averaged_away(),
            "subspace_ranks": [round(m["subspace_rank"]) for m in self.found],
            "initialisation": known.initialisation,
            "common_share": known.common_share,
            "spread": known.spread,
            "spectrum": [float(x) for x in known.spectrum],
            "gap": known.gap,
            "gap_after": known.gap_after,
            "expected": dict(expected(first.kept, known)),
            "max_lora_rank": self._served(first),
            "modules": self.found,
            "clients": [c for one in self.candidates for c in one.clients(self.stage)],
            "global": self._global(),
        }
        relative = not all(s.absolute for s in self.plan.clients[0].updates.values())
        told = [*self.plan.remarks, *warnings(said, self.plan.settings, relative)]
        return said | {"warnings": told}

    def _served(self, candidate: _Candidate) -> int | None:
        """The least value a server takes that admits all; None where it serves no such files."""
        rank = max(c["rank"] for c in candidate.clients(self.stage))
        served = all(a.format in SERVED for a in self.plan.clients)
        return next((r for r in SERVED_RANKS if r >= rank), rank) if served else None

    def _global(self) -> dict[str, Any] | None:
        if self.common is None:
            return None
        self.common.close()
        squared, lost = self.common_total
        template = self._template()
        who = zip(self.plan.clients, self.plan.weights, strict=True)
        weights = {a.client: weight for a, weight in who if weight}
        data = _provenance(template, template=template.client, mean_of=weights)
        publish.write_bytes(self.stage / publish.GLOBAL / PROVENANCE, data)
        return {
            "path": publish.GLOBAL,
            "template": template.client,
            "truncation_error": (lost / squared) ** 0.5 if squared > 0 else 0.0,
        }


def _provenance(adapter: Adapter, **facts: Any) -> bytes:
    """clair.json: the files an adapter was made from, and `facts` on what was done."""
    files = [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in adapter.files.values()]
    made = {
        "tool": {"name": "clair", "version": __version__},
        "base_model": adapter.base,
        "format": adapter.format,
        "files": files,
    }
    return json.dumps(made | facts, indent=1, allow_nan=False).encode() + b"\n"


def strength_folder(strength: float | str) -> str:
    """strength-0.25, strength-auto."""
    return f"strength-{strength}" if isinstance(strength, str) else f"strength-{strength:.6g}"


def warnings(said: Mapping[str, Any], settings: Settings, relative: bool = False) -> list[str]:
    """What a reader should know before the refined adapters are used."""
    found = []
    expected = said["expected"]
    if said["knowledge"] == "adapters alone" and said["averaged_away"] > 0:
        found.append(
            "adapters alone cannot tell estimation error from honest difference: refining gains where "
            f"more than {expected['break_even']:.0%} of what the clients differ by is error, and "
            "costs elsewhere; replicates tell (rep-* folders), and so does a choice on each client's "
            "own data (--path, then clair select)"
        )
    if expected["gain"] is not None and expected["gain"] < 0:
        found.append("by the replicates this strength takes away more difference than error")
    if settings.replicates == "checkpoints" and said["knowledge"] == "replicates":
        found.append("checkpoints of one run share their data: the error is larger than they show")
    worst = max((c["truncation_error"] for c in said["clients"]), default=0.0)
    if (
        settings.rank != "exact"
        and not relative
        and worst > 0.5 * max(c["change"] for c in said["clients"]) > 0
    ):
        found.append(
            "the rank written cuts off much of the change; --rank exact, or a larger one, keeps it"
        )
    return found


def _writing_dtype(cohort: Cohort, settings: Settings) -> Literal["float32", "float64"]:
    """For what is written back: one precision above what is stored, so that only storing rounds."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float64" if stored_dtypes(cohort) & {"F32", "F64"} else "float32"
