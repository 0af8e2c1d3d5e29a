"""Distances to reasons to one verdict per client. No tensors: tables of numbers in, records out.

Who is far from the consensus is contaminated where it stands alone, and a minority where others are
far in the same way. Who shares an addition to the common content with a few others is contaminated,
or a minority where the cohort is uneven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.causes import Causes, named
from clair_cli.detection.consensus import Consensus
from clair_cli.detection.distances import Distances
from clair_cli.detection.evidence import Evidence
from clair_cli.detection.groups import Groups
from clair_cli.detection.scales import median
from clair_cli.detection.tables import Tables
from clair_cli.detection.without import same_without
from clair_cli.report import Cause, CauseName, Reason, Verdict, VerdictName
from clair_cli.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """One verdict per client, or none: then `identified` is False and `findings` say why.

    `consensus` (K,) are the clients every distance was measured against; `module_scores` (M, K) say
    how far each client is out in each module; `agreement` and `spread` are the members' usual
    agreement with each other and its robust deviation relative to that; `margin` is the gap between
    the least score that convicts and the largest that does not, None where nobody is convicted.
    `minorities` are the positions of the members of each, `likeness` how alike two of them are in units
    of the consensus; `causes` is None where unknown. `alike` (K, K) are the cosines of whole adapters
    where they are `directed`, and else how much two change the same outputs. `originals` (K,) are
    whom each client counts as, `copied` (K,) those of whom nothing is odd but that they have copies.
    """

    verdicts: tuple[Verdict, ...]
    findings: tuple[Reason, ...]
    identified: bool
    consensus: Mask
    module_scores: Array
    agreement: float = 0.0
    spread: float = 0.0
    margin: float | None = None
    minorities: tuple[tuple[int, ...], ...] = ()
    likeness: tuple[float, ...] = ()
    causes: Causes | None = None
    alike: Array | None = None
    directed: bool = False
    originals: NDArray[np.intp] | None = None
    copied: Mask | None = None


def judge(tables: Tables, settings: Settings | None = None) -> Judgement:
    """Judge K >= 3 clients. Order of clients, gauge, and scale of the whole cohort do not matter."""
    settings = settings or Settings()
    distances = Distances(tables, settings.detection, settings.threads)
    consensus = Consensus(distances)
    group, problem = consensus.settle(consensus.distinct)
    if problem is not None:
        return _none(distances, group, problem)
    groups = Groups(consensus, group)
    if groups.split:
        return _none(distances, group, consensus.no_majority(groups.group & ~groups.adding))
    bench = _Bench(groups, settings)
    verdicts = tuple(bench.verdict(k) for k in range(len(tables.clients)))
    usual, spread = consensus.agreement_of(bench.group)
    return Judgement(
        verdicts,
        tuple(bench.findings(verdicts, spread)),
        True,
        bench.group,
        distances.module_scores(bench.group),
        usual,
        spread,
        _margin(verdicts),
        bench.minorities,
        groups.likeness(bench.minorities),
        bench.why,
        *distances.comparable(bench.group),
        distances.originals,
        np.array([bench.only_copied(k) for k in range(len(verdicts))]),
    )


def _none(distances: Distances, group: Mask, why: Reason) -> Judgement:
    """No verdict on anybody, and why."""
    tables = distances.tables
    verdicts = tuple(Verdict(c, None) for c in tables.clients)
    scores = np.zeros(tables.inner.shape[:2])
    alike = distances.comparable(group)
    return Judgement(verdicts, (why,), False, group, scores, alike=alike[0], directed=alike[1])


def _margin(verdicts: Sequence[Verdict]) -> float | None:
    found = ("contaminated", "minority")
    bad = [v.score or 0.0 for v in verdicts if v.verdict in found]
    good = [v.score or 0.0 for v in verdicts if v.verdict not in found]
    return min(bad) - max(good, default=0.0) if bad else None


@dataclass(slots=True, eq=False)
class _Bench:
    """What is said of the clients of one cohort, measured against its consensus."""

    groups: Groups
    settings: Settings
    evidence: list[Evidence] = field(init=False)
    scores: Array = field(init=False)
    same: Mask = field(init=False)
    """[k, j]: whether client k is judged alike without client j."""
    minorities: tuple[tuple[int, ...], ...] = field(init=False)
    why: Causes | None = field(init=False)
    kept: Array | None = field(init=False)
    heads: Array | None = field(init=False)
    _usual: dict[bytes, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        distances, n = self.distances, self.settings.detection
        self.evidence = distances.evidence(self.group)
        self.scores = self.consensus.worst(self.evidence)
        self.why = distances.causes(self.group)
        self.kept = distances.kept(self.group)
        self.heads = distances.heads.kept(self.group)
        self.same = np.ascontiguousarray(same_without(self.consensus, self.scores >= n.limit).T)
        for company in self.groups.companies:
            members = np.isin(distances.originals, company.members)
            said = min(n.limit * company.score / n.addition, n.score_cap)
            self.scores[members] = np.maximum(self.scores[members], said)
        self.minorities = self.groups.minorities(self.scores)

    @property
    def distances(self) -> Distances:
        """The distances that everything rests on."""
        return self.consensus.distances

    @property
    def consensus(self) -> Consensus:
        """Who everybody is measured against, and how that was found."""
        return self.groups.consensus

    @property
    def group(self) -> Mask:
        """The members of the consensus, (K,)."""
        return self.groups.group

    def _group_of(self, k: int) -> tuple[int, ...]:
        first = int(self.distances.originals[k])
        return next((g for g in self.minorities if first in g), ())

    def verdict(self, k: int) -> Verdict:
        """What is said of client k, and why."""
        n = self.settings.detection
        zero, score, same = self.consensus.zero[k], float(self.scores[k]), self.same[k]
        others = np.flatnonzero(self._others(k))
        stability = float(same[others].mean())
        added = any(int(self.distances.originals[k]) in c.members for c in self.groups.companies)
        steady = stability >= n.stable or zero or added
        limit = n.limit if steady else n.unstable * n.limit
        reasons = self._reasons(k)
        remarks = [r for r in self._remarks(k) if r.code not in {x.code for x in reasons}]
        name: VerdictName = "benign"
        if self._group_of(k):
            name, reasons = "minority", [self._of_group(k), *reasons]
        elif score >= limit and not self._small(k):
            name = "contaminated"
            reasons += self._near(k)
        elif reasons or score >= n.suspicious:
            name, score = "suspicious", max(score, n.suspicious)
        return Verdict(
            self.distances.tables.clients[k],
            name,
            score,
            limit,
            reasons=(*reasons, *remarks),
            stability=stability,
            depends_on=tuple(self.distances.tables.clients[j] for j in others[~same[others]][:5]),
            cause=self._cause(k),
        )

    def _cause(self, k: int) -> Cause | None:
        if self.why is None or self.kept is None or self.consensus.zero[k]:
            return None
        company = np.where(self._others(k), self.why.company[k], -np.inf)
        copy = self.distances.copies.partner(k)
        near = int(company.argmax()) if copy is None else copy
        head = self.heads[k] if self.heads is not None else math.nan
        return Cause(
            kind=self._kind(k),
            content=float(self.why.content[k]),
            error=float(self.why.error[k]),
            size=float(self.why.size[k]),
            company=float(self.why.company[k, near]),
            nearest=self.distances.tables.clients[near],
            head=float(head) if math.isfinite(head) else None,
        )

    def _others(self, k: int) -> Mask:
        """Who has an update of its own and is not what client k counts as, (K,)."""
        others = np.arange(len(self.group)) != self.distances.originals[k]
        return np.asarray(self.consensus.distinct & others)

    def _kind(self, k: int) -> CauseName | None:
        """What is odd about client k, the plainest first."""
        n, first = self.settings.detection, int(self.distances.originals[k])
        assert self.why is not None
        assert self.kept is not None
        kept = float(self.kept[k])
        odd = max(float(self.scores[k]), self._score("CLR209", k)) >= n.suspicious
        tests: tuple[tuple[CauseName, bool], ...] = (
            ("copy", bool(self.distances.copies.of(k))),
            ("adds", any(first in c.members for c in self.groups.companies)),
            ("head", self._score("CLR210", k) >= n.limit),
            ("opposes", kept < -n.opposing),
            ("adds", self._score("CLR214", k) >= n.limit),
            ("size", self._score("CLR202", k) >= n.suspicious),
            ("lacks", kept < n.kept_whole and (odd or kept < n.kept_half)),
            ("noisy", self._noise(k) >= 2 * n.noisy),
            ("lacks", odd),
        )
        return next((name for name, holds in tests if holds), None)

    def _score(self, code: str, k: int) -> float:
        """The largest that single evidence of this code says of client k."""
        said = (float(e.scores[k]) for e in self.evidence if e.code == code and not e.parts)
        return max(said, default=0.0)

    def _noise(self, k: int) -> float:
        """Error of client k in usual errors, for its own size where it is larger than usual."""
        assert self.why is not None
        return float(self.why.error[k] / max(self.why.content[k] ** 2, 1.0))

    def _small(self, k: int) -> bool:
        """Hardly trained, and in the others' direction: nothing that could do harm."""
        if self.why is None or self.kept is None:
            return False
        n = self.settings.detection
        small = self.why.size[k] < n.hardly_trained and self._score("CLR202", k) < n.limit
        kept = self.kept[k] if self.heads is None else np.fmax(self.kept[k], self.heads[k])
        return bool(small and kept > n.finest * n.limit)

    def _reasons(self, k: int) -> list[Reason]:
        """What speaks against k, worst first; each code of a place only once."""
        s = self.settings.detection
        if self.consensus.zero[k]:
            return [
                Reason("CLR206", "update is exactly zero in every module", 0.0),
                *self._copies(k),
            ]
        speaks = [
            e
            for e in sorted(self.evidence, key=lambda e: -e.scores[k])
            if e.scores[k] >= (s.suspicious if e.decisive else s.limit)
            and not e.said_by_a_part(k, s.limit)
        ]
        said = {p.code for e in speaks for p in e.parts}  # what joint evidence says already
        local = next((e for e in speaks if e.code == "CLR204"), None)
        return [
            *self._addition(k),
            *(
                Reason(e.code_of(k), e.words(k), float(e.values[k]), e.bound)
                for e in speaks
                if (e.parts or e.code not in said) and (e.code != "CLR204" or e is local)
            ),
            *self._copies(k),
        ]

    def _remarks(self, k: int) -> list[Reason]:
        """What is worth knowing of a client and speaks neither for nor against it."""
        n = self.settings.detection
        if self.why is None or self.kept is None or self.consensus.zero[k]:
            return []
        if self.why.size[k] < n.hardly_trained:
            text = f"hardly trained: {100 * self.why.size[k]:.0f} % of the usual size"
            return [Reason("CLR213", text, float(self.why.size[k]), n.hardly_trained)]
        if self.kept[k] >= n.kept_whole and self._noise(k) >= 2 * n.noisy:
            text = f"noisy: the common content, and {self._noise(k):.2g}x the usual error: little data?"
            return [Reason("CLR209", text, self._noise(k), 2 * n.noisy)]
        return []

    def _addition(self, k: int) -> list[Reason]:
        first = int(self.distances.originals[k])
        found = next((c for c in self.groups.companies if first in c.members), None)
        if found is None:
            return []
        names = named(self.distances.tables.clients, [j for j in found.members if j != first])
        text = f"adds to what all share something that only {names} add, too"
        return [Reason("CLR211", text, found.cosine, self.settings.detection.addition_cosine)]

    def _of_group(self, k: int) -> Reason:
        members = self._group_of(k)
        first = int(self.distances.originals[k])
        names = named(self.distances.tables.clients, [j for j in members if j != first])
        text = f"one of {len(members)} that differ from the majority in the same way, with {names}"
        return Reason("CLR212", f"{text}: another domain, or a plot", float(len(members)))

    def _copies(self, k: int) -> list[Reason]:
        tables, twins = self.distances.tables, self.distances.copies.of(k)
        if not twins:
            return []
        same = all(tables.digests[j] == tables.digests[k] for j in twins)
        word = "identical to" if same else "near-duplicate of"
        names = ", ".join(tables.clients[j] for j in twins[:5])
        text = f"{word} {names}: nothing tells which is the original; counted once"
        return [Reason("CLR205", text)]

    def only_copied(self, k: int) -> bool:
        """Whether nothing speaks against client k but that it has copies."""
        calm = self.scores[k] < self.settings.detection.suspicious and not self._group_of(k)
        copies = self._copies(k)
        return bool(copies and calm and self._reasons(k) == copies)

    def _near(self, k: int) -> list[Reason]:
        """Other clients outside the consensus that k agrees with more than with anyone inside."""
        bad = (self.scores >= self.settings.detection.limit) & ~self.consensus.zero
        if not (near := self._allies(k, bad)):
            return []
        names = named(self.distances.tables.clients, near)
        return [Reason("CLR208", f"overlaps with {names} more than with anyone in the majority")]

    def _allies(self, k: int, bad: Mask) -> list[int]:
        """Those of `bad` that k agrees with more than with anyone who is not, copies left out."""
        others, kernel = self._others(k), self.distances.kernel
        bad, good = bad & others, ~bad & others
        if not bad.any() or not good.any() or self.consensus.zero[k]:
            return []
        nearest = float(kernel[k, good].max())
        if (key := good.tobytes()) not in self._usual:
            self._usual[key] = median(kernel[np.ix_(good, good)].ravel())
        least = max(nearest, self.settings.detection.ally_agreement * self._usual[key])
        return [int(j) for j in np.flatnonzero(bad & (kernel[k] > least))]

    # --- remarks on the cohort

    def findings(self, verdicts: Sequence[Verdict], spread: float) -> list[Reason]:
        """Remarks on the cohort as a whole; `spread` is that of the members' agreement."""
        group, n, names = self.group, self.settings.detection, self.distances.tables.clients
        found = [
            Reason("CLR212", f"a minority of {len(g)}: {named(names, g, 10)}", float(len(g)))
            for g in self.minorities
        ]
        bad = np.array([v.verdict == "contaminated" for v in verdicts]) & ~self.consensus.zero
        found += [*self._clusters(bad), *self._close()]
        wide = n.wide_spread * n.agreement_floor  # honest spread alone widens the limit by half
        if spread > wide:
            text = (
                "benign clients differ widely from each other: an honest minority may be flagged "
                "or averaged away, and weak contamination may hide"
            )
            found.append(Reason("CLR305", text, float(spread), wide))
        kinds = self.distances.kinds(group)
        if kinds > n.kinds_spread:
            text = "benign clients come in kinds: an honest kind that few have may be flagged"
            found.append(Reason("CLR305", text, kinds, n.kinds_spread))
        if self.settings.read_as == "update" and group.sum() > 1:
            alike = median(agreement.pairs(self.distances.direction, group))
            if alike > n.whole_weights:
                text = (
                    "the matrices are nearly the same in all clients: if they are whole weights and not "
                    "updates, give the base model with --base"
                )
                found.append(Reason("CLR306", text, alike, n.whole_weights))
        return found

    def _clusters(self, bad: Mask) -> list[Reason]:
        """The groups that contaminated clients form among themselves."""
        kernel = self.distances.kernel
        found, left = [], set(np.flatnonzero(bad & self.consensus.distinct).tolist())
        while left:
            cluster, new = set[int](), {min(left)}
            while new:
                cluster |= new
                new = {j for k in new for j in self._allies(k, bad)} & left - cluster
            left -= cluster
            if len(cluster) > 1:
                members = sorted(cluster)
                inside = float(agreement.pairs_of(kernel, np.array(members)).mean())
                names = ", ".join(self.distances.tables.clients[j] for j in members)
                text = f"{len(members)} contaminated clients agree with each other: {names}"
                found.append(Reason("CLR208", text, inside))
        return found

    def _close(self) -> list[Reason]:
        """How near the cohort is to what cannot be identified."""
        count, inside = int(self.consensus.distinct.sum()), int(self.group.sum())
        if count - inside < self.settings.detection.close_call * count:
            return []
        text = (
            f"{count - inside} of {count} distinct clients are outside the consensus; from half on "
            "nobody can tell which side is right"
        )
        return [Reason("CLR303", text, (count - inside) / count, 0.5)]
