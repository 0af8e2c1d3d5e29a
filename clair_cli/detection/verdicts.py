"""Distances to reasons to one verdict per client. No tensors: tables of numbers in, records out.

Every client is measured against the consensus: it starts as the most coherent majority and grows to
everybody whose score is below the limit, until it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.distances import Distances, Evidence, robust_scale
from clair_cli.detection.tables import Tables
from clair_cli.report import Reason, Verdict, VerdictName
from clair_cli.settings import MIN_CLIENTS, Settings


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """One verdict per client, or none: then `identified` is False and `findings` say why.

    `consensus` (K,) are the clients every distance was measured against; `module_scores` (M, K) say
    how far each client is out in each module; `agreement` and `spread` are the members' usual
    agreement with each other and its robust deviation relative to that; `margin` is the gap between
    the least score that convicts and the largest that does not, None where nobody is convicted.
    """

    verdicts: tuple[Verdict, ...]
    findings: tuple[Reason, ...]
    identified: bool
    consensus: Mask
    module_scores: Array
    agreement: float = 0.0
    spread: float = 0.0
    margin: float | None = None


def judge(tables: Tables, settings: Settings | None = None) -> Judgement:
    """Judge K >= 3 clients. Order of clients, gauge, and scale of the whole cohort do not matter."""
    settings = settings or Settings()
    bench = _Bench(tables, settings)
    group, problem = bench.settle(bench.distinct)
    if problem is not None:
        none = tuple(Verdict(c, None) for c in tables.clients)
        return Judgement(none, (problem,), False, group, np.zeros(tables.inner.shape[:2]))
    evidence = bench.distances.evidence(group)
    scores = bench.worst(evidence)
    same = bench.same_without(scores >= settings.detection.limit)
    verdicts = tuple(bench.verdict(k, scores, evidence, same) for k in range(len(tables.clients)))
    usual, spread = bench.agreement_of(group)
    return Judgement(
        verdicts,
        tuple(bench.findings(group, verdicts, spread)),
        True,
        group,
        bench.distances.module_scores(group),
        usual,
        spread,
        _margin(verdicts),
    )


def _margin(verdicts: Sequence[Verdict]) -> float | None:
    bad = [v.score or 0.0 for v in verdicts if v.verdict == "contaminated"]
    good = [v.score or 0.0 for v in verdicts if v.verdict != "contaminated"]
    return min(bad) - max(good, default=0.0) if bad else None


class _Bench:
    """The distances of one cohort, and what is said of them."""

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self.tables, self.settings, self.numbers = tables, settings, settings.detection
        self.distances = Distances(tables, settings.detection)
        self.zero, self.kernel = self.distances.zero, self.distances.kernel
        self.distinct = self.distances.distinct

    def settle(self, present: Mask) -> tuple[Mask, Reason | None]:
        """The consensus (K,) among the distinct clients `present`, or why there is none."""
        count = int(present.sum())
        if count < MIN_CLIENTS:
            text = (
                f"different updates: {count}, at least 3 are needed; all others are copies or zero"
            )
            return present, Reason("CLR301", text)
        group = self.start(present)
        for step in range(self.numbers.growing_rounds + count):
            evidence = self.distances.decisive(group, settled=False)
            after = (self.worst(evidence) < self.numbers.inside) & present
            if step >= self.numbers.growing_rounds:
                # from here on it only shrinks: colluders could take turns for ever
                after &= group
            settled, group = bool((after == group).all()), after
            if settled or group.sum() < MIN_CLIENTS:
                break
        return group, self.unidentified(group, count)

    def start(self, present: Mask) -> Mask:
        """The smallest majority of those present: of the ones without S, those most alike."""
        need = int(present.sum()) // 2 + 1
        among = np.flatnonzero(present & self.tables.members)
        if len(among) < need:
            among = np.flatnonzero(present)
        core = agreement.coherent(self.distances.likeness[np.ix_(among, among)], need)
        group = np.zeros(len(present), bool)
        group[among[core]] = True
        return group

    def worst(self, evidence: Sequence[Evidence]) -> Array:
        """The largest score of the evidence that can contaminate, (K,)."""
        scores = np.max([e.scores for e in evidence if e.decisive], axis=0)
        return np.where(self.zero, self.numbers.score_cap, scores)

    def same_without(self, out: Mask) -> Mask:
        """[j, k]: whether k is `out` or not also when j, and whatever copies it, is left out.

        One client less widens every limit, so whoever is out stays out until inside the consensus.
        """
        same = np.ones((len(out), len(out)), bool)
        for j in np.flatnonzero(self.distinct):
            present = self.distinct.copy()
            present[j] = False
            group, problem = self.settle(present)
            again = ~out
            if problem is None:
                least = np.where(out, self.numbers.inside, self.numbers.limit)
                again = self.worst(self.distances.decisive(group)) >= least
            same[j] = (again == out) | self.zero | (self.distances.originals == j)
        return same

    def verdict(self, k: int, scores: Array, evidence: Sequence[Evidence], same: Mask) -> Verdict:
        """Contaminated at the limit; suspicious near it, or far on evidence that is not decisive."""
        s = self.numbers
        score = float(scores[k])
        others = np.flatnonzero(
            self.distinct & (self.distances.originals[k] != np.arange(len(same)))
        )
        stability = float(same[others, k].mean())
        limit = s.limit if stability >= s.stable or self.zero[k] else s.unstable * s.limit
        reasons = self._reasons(k, evidence)
        if score >= limit:
            reasons += self._cluster(k, scores)
            name: VerdictName = "contaminated"
        elif reasons:
            name, score = "suspicious", max(score, s.suspicious)
        else:
            name = "benign"
        return Verdict(
            self.tables.clients[k],
            name,
            score,
            limit,
            reasons=tuple(reasons),
            stability=stability,
            depends_on=tuple(self.tables.clients[j] for j in others[~same[others, k]][:5]),
        )

    def _reasons(self, k: int, evidence: Sequence[Evidence]) -> list[Reason]:
        """What speaks against k, worst first; each code of a place only once."""
        s = self.numbers
        if self.zero[k]:
            return [
                Reason("CLR206", "update is exactly zero in every module", 0.0),
                *self._copies(k),
            ]
        speaks = [
            e
            for e in sorted(evidence, key=lambda e: -e.scores[k])
            if e.scores[k] >= (s.suspicious if e.decisive else s.limit) and not _said(e, k, s.limit)
        ]
        said = {p.code for e in speaks for p in e.parts}  # what joint evidence says already
        local = next((e for e in speaks if e.code == "CLR204"), None)
        return [
            Reason(e.code_of(k), e.words(k), float(e.values[k]), _side(e.limit))
            for e in speaks
            if (e.parts or e.code not in said) and (e.code != "CLR204" or e is local)
        ] + self._copies(k)

    def _copies(self, k: int) -> list[Reason]:
        names = [self.tables.clients[j] for j in self.distances.twins[k]]
        if not names:
            return []
        same = all(
            self.tables.digests[j] == self.tables.digests[k] for j in self.distances.twins[k]
        )
        word = "identical to" if same else "near-duplicate of"
        return [Reason("CLR205", f"{word} {', '.join(names[:5])}; counted once")]

    def _cluster(self, k: int, scores: Array) -> list[Reason]:
        """Other contaminated clients that k agrees with more than with the consensus."""
        bad = (scores >= self.numbers.limit) & ~self.zero
        near = [j for j in self._allies(k, bad) if j not in self.distances.twins[k]]
        if not near:
            return []
        names = ", ".join(self.tables.clients[j] for j in near[:5])
        return [Reason("CLR208", f"overlaps with {names} more than with anyone in the majority")]

    def _allies(self, k: int, bad: Mask) -> list[int]:
        """Those of `bad` that k agrees with more than with anyone who is not."""
        bad, good = bad.copy(), ~bad & ~self.zero
        bad[k] = good[k] = False
        if not bad.any() or not good.any() or self.zero[k]:
            return []
        nearest = float(self.kernel[k, good].max())
        usual = float(np.median(self.kernel[np.ix_(good, good)]))
        least = max(nearest, self.numbers.ally_agreement * usual)
        return [int(j) for j in np.flatnonzero(bad & (self.kernel[k] > least))]

    def unidentified(self, group: Mask, count: int) -> Reason | None:
        """Why no verdict can be given on `count` distinct clients, if so."""
        if 2 * group.sum() <= count or group.sum() < MIN_CLIENTS:
            text = (
                f"only {int(group.sum())} of {count} distinct clients agree with each other; "
                f"{max(count // 2 + 1, MIN_CLIENTS)} are needed to tell which side is right"
            )
            return Reason("CLR303", text)
        usual, spread = self.agreement_of(group)
        chance = agreement.chance_deviation(self.tables.d_out)
        least = self.numbers.clear_of_chance * chance
        if usual <= least:
            text = (
                "the clients share no output directions beyond chance; nothing to compare against"
            )
            return Reason("CLR302", text, usual, least)
        most = 1 / self.numbers.limit
        if spread >= most:
            text = "the clients agree so unevenly that even a stranger would not stand out"
            return Reason("CLR302", text, spread, most)
        return None

    def agreement_of(self, group: Mask) -> tuple[float, float]:
        """The members' usual agreement with each other, and the robust spread relative to it."""
        values = agreement.support(self.kernel, group)[group]
        usual = float(np.median(values))
        return usual, robust_scale(values / usual) if usual > 0 else math.inf

    def findings(self, group: Mask, verdicts: Sequence[Verdict], spread: float) -> list[Reason]:
        """Remarks on the cohort as a whole; `spread` is that of the members' agreement."""
        bad = np.array([v.verdict == "contaminated" for v in verdicts]) & ~self.zero
        found = [*self._clusters(bad), *self._close(group)]
        n = self.numbers
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
            alike = float(np.median(agreement.pairs(self.distances.direction, group)))
            if alike > n.whole_weights:
                text = (
                    "the matrices are nearly the same in all clients: if they are whole weights and not "
                    "updates, give the base model with --base"
                )
                found.append(Reason("CLR306", text, alike, n.whole_weights))
        return found

    def _clusters(self, bad: Mask) -> list[Reason]:
        """The groups that contaminated clients form among themselves."""
        found, left = [], set(np.flatnonzero(bad & self.distinct).tolist())
        while left:
            cluster, new = set[int](), {min(left)}
            while new:
                cluster |= new
                new = {j for k in new for j in self._allies(k, bad)} & left - cluster
            left -= cluster
            if len(cluster) > 1:
                members = sorted(cluster)
                inside = float(
                    np.mean([self.kernel[i, j] for i in members for j in members if i < j])
                )
                names = ", ".join(self.tables.clients[j] for j in members)
                text = f"{len(members)} contaminated clients agree with each other: {names}"
                found.append(Reason("CLR208", text, inside))
        return found

    def _close(self, group: Mask) -> list[Reason]:
        """How near the cohort is to what cannot be identified."""
        count, inside = int(self.distinct.sum()), int(group.sum())
        if count - inside < self.numbers.close_call * count:
            return []
        text = (
            f"{count - inside} of {count} distinct clients are outside the consensus; from half on "
            "nobody can tell which side is right"
        )
        return [Reason("CLR303", text, (count - inside) / count, 0.5)]


def _said(e: Evidence, k: int, limit: float) -> bool:
    """Whether one part of joint evidence says it alone."""
    return any(p.scores[k] >= limit for p in e.parts)


def _side(limit: tuple[float, float]) -> float | None:
    finite = [x for x in limit if math.isfinite(x)]
    return finite[-1] if finite else None
