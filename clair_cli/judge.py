"""Distances to reasons to one verdict per client. No tensors: tables of numbers in, records out.

Every distance of a client is measured against the other members of the consensus, itself left out,
and turned into a score: |x - median| / max(robust scale, floor). The scale makes it statistically
far, the floor materially far; a client is contaminated when a score reaches the limit, so it must be
both. The floors are the widest honest spread that was measured, divided by the limit (docs/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clair_cli import agreement
from clair_cli.agreement import Array
from clair_cli.report import Reason, Verdict, VerdictName
from clair_cli.settings import Settings

Mask = NDArray[np.bool_]
MOST = 100.0
"""Scores are capped here: a report holds finite numbers, and beyond this more says nothing."""
MIN_CLIENTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What is known of K clients in M modules, natural order of both.

    `inner`, `overlap` (M, K, K) as in clair_cli.agreement, `d_out` (M,), `members` (K,) the clients the
    decomposition left without S, `digests` K content hashes.
    """

    clients: tuple[str, ...]
    modules: tuple[str, ...]
    inner: Array
    overlap: Array
    d_out: Array
    members: Mask
    digests: tuple[str, ...]


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


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One distance of every client: its value, its score, its code and the words for it.

    Evidence that is not `decisive` makes a client suspicious at most.
    """

    code: str
    values: Array
    scores: Array
    limit: tuple[float, float]
    words: Callable[[int], str]
    decisive: bool = True


def judge(tables: Tables, settings: Settings | None = None) -> Judgement:
    """Judge K >= 3 clients. Order of clients, gauge, and scale of the whole cohort do not matter."""
    settings = settings or Settings()
    bench = _Bench(tables, settings)
    if bench.distinct.sum() < MIN_CLIENTS:
        text = f"only {int(bench.distinct.sum())} clients have an update of their own; 3 are needed"
        return _none(tables, Reason("CLR301", text), bench.distinct)
    group = bench.start()
    for _ in range(10):
        evidence = bench.evidence(group)
        after = (bench.decisive(evidence) < settings.limit) & bench.distinct
        if (after == group).all() or after.sum() < MIN_CLIENTS:
            break
        group = after
    problem = bench.unidentified(group)
    if problem is not None:
        return _none(tables, problem, group)
    verdicts = tuple(bench.verdict(k, evidence) for k in range(len(tables.clients)))
    findings = tuple(bench.findings(group))
    return Judgement(verdicts, findings, True, group, bench.module_scores(group))


def _none(tables: Tables, why: Reason, group: Mask) -> Judgement:
    verdicts = tuple(Verdict(c, None) for c in tables.clients)
    return Judgement(verdicts, (why,), False, group, np.zeros(tables.inner.shape[:2]))


class _Bench:
    """The tables of one cohort and every distance taken from them."""

    def __init__(self, tables: Tables, settings: Settings) -> None:
        self.tables, self.settings = tables, settings
        self.agree = agreement.agreement(tables.inner, tables.overlap, tables.d_out)
        self.cosine = agreement.cosines(tables.inner)
        self.ranks = agreement.effective_ranks(tables.inner, tables.overlap)
        self.norms = np.sqrt(np.einsum("mkk->mk", tables.inner).clip(min=0))
        self.zero = ~(self.norms > 0).any(axis=0)
        self.kernel = self.agree.mean(axis=0)
        self.twins = self._twins()
        self.distinct = ~self.zero & (self._first_twin() == np.arange(len(self.zero)))

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

    # --- copies

    def _twins(self) -> list[list[int]]:
        """For each client the others it is a copy of, byte by byte or in what it does."""
        c = self.tables.inner.sum(axis=0)
        size = np.sqrt(np.maximum(c.diagonal(), np.finfo(float).tiny))
        sine = np.sqrt((1 - (c / size[:, None] / size).clip(-1, 1) ** 2).clip(min=0))
        sine[np.ix_(self.zero, self.zero)] = 1
        np.fill_diagonal(sine, np.inf)
        usual = float(np.median(sine.min(axis=1)))
        digest = np.array(self.tables.digests)
        near = (sine < self.settings.duplicate * usual) & (c > 0)
        same = (digest[:, None] == digest) & ~np.eye(len(digest), dtype=bool)
        return [list(np.flatnonzero(row)) for row in near | same]

    def _first_twin(self) -> NDArray[np.int64]:
        return np.array([min([k, *twins]) for k, twins in enumerate(self.twins)])

    # --- distances

    def evidence(self, group: Mask) -> list[Evidence]:
        """Every distance of every client against `group`, each client left out of its own reference."""
        s = self.settings
        kernel, cosine = self.kernel, self.cosine.mean(axis=0)
        found = [
            self._relative(
                "CLR201",
                agreement.support(kernel, group),
                group,
                s.agreement_floor,
                lambda x: f"off the shared subspace: {max(x, 0):.0%} of the usual agreement",
            ),
            self._relative(
                "CLR203",
                agreement.support(cosine, group),
                group,
                s.direction_floor,
                lambda x: (
                    "direction opposite to the consensus"
                    if x < -self.settings.direction_floor
                    else f"direction: {max(x, 0):.0%} of the usual cosine"
                ),
            ),
            self._norm(group),
            self._local("CLR204", self.agree, group),
            self._local("CLR204", self.cosine, group),
            self._too_near(kernel, group),
            self._rank(group),
        ]
        return [e for e in found if e is not None]

    def _relative(
        self,
        code: str,
        values: Array,
        group: Mask,
        floor: float,
        words: Callable[[float], str],
    ) -> Evidence | None:
        """One-sided: how far below the usual support a client falls, relative to the usual."""
        usual = float(np.median(values[group]))
        if usual <= 0:
            return None
        relative = values / usual
        spread = _spread(relative[group], floor)
        return Evidence(
            code,
            relative,
            ((1 - relative) / spread).clip(0, MOST),
            (1 - self.settings.limit * spread, math.inf),
            lambda k: words(float(relative[k])),
        )

    def _norm(self, group: Mask) -> Evidence:
        s = self.settings
        unit = np.median(self.norms[:, group], axis=1)
        live = unit > 0
        total = np.sqrt(((self.norms[live] / unit[live, None]) ** 2).mean(axis=0))
        log = np.log(np.maximum(total / np.median(total[group]), np.finfo(float).tiny))
        above = _spread(log[group], s.norm_floor)
        below = _spread(log[group], s.small_norm_floor)
        scores = np.where(log > 0, log / above, -log / below).clip(0, MOST)
        ratio = np.exp(log)

        def words(k: int) -> str:
            if self.zero[k]:
                return "update is exactly zero in every module"
            hint = "check alpha and scaling" if ratio[k] > 1 else "hardly trained?"
            return f"update is {ratio[k]:.3g}x the usual norm; {hint}"

        return Evidence(
            "CLR202",
            ratio,
            scores,
            (math.exp(-s.limit * below), math.exp(s.limit * above)),
            words,
        )

    def _local(self, code: str, kernels: Array, group: Mask) -> Evidence | None:
        """One-sided: the mean over the worst quarter of a client's modules, against the others'."""
        per_module = self._per_module(kernels, group)
        if per_module is None or len(per_module) < 4:
            return None
        worst = np.sort(per_module, axis=0)[: -(-len(per_module) // 4)].mean(axis=0)
        usual = float(np.median(worst[group]))
        spread = _spread(worst[group], self.settings.local_floor)

        def words(k: int) -> str:
            return self._where(k, kernels, group)

        return Evidence(
            code,
            worst,
            ((usual - worst) / spread).clip(0, MOST),
            (usual - self.settings.limit * spread, math.inf),
            words,
        )

    def _per_module(self, kernels: Array, group: Mask) -> Array | None:
        """Support per module relative to the usual there, (modules with a consensus, K)."""
        values = agreement.rows_support(kernels, group)
        usual = np.median(values[:, group], axis=1)
        live = self._live(usual)
        return values[live] / usual[live, None] if live.any() else None

    def _live(self, usual: Array) -> Mask:
        """Modules in which the members agree at least half as much as they typically do."""
        live: Mask = usual > max(0.5 * float(np.median(usual)), 0.0)
        return live

    def _too_near(self, kernel: Array, group: Mask) -> Evidence | None:
        values = agreement.support(kernel, group)
        usual = float(np.median(values[group]))
        if usual <= 0:
            return None
        relative = values / usual
        spread = _spread(relative[group], self.settings.agreement_floor)
        return Evidence(
            "CLR205",
            relative,
            ((relative - 1) / spread).clip(0, MOST),
            (-math.inf, 1 + self.settings.limit * spread),
            lambda k: (
                f"nearer to the others' mean than anyone: agreement {relative[k]:.2f}x the usual"
            ),
            decisive=False,
        )

    def _rank(self, group: Mask) -> Evidence:
        log = np.log(np.maximum(self.ranks, 1e-3)).mean(axis=0)
        log = log - np.median(log[group])
        spread = _spread(log[group], self.settings.rank_floor)
        ratio = np.exp(log)
        return Evidence(
            "CLR207",
            ratio,
            (np.abs(log) / spread).clip(0, MOST),
            (math.exp(-self.settings.limit * spread), math.exp(self.settings.limit * spread)),
            lambda k: f"effective rank is {ratio[k]:.2g}x the usual",
            decisive=False,
        )

    def _where(self, k: int, kernels: Array, group: Mask) -> str:
        """The modules that speak against client k, in a few words."""
        values = agreement.rows_support(kernels, group)
        usual = np.median(values[:, group], axis=1)
        live = self._live(usual)
        relative = np.where(live, values[:, k] / np.where(live, usual, 1), 1.0)
        bad = [self.tables.modules[m] for m in np.argsort(relative) if relative[m] < 0.5]
        total = len(self.tables.modules)
        shown = bad or [self.tables.modules[int(np.argmin(relative))]]
        return f"{len(shown)} of {total} modules, worst in {shown[0]}"

    # --- verdicts

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
        names = [self.tables.clients[j] for j in self.twins[k]]
        if not names:
            return []
        same = all(self.tables.digests[j] == self.tables.digests[k] for j in self.twins[k])
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

    def module_scores(self, group: Mask) -> Array:
        """How far each client is out in each module, (M, K); 0 where the members do not agree either."""
        values = agreement.rows_support(self.agree, group)
        usual = np.median(values[:, group], axis=1)
        live = usual > 0
        relative = values / np.where(live, usual, 1.0)[:, None]
        spread = np.array([_spread(row[group], self.settings.local_floor) for row in relative])
        return np.where(live[:, None], ((1 - relative) / spread[:, None]).clip(0, MOST), 0.0)

    # --- the cohort as a whole

    def unidentified(self, group: Mask) -> Reason | None:
        """Why no verdict can be given, if so."""
        count = int(self.distinct.sum())
        if 2 * group.sum() <= count:
            text = (
                f"only {int(group.sum())} of {count} distinct clients agree with each other; "
                "with half or more contaminated nobody can tell which side is right"
            )
            return Reason("CLR303", text)
        usual = float(np.median(agreement.support(self.kernel, group)[group]))
        chance = agreement.chance_deviation(self.tables.d_out)
        if usual <= 3 * chance:
            text = (
                "the clients share no output directions beyond chance; nothing to compare against"
            )
            return Reason("CLR302", text, usual, 3 * chance)
        return None

    def findings(self, group: Mask) -> list[Reason]:
        """Remarks on the cohort as a whole."""
        values = agreement.support(self.kernel, group)[group]
        spread = _scale(values / np.median(values))
        wide = 1.5 * self.settings.agreement_floor  # honest spread alone widens the limit by half
        if spread <= wide:
            return []
        text = (
            "benign clients differ widely from each other: an honest minority may be flagged "
            "or averaged away, and weak contamination may hide"
        )
        return [Reason("CLR305", text, float(spread), wide)]


SMALL_SAMPLE = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}
"""Factors that make the MAD unbiased for few values (Croux & Rousseeuw 1992)."""


def _scale(values: Array) -> float:
    """Robust standard deviation: 1.4826 times the median absolute deviation, unbiased for few."""
    count = len(values)
    factor = SMALL_SAMPLE.get(count, count / (count - 0.8))
    return 1.4826 * factor * float(np.median(np.abs(values - np.median(values))))


def _spread(values: Array, floor: float) -> float:
    """What counts as one unit of distance among the members: their robust scale, but no less than floor.

    Few members say little about the honest spread, so they widen the floor: by a quarter for 4.
    """
    return max(_scale(values), floor * (1 + (2 / max(len(values), 1)) ** 2))


def _side(limit: tuple[float, float]) -> float | None:
    finite = [x for x in limit if math.isfinite(x)]
    return finite[-1] if finite else None
