"""What is to be done to whom: decided once, before any adapter is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clair_cli import formats
from clair_cli.cohort import Adapter, Cohort, Start
from clair_cli.detection.agreement import Array, Mask, levelled
from clair_cli.detection.record import Detection
from clair_cli.detection.stacks import tables
from clair_cli.output.folders import folder_names
from clair_cli.refinement.blame import of_any
from clair_cli.refinement.labels import own_labels
from clair_cli.refinement.members import Recipients, minorities, recipients, remarks
from clair_cli.refinement.replicates import noise_of
from clair_cli.refinement.strength import Knowledge, Shrinkage, choose, client_mix, look
from clair_cli.refinement.uneven import Standing, even, standing
from clair_cli.refinement.whole import FullMatrices, full_matrices
from clair_cli.report import Verdict
from clair_cli.settings import DtypeName, Settings


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Clients that share a mean: the majority, or one minority.

    `clients` get an adapter and count with `weights` in the mean; `errors` are their errors in units of
    the usual one. `shrinkages` holds F and g, one for each strength, `keeps` what each client keeps of
    what F leaves, and `mixes` F (K, K) of those on the side "client", else None. `error_scales` are
    what to multiply a client's replicate errors by, `full` the full matrices that are averaged.
    """

    clients: tuple[Adapter, ...]
    weights: tuple[float, ...]
    errors: tuple[float, ...]
    shrinkages: tuple[Shrinkage, ...]
    keeps: tuple[tuple[float, ...], ...]
    mixes: tuple[Array | None, ...]
    error_scales: Mapping[str, float]
    known: Knowledge
    full: FullMatrices

    @property
    def giving(self) -> list[Adapter]:
        """The clients that count in the mean."""
        return [a for a, weight in zip(self.clients, self.weights, strict=True) if weight]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Names, paths and numbers: everything that refining one module needs but the module.

    `groups` are the majority and then the minorities. `folders` are what the clients' folders in the
    output are called, which depends on all clients, those that get no adapter included. `ranks`
    (client -> rank) and `mean_rank` are known where "auto" was asked for and measured. The mean is not
    written in the form of those that are `unfit`.
    """

    groups: tuple[Group, ...]
    modules: tuple[str, ...]
    settings: Settings
    remarks: tuple[str, ...]
    device: str
    dtype: DtypeName
    folders: Mapping[str, str]
    ranks: Mapping[str, int] = field(default_factory=dict)
    mean_rank: int | None = None
    unfit: frozenset[str] = frozenset()

    @property
    def clients(self) -> tuple[Adapter, ...]:
        """All clients that get an adapter."""
        return tuple(a for group in self.groups for a in group.clients)

    @property
    def relative(self) -> bool:
        """Some modules are known only up to a part that all clients share."""
        return not all(s.absolute for s in self.clients[0].updates.values())

    def rank(self, adapter: Adapter, module: str) -> int:
        """The rank to write one module at."""
        asked = self.settings.rank
        if asked == "keep":
            return adapter.updates[module].rank
        if asked == "auto":
            return min(self.ranks[adapter.client], self.exact_rank(adapter, module))
        return self.exact_rank(adapter, module) if asked == "exact" else asked

    def exact_rank(self, adapter: Adapter, module: str) -> int:
        """The rank at which nothing of the module can be cut off, in the client's group."""
        group = next(g for g in self.groups if adapter in g.clients)
        specs = [a.updates[module] for a in group.clients]
        copies = [max(len(a.replicates), 1) if a.only_replicates else 1 for a in group.clients]
        stacked = sum(s.rank * c for s, c in zip(specs, copies, strict=True))
        sent = {id(a.since): a.since for a in group.clients if a.since is not None}
        stacked += sum(s.updates[module].rank for s in sent.values() if module in s.updates)
        return min(stacked, specs[0].d_out, specs[0].d_in)

    def rank_of_mean(self, adapter: Adapter, module: str) -> int:
        """The rank to write one module of the mean at, with `adapter` for its template."""
        asked, exact = self.settings.global_rank, self.exact_rank(adapter, module)
        if asked == "auto":
            return exact if self.mean_rank is None else min(self.mean_rank, exact)
        return exact if asked == "exact" else asked

    def written_ranks(self, adapter: Adapter) -> dict[str, int] | None:
        """Module -> the rank it is padded to, its scale in the factors; None: as they are."""
        if self.settings.write == "keep" and self.settings.rank == "keep":
            return None
        return self._padded(adapter, {m: self.rank(adapter, m) for m in self.modules})

    def mean_ranks(self, adapter: Adapter) -> dict[str, int]:
        """The same of the mean; of none where all are as they are.

        Where ranks and scales stand in a reference that others keep, "auto" is that of the reference.
        """
        own = {m: adapter.updates[m].rank for m in self.modules}
        fixed = formats.record(adapter).needs_reference
        if fixed and self.settings.global_rank == "auto":
            return {}
        ranks = self._padded(adapter, {m: self.rank_of_mean(adapter, m) for m in self.modules})
        return {} if ranks == own else ranks

    def _padded(self, adapter: Adapter, ranks: dict[str, int]) -> dict[str, int]:
        style = self.settings.write
        if style == "keep":
            return dict.fromkeys(ranks, max(ranks.values()))
        ranks = {m: spec.rank for m, spec in adapter.updates.items()} | ranks
        return ranks if style == "compact" else dict.fromkeys(ranks, max(ranks.values()))


def plan_refinement(
    found: Detection,
    verdicts: Sequence[Verdict],
    settings: Settings,
    counts: Mapping[str, float],
    gone: Collection[str] = (),
) -> Plan:
    """Who gives, who gets, how much is averaged and in which directions.

    `counts` are sample counts per client for the means, where given; refining fails with those that are
    `gone`. Raises NoVerdict where no client is benign, UsageError for choices that name nobody,
    AdapterError where an input changed, and LeftOut where planning fails with some.
    """
    cohort = found.cohort
    counts_as, only_copied = found.counts_as, found.only_copied
    copied = {c: counts_as[c] for c in cohort.ids if c in only_copied}
    who = (
        recipients(verdicts, cohort, settings, counts, gone, copied),
        *minorities(_minorities(found), verdicts, cohort, settings, counts, counts_as, gone),
    )
    looking = _Looking(found, settings, _writing_dtype(cohort, settings))
    groups = tuple(
        of_any(partial(looking.part, one), one.clients, one.by_giving, one is who[0]) for one in who
    )
    first = groups[0]
    return Plan(
        groups=groups,
        modules=cohort.modules,
        settings=settings,
        remarks=(
            *remarks(verdicts, who[0], settings, copied),
            *_replicates_say(first.giving, first.known, settings),
            *_dora_says([a for group in groups for a in group.clients]),
        ),
        device=found.machine.device,
        dtype=looking.dtype,
        folders=folder_names(cohort.ids),
    )


def _minorities(found: Detection) -> list[set[str]]:
    """The members of every minority, by name."""
    groups = found.judgement.minorities if found.judgement is not None else ()
    return [{found.cohort.clients[k].client for k in g} for g in groups]


class _Looking:
    """The tables of a cohort, from which every group is planned."""

    def __init__(self, found: Detection, settings: Settings, dtype: DtypeName) -> None:
        self.found, self.settings, self.dtype = found, settings, dtype
        stacks = found.absolute
        self.modules = [s.module for s in stacks]
        self.inner = tables(stacks)[0]
        factored = formats.factored(found.cohort)
        self.rows = np.stack([s.rows.numpy() for s in stacks]) if factored else None

    def part(self, who: Recipients, kept: Sequence[int]) -> Group:
        """The group of those at the positions `kept` alone."""
        return self.group(who if len(kept) == len(who.clients) else who.select(kept))

    def group(self, who: Recipients) -> Group:
        """What is done to the clients of one group."""
        settings, cohort, device = self.settings, self.found.cohort, self.found.machine.device
        here = np.isin([a.client for a in cohort.clients], [a.client for a in who.clients])
        giving = np.array(who.giving)
        givers = np.flatnonzero(here)[giving]
        given = np.zeros(len(here), bool)
        given[givers] = True
        theirs = self.inner[:, given][:, :, given]
        members = [a for a, gives in zip(who.clients, giving, strict=True) if gives]
        noise = noise_of(members, theirs, self.modules, self.dtype, device, settings.refinement)
        relative = not all(members[0].updates[m].absolute for m in self.modules)
        full = full_matrices(who, settings, device)
        stand = even(giving) if relative else self._standing(here, giving, full)
        labels, others = self._own_labels(who, stand, full)
        place = self._places(who)
        stand = stand.as_at(place)
        known = look(
            self.inner,
            self.rows,
            given,
            settings,
            (noise.share, noise.agreed) if noise else None,
            None if relative else stand,
            others,
        )
        if relative:  # what the clients have in common is not known apart from what the base lost
            known = replace(known, common_share=0.0)
        asked = [replace(settings, strength=s, path=()) for s in settings.path] or [settings]
        shrinkages = tuple(choose(s, known, bool(settings.path)) for s in asked)
        if relative:
            shrinkages = tuple(replace(h, boost=0.0) for h in shrinkages)
        return Group(
            clients=who.clients,
            weights=_weighted(who, stand),
            errors=tuple(map(float, stand.error)),
            shrinkages=shrinkages,
            keeps=tuple(_keeps(h, stand, labels, others, settings) for h in shrinkages),
            mixes=tuple(
                _mixing(h, known, giving)[place] if h.side == "client" else None for h in shrinkages
            ),
            error_scales={c: s * known.lack**0.5 for c, s in noise.scales.items()} if noise else {},
            known=known,
            full=full,
        )

    def _places(self, who: Recipients) -> NDArray[np.intp]:
        """Where in the group the client is whose share each gets, (K,): a copy's is its original's."""
        counts_as = self.found.counts_as
        originals = [counts_as[a.client] for a in who.clients]
        giving = {o: k for k, o in enumerate(originals) if who.giving[k]}
        found = [
            k if gives else giving.get(o, k)
            for k, (o, gives) in enumerate(zip(originals, who.giving, strict=True))
        ]
        return np.array(found, dtype=np.intp)

    def _own_labels(
        self, who: Recipients, stand: Standing, full: FullMatrices
    ) -> tuple[Array | None, float]:
        """How far each client has labels of its own, None where no heads tell, and the share who
        clearly have; copies count as one.

        Asked of all who get an adapter, for labels of its own may be why a client gives nothing.
        """
        originals = [self.found.counts_as[a.client] for a in who.clients]
        _, first, which = np.unique(originals, return_index=True, return_inverse=True)
        trained = first[~stand.short[first]]
        inside = own_labels([who.clients[k] for k in trained], full.names, self.settings.refinement)
        if inside is None:
            return None, 0.0
        found = np.zeros(len(which))
        found[trained] = inside
        clear = found[first] >= self.settings.refinement.label_prior
        return np.asarray(found[first[which]]), float(clear.mean())

    def _standing(self, here: Mask, giving: Mask, full: FullMatrices) -> Standing:
        """Of the clients of a group, by all modules whose updates mean something by themselves."""
        kernel = levelled(self.inner[:, here][:, :, here], giving).sum(axis=0)
        whole = levelled(full.inner, giving).sum(axis=0) if len(full.inner) else None
        return standing(kernel, giving, self.settings.refinement, whole)


def _weighted(who: Recipients, stand: Standing) -> tuple[float, ...]:
    """Sample counts times what each client counts for by its precision."""
    weights = np.array(who.weights) * stand.weights
    return tuple(float(w) for w in weights / weights.sum())


def _mixing(how: Shrinkage, known: Knowledge, giving: Mask) -> Array:
    """F (K, K) of the side "client", around a weighted mean: what that differs by from the plain mean,
    which no mode holds, is kept like the modes on average."""
    mix = client_mix(how, known, giving)
    count, here = len(known.spectrum), np.ix_(giving, giving)
    if count:
        beyond = (np.trace(mix[here]) - giving.sum() * (1 - how.outside)) / count
        mix[here] += beyond / giving.sum()
    return mix


def _keeps(
    how: Shrinkage, stand: Standing, labels: Array | None, others: float, settings: Settings
) -> tuple[float, ...]:
    """What each client keeps of what F leaves.

    Nobody is taken for noisy who has labels of its own (by `labels`, as the share `others` clearly has),
    or company in what it has for itself; nor anybody where most have labels of their own.
    """
    numbers = settings.refinement
    if not how.per_client:
        return (1.0,) * len(stand.error)
    found = stand.strengths(labels is not None or how.tasks == "same", numbers)
    spared = stand.company >= numbers.company_spared
    if labels is not None:
        spared = spared | (labels >= numbers.label_spared)
    if others >= numbers.labels_rule:
        spared = spared | ~stand.short
    return tuple(float(x) for x in np.where(spared & (how.tasks != "same"), 1.0, found))


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
