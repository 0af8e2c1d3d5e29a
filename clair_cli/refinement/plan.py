"""What is to be done to whom: decided once, before any adapter is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clair_cli import formats
from clair_cli.cohort import Adapter, Cohort, Start
from clair_cli.detection.agreement import Array
from clair_cli.detection.record import Detection
from clair_cli.detection.stacks import tables
from clair_cli.refinement.members import recipients, remarks
from clair_cli.refinement.replicates import noise_of
from clair_cli.refinement.strength import Knowledge, Shrinkage, choose, client_mix, look
from clair_cli.report import Verdict
from clair_cli.settings import DtypeName, Settings


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Names, paths and numbers: everything that refining one module needs but the module.

    `clients` get an adapter and count with `weights` in the means. `shrinkages` holds F and g, one for
    each strength, and `mixes` F (K, K) of those on the side "client", else None. `error_scales` are
    what to multiply a client's replicate errors by.
    """

    clients: tuple[Adapter, ...]
    weights: tuple[float, ...]
    modules: tuple[str, ...]
    shrinkages: tuple[Shrinkage, ...]
    mixes: tuple[Array | None, ...]
    error_scales: Mapping[str, float]
    known: Knowledge
    settings: Settings
    remarks: tuple[str, ...]
    device: str
    dtype: DtypeName

    @property
    def relative(self) -> bool:
        """Some modules are known only up to a part that all clients share."""
        return not all(s.absolute for s in self.clients[0].updates.values())

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

    def written_ranks(self, adapter: Adapter) -> dict[str, int] | None:
        """Module -> the rank it is padded to, its scale in the factors; None: as they are."""
        style = self.settings.write
        if style == "keep" and self.settings.rank == "keep":
            return None
        judged = {m: self.rank(adapter, m) for m in self.modules}
        if style == "keep":
            return dict.fromkeys(judged, max(judged.values()))
        ranks = {m: spec.rank for m, spec in adapter.updates.items()} | judged
        return ranks if style == "compact" else dict.fromkeys(ranks, max(ranks.values()))


def plan_refinement(
    found: Detection,
    verdicts: Sequence[Verdict],
    settings: Settings,
    counts: Mapping[str, float],
) -> Plan:
    """Who gives, who gets, how much is averaged and in which directions.

    `counts` are sample counts per client for the means, where given. Raises NoVerdict where no client
    is benign, UsageError for choices that name nobody, and AdapterError where an input changed.
    """
    cohort = found.cohort
    who = recipients(verdicts, cohort, settings, counts)
    giving = [a for a, gives in zip(who.clients, who.giving, strict=True) if gives]
    givers = np.isin([a.client for a in cohort.clients], [a.client for a in giving])
    stacks = found.absolute
    modules = [s.module for s in stacks]
    inner = tables(stacks)[0]
    rows = np.stack([s.rows.numpy() for s in stacks]) if formats.factored(cohort) else None
    dtype, device = _writing_dtype(cohort, settings), found.machine.device
    theirs = inner[:, givers][:, :, givers]
    noise = noise_of(giving, theirs, modules, dtype, device, settings.refinement)
    known = look(inner, rows, givers, settings, (noise.share, noise.agreed) if noise else None)
    relative = not all(giving[0].updates[m].absolute for m in modules)
    if relative:  # what the clients have in common is not known apart from what the base lost
        known = replace(known, common_share=0.0)
    asked = [replace(settings, strength=s, path=()) for s in settings.path] or [settings]
    shrinkages = tuple(choose(s, known, bool(settings.path)) for s in asked)
    if relative:
        shrinkages = tuple(replace(h, boost=0.0) for h in shrinkages)
    here = np.array(who.giving)
    return Plan(
        clients=who.clients,
        weights=who.weights,
        modules=cohort.modules,
        shrinkages=shrinkages,
        mixes=tuple(client_mix(h, known, here) if h.side == "client" else None for h in shrinkages),
        error_scales={c: s * known.lack**0.5 for c, s in noise.scales.items()} if noise else {},
        known=known,
        settings=settings,
        remarks=(
            *remarks(verdicts, who, settings),
            *_replicates_say(giving, known, settings),
            *_dora_says(who.clients),
        ),
        device=device,
        dtype=dtype,
    )


def _dora_says(clients: Sequence[Adapter]) -> list[str]:
    starts = {s.start for a in clients for s in a.updates.values()}
    text = "DoRA: B A is refined, and every client keeps its own magnitudes"
    return [text] if Start.MAGNITUDE in starts else []


def _replicates_say(giving: Sequence[Adapter], known: Knowledge, settings: Settings) -> list[str]:
    """That the replicates say to keep all, or why those there are, or asked for, say nothing."""
    having = [a.client for a in giving if a.replicates]
    if known.agreed is not None and known.lack < 1:
        text = f"replicates have {100 * known.agreed:.0f} % of an adapter's energy in common"
        share = "nothing" if known.lack == 0 else "less"
        return [f"{text}: the clients have data enough, and {share} is averaged away for it"]
    if known.noise is not None or not (having or settings.replicates == "checkpoints"):
        return []
    found = ", ".join(having) or "no client"
    return [f"replicates of {found} alone tell nothing: two adapters of two clients at least do"]


def _writing_dtype(cohort: Cohort, settings: Settings) -> DtypeName:
    """For what is written back: one precision above what is stored, so that only storing rounds."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float64" if cohort.dtypes & {"F32", "F64"} else "float32"
