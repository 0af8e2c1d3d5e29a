"""Distances to reasons to one verdict per client. No tensors: tables of numbers in, records out.

Every client is measured against the consensus: it starts as the most coherent majority and grows to
everybody whose score is below the limit, until it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clair_cli import agreement
from clair_cli.agreement import Array
from clair_cli.evidence import MOST, Distances, Evidence, Mask, Tables, robust_scale
from clair_cli.report import Reason, Verdict, VerdictName
from clair_cli.settings import MIN_CLIENTS, Settings

GROWING = 5
"""Rounds in which the consensus may take clients in; measured cohorts settle in 2 or 3."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """One verdict per client, or none: then `identified` is False and `findings` say why.

    `consensus` (K,) are the clients every distance was measured against; `module_scores` (M, K) say
    how far each client is out in each module.
    """

    verdicts: tuple[Verdict, ...]
    findings: tuple[Reason, ...]
    identified: bool
    consensus: Mask
    module_scores: Array


def judge(tables: Tables, settings: Settings | None = None) -> Judgement:
    """Judge K >= 3 clients. Order of clients, gauge, and scale of the whole cohort do not matter."""
    settings = settings or Settings()
    bench = _Bench(tables, settings)
    if bench.distinct.sum() < MIN_CLIENTS:
        text = f"only {int(bench.distinct.sum())} clients have an update of their own; 3 are needed"
        return _none(tables, Reason("CLR301", text), bench.distinct)
    group = bench.start()
    for step in range(GROWING + len(group)):
        evidence = bench.distances.evidence(group)
        after = (bench.decisive(evidence) < settings.limit) & bench.distinct
        if step >= GROWING:  # from here on it only shrinks: colluders could take turns for ever
            after &= group
        settled, group = bool((after == group).all()), after
        if settled or group.sum() < MIN_CLIENTS:
            break
    problem = bench.unidentified(group)
    if problem is not None:
        return _none(tables, problem, group)
    verdicts = tuple(bench.verdict(k, evidence) for k in range(len(tables.clients)))
    findings = tuple(bench.findings(group))
    return Judgement(verdicts, findings, True, group, bench.distances.module_scores(group))


def _none(tables: Tables, why: Reason, group: Mask) -> Judgement:
    verdicts = tuple(Verdict(c, None) for c in tables.clients)
    return Judgement(verdicts, (why,), False, group, np.zeros(tables.inner.shape[:2]))


class _Bench:
    """The distances of one cohort, and what is said of them."""

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self.tables, self.settings = tables, settings
        self.distances = Distances(tables, settings)
        self.zero, self.kernel = self.distances.zero, self.distances.kernel
        self.distinct = self.distances.distinct

    def start(self) -> Mask:
        """The smallest majority of distinct clients: of those without S, who agree most."""
        need = int(self.distinct.sum()) // 2 + 1
        among = np.flatnonzero(self.distinct & self.tables.members)
        if len(among) < need:
            among = np.flatnonzero(self.distinct)
        core = agreement.coherent(self.kernel[np.ix_(among, among)], need)
        group = np.zeros(len(self.distinct), bool)
        group[among[core]] = True
        return group

    def decisive(self, evidence: Sequence[Evidence]) -> Array:
        """The largest score of the evidence that can contaminate, (K,)."""
        scores = np.max([e.scores for e in evidence if e.decisive], axis=0)
        return np.where(self.zero, MOST, scores)

    def verdict(self, k: int, evidence: Sequence[Evidence]) -> Verdict:
        """Contaminated at the limit; suspicious near it, or far on evidence that is not decisive."""
        s = self.settings
        score = float(self.decisive(evidence)[k])
        speaks = [
            e
            for e in sorted(evidence, key=lambda e: -e.scores[k])
            if e.scores[k] >= (s.suspicious if e.decisive else s.limit) and not self.zero[k]
        ]
        local = next((e for e in speaks if e.code == "CLR204"), None)
        reasons = [
            Reason(e.code, e.words(k), float(e.values[k]), _side(e.limit))
            for e in speaks
            if e.code != "CLR204" or e is local
        ]
        if self.zero[k]:
            reasons = [Reason("CLR206", "update is exactly zero in every module", 0.0)]
        reasons += self._copies(k)
        if score >= s.limit:
            reasons += self._cluster(k, evidence)
            name: VerdictName = "contaminated"
        elif reasons:
            name, score = "suspicious", max(score, s.suspicious)
        else:
            name = "benign"
        return Verdict(self.tables.clients[k], name, score, s.limit, tuple(reasons))

    def _copies(self, k: int) -> list[Reason]:
        names = [self.tables.clients[j] for j in self.distances.twins[k]]
        if not names:
            return []
        same = all(
            self.tables.digests[j] == self.tables.digests[k] for j in self.distances.twins[k]
        )
        word = "identical to" if same else "near-duplicate of"
        return [Reason("CLR205", f"{word} {', '.join(names[:5])}; counted once")]

    def _cluster(self, k: int, evidence: Sequence[Evidence]) -> list[Reason]:
        """Other contaminated clients that k agrees with more than with the consensus."""
        bad = (self.decisive(evidence) >= self.settings.limit) & ~self.zero
        bad[k] = False
        if not bad.any() or self.zero[k]:
            return []
        good = ~bad & ~self.zero
        good[k] = False
        outside = float(np.median(self.kernel[k, good])) if good.any() else 0.0
        usual = float(np.median(self.kernel[np.ix_(good, good)])) if good.any() else 0.0
        near = np.flatnonzero(bad & (self.kernel[k] > max(outside, usual / 2)))
        if not len(near):
            return []
        names = ", ".join(self.tables.clients[j] for j in near[:5])
        return [Reason("CLR208", f"agrees with {names} rather than with the majority")]

    def unidentified(self, group: Mask) -> Reason | None:
        """Why no verdict can be given, if so."""
        count = int(self.distinct.sum())
        if 2 * group.sum() <= count or group.sum() < MIN_CLIENTS:
            text = (
                f"only {int(group.sum())} of {count} distinct clients agree with each other; "
                "without a majority of at least 3 nobody can tell which side is right"
            )
            return Reason("CLR303", text)
        usual, spread = self._agreement_of(group)
        chance = agreement.chance_deviation(self.tables.d_out)
        if usual <= 3 * chance:
            text = (
                "the clients share no output directions beyond chance; nothing to compare against"
            )
            return Reason("CLR302", text, usual, 3 * chance)
        most = 1 / self.settings.limit
        if spread >= most:
            text = "the clients agree so unevenly that even a stranger would not stand out"
            return Reason("CLR302", text, spread, most)
        return None

    def _agreement_of(self, group: Mask) -> tuple[float, float]:
        """The members' usual agreement with each other, and the robust spread relative to it."""
        values = agreement.support(self.kernel, group)[group]
        usual = float(np.median(values))
        return usual, robust_scale(values / usual) if usual > 0 else math.inf

    def findings(self, group: Mask) -> list[Reason]:
        """Remarks on the cohort as a whole."""
        _, spread = self._agreement_of(group)
        wide = 1.5 * self.settings.agreement_floor  # honest spread alone widens the limit by half
        if spread <= wide:
            return []
        text = (
            "benign clients differ widely from each other: an honest minority may be flagged "
            "or averaged away, and weak contamination may hide"
        )
        return [Reason("CLR305", text, float(spread), wide)]


def _side(limit: tuple[float, float]) -> float | None:
    finite = [x for x in limit if math.isfinite(x)]
    return finite[-1] if finite else None
