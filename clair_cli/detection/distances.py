"""How far every client is from the others, in several ways, each as a score.

A distance is |x - median| / max(robust scale, floor) over the members of a group, the client itself
left out of its own reference. The scale makes a score statistically far, the floor materially far:
the floors are the widest honest spread that was measured, over the limit (docs/explanation/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.causes import Causes
from clair_cli.detection.evidence import Evidence, at_most
from clair_cli.detection.excess import excess
from clair_cli.detection.kernels import Kernels
from clair_cli.detection.module_names import describe
from clair_cli.detection.scales import lower_scale, robust_scale


class Distances(Kernels):
    """The tables of one cohort and every distance taken from them."""

    # --- distances

    def evidence(self, group: Mask) -> list[Evidence]:
        """Every distance of every client against `group`, each client left out of its own reference."""
        remarks = map(self._of_originals, (self._too_near(group), self._rank(group)))
        known = [e for e in remarks if e is not None]
        return [*self.decisive(group), *known, *self._doubts(group)]

    def decisive(self, group: Mask, settled: bool = True) -> list[Evidence]:
        """The distances that can contaminate; whom they make suspects is of use once `group` settled.

        Noise lowers agreement and cosines as well as foreign content does. So no distance says more
        of a client than the share of the common content that it lacks.
        """
        direction = self._direction(group)
        why = self.causes(group) if direction is not None else None
        norm = self._norm(group, direction, why)
        lack = self._lack(group, why, settled)
        agree = self._agreement(group)
        if agree is not None:  # other rows hide what is there
            lack = np.where(self.elsewhere(group), np.minimum(lack, agree.scores), lack)
        near = [at_most(agree, lack), at_most(direction, lack)]
        parts = [e for e in map(self._of_originals, near) if e is not None]
        both = np.maximum(lack[self.originals], norm.scores)
        together = at_most(self._together([*parts, norm], group, settled), both)
        local: list[Evidence | None] = [self._local(self.agree, group)]
        if direction is not None:
            local.append(self._local(self.cosine if why is None else self.cut(group), group))
        if why is not None:
            local = self._calm(local, why, lack, group)
        local.append(self._head(group, why))
        local.extend(excess(self, group, why) if why is not None else [])
        found = [*parts, norm, together, *map(self._of_originals, local)]
        return [e for e in found if e is not None]

    def _head(self, group: Mask, why: Causes | None) -> Evidence | None:
        """What full matrices say that the other modules do not."""
        found = self.heads.evidence(group, None if why is None else why.kept)
        if found is None:
            return None
        said = self.heads.words(group)
        limit = (1 - self.numbers.limit * found.unit, math.inf)
        return Evidence(
            "CLR210", found.kept, found.scores, limit, lambda k: said(float(found.kept[k]))
        )

    def _lack(self, group: Mask, why: Causes | None, settled: bool) -> Array:
        """Score (K,) of what is lacking of the common content; no bound where that is not known.

        Members have to have more of it than others need so as not to be convicted. The unit is the
        widest of three: honest unevenness is one-sided, and few members say little about it.
        """
        kept = self.kept(group) if why is not None else None
        if why is None or kept is None:
            return np.full(len(group), np.inf)
        n = self.numbers
        if settled:
            who = group | self.stragglers(group)
            unit = max(self._unit(kept[group], n.content_floor), lower_scale(kept[who]))
        else:
            kept, unit = why.kept, self._unit(why.kept[group], n.direction_floor)
        bound = ((1 - kept) / unit).clip(0, n.score_cap)
        return np.where(kept < n.nothing, np.inf, bound)

    def _calm(
        self, local: list[Evidence | None], why: Causes, lack: Array, group: Mask
    ) -> list[Evidence | None]:
        """Of a part of the modules no more than of all, unless the better half has the common content.

        Of noisy clients agreement says no more than what is missing of the content there.
        """
        whole = np.where(self._whole_elsewhere(self.cut(group), group), np.inf, lack)
        agree, content = (at_most(e, whole) for e in local)
        if content is None:
            return [agree]
        return [
            at_most(agree, np.where(why.error < self.numbers.noisy, whole, content.scores)),
            content,
        ]

    def _whole_elsewhere(self, kernels: Array, group: Mask) -> Mask:
        """Whose better half of the modules has what the others share: only then a part is odd."""
        relative, usual = self.per_module(kernels, group)
        live = self.live(usual)
        better = np.sort(relative[live], axis=0)[int(live.sum()) // 2 :]
        found: Mask = better.mean(axis=0) >= self.numbers.kept_whole
        return found

    # --- what makes a client suspicious at most

    def _doubts(self, group: Mask) -> list[Evidence]:
        """Clients that have the common content only in part, and such as stand out by little."""
        why = self.causes(group) if self.clear(group) else None
        if why is None:
            return []
        n, head = self.numbers, self.heads.kept(group)
        known = [why.kept] if head is None else [why.kept, head]
        kept = np.nanmean(known, axis=0)
        direction = self._direction(group)
        whole = [self._agreement(group), direction, self._norm(group)]
        joint = self._together([e for e in whole if e is not None], group, True).scores
        some = (kept < n.kept_whole) | ((kept < n.kept_most) & (why.error < 2 * n.noisy))
        partly = np.where(some, joint, 0.0)
        usual = max(robust_scale(kept[group]), n.finest)
        own = usual * np.sqrt(np.maximum(why.error / n.noisy, 1))  # who is noisy is known less well
        fine = ((np.median(kept[group]) - kept) / own * n.limit / n.fine).clip(0, n.score_cap)
        scores = np.maximum(partly, np.where(why.size < n.hardly_trained, 0.0, fine))

        def words(k: int) -> str:
            share, error = float(kept[k]), float(why.error[k])
            if share < 0:
                return "opposes what the others share"
            if share < n.kept_half:
                return f"lacks what the others share: {100 * share:.0f} % of it is there"
            partly = f"has {100 * share:.0f} % of the common content"
            return f"{partly}, {error:.2g}x the usual error: little data?"

        limit = (1 - n.fine * usual, math.inf)
        return [Evidence("CLR209", kept, scores, limit, words, decisive=False)]

    def _of_originals(self, evidence: Evidence | None) -> Evidence | None:
        """Copies are judged as what they copy, but for their size: each would vouch for the other."""
        if evidence is None:
            return None
        first = self.originals
        return replace(
            evidence,
            values=evidence.values[first],
            scores=evidence.scores[first],
            words=lambda k: evidence.words(int(first[k])),
        )

    def _together(self, parts: Sequence[Evidence], group: Mask, settled: bool) -> Evidence:
        """What several distances say jointly: their scores add up as independent ones (Stouffer).

        Suspects whose deviations point the same way deviate for one reason, which honest noise does
        not; that adds to what is said of them.
        """
        total = np.sum([p.scores for p in parts], axis=0)
        scores = total / math.sqrt(len(parts))
        suspects = (scores >= self.numbers.suspicious) & self.distinct & settled
        accord = self._accord(suspects, group)[self.originals]
        scores = np.maximum(scores, (total + accord) / math.sqrt(len(parts) + 1)).clip(
            0, self.numbers.score_cap
        )

        def words(k: int) -> str:
            loud = [p for p in parts if p.scores[k] >= self.numbers.spoken_score]
            said = [p.words(k) for p in sorted(loud, key=lambda p: -p.scores[k])]
            return "; ".join(
                [
                    *said,
                    *(
                        ["differs in the same way as other suspects"]
                        if accord[k] >= self.numbers.spoken_accord
                        else []
                    ),
                ]
            )

        limit = (-math.inf, self.numbers.limit)
        return Evidence("CLR201", scores, scores, limit, words, parts=tuple(parts))

    def _accord(self, suspects: Mask, group: Mask) -> Array:
        """Score (K,) of the mean cosine of each suspect's deviation with the other suspects'.

        Deviations are what is left of an update without its part along the members' mean. Two honest
        ones may well agree, so a mean over few pairs has to lie further from the members' pairs.
        """
        found = np.zeros(len(suspects))
        honest = group & ~suspects
        cosine = self.deviations(honest)
        if suspects.sum() < 2 or cosine is None:
            return found
        pairs = agreement.pairs(cosine, honest)
        spread = robust_scale(pairs) / math.sqrt(suspects.sum() - 1)
        mean = agreement.support(cosine, suspects)
        score = (mean - np.median(pairs)) / max(spread, self.numbers.accord_floor)
        return np.where(suspects, score.clip(0, self.numbers.suspicious), 0.0)

    def _agreement(self, group: Mask) -> Evidence | None:
        return self._relative(
            "CLR201",
            agreement.support(self.kernel, group),
            group,
            self.numbers.agreement_floor,
            lambda k, x: (
                f"changes other outputs than the others do: {100 * max(x, 0):.0f} % of the usual overlap"
            ),
        )

    def _direction(self, group: Mask) -> Evidence | None:
        """None where the members' cosines are no more than chance: other row spaces of A."""
        floor = self.numbers.direction_floor
        if not self.clear(group):
            return None
        values = agreement.support(self.direction, group)

        def words(k: int, x: float) -> str:
            if x >= -floor:
                aligned = f"{100 * max(x, 0):.0f} % as aligned with the others as a typical client"
                return f"points elsewhere: {aligned}"
            signs, usual = self.per_module(self.cosine, group)
            against = [m for m in np.argsort(signs[:, k]) if signs[m, k] < 0 and usual[m] > 0]
            names = [self.tables.modules[m] for m in against]
            return f"points against the others in {describe(names, self.tables.modules)}"

        return self._relative("CLR203", values, group, floor, words)

    def _relative(
        self,
        code: str,
        values: Array,
        group: Mask,
        floor: float,
        words: Callable[[int, float], str],
    ) -> Evidence | None:
        """One-sided: how far below the usual support a client falls, relative to the usual."""
        usual = float(np.median(values[group]))
        if usual <= 0:
            return None
        relative = values / usual
        spread = self._unit(relative[group], floor)
        return Evidence(
            code,
            relative,
            ((1 - relative) / spread).clip(0, self.numbers.score_cap),
            (1 - self.numbers.limit * spread, math.inf),
            lambda k: words(k, float(relative[k])),
        )

    def _norm(
        self, group: Mask, direction: Evidence | None = None, why: Causes | None = None
    ) -> Evidence:
        """Two-sided, against the members or against everybody, whichever is nearer.

        The consensus, chosen blind to size, may be of one size; a large minority moves the median. Of
        a large update only the part along the others counts as size, what is noise on top by a wider
        unit: a large learning rate or little data make noise, a wrong alpha makes everything larger.
        """
        s = self.numbers
        unit = np.median(self.norms[:, self.distinct], axis=1)
        live = unit > 0
        total = np.sqrt(((self.norms[live] / unit[live, None]) ** 2).mean(axis=0))
        size = np.log(np.maximum(total, np.finfo(float).tiny))
        inside, among_all = (size - np.median(size[who]) for who in (group, self.distinct))
        log = np.where(np.abs(inside) < np.abs(among_all), inside, among_all)
        spread = robust_scale(size[self.distinct])
        above = max(self._unit(size[group], s.norm_floor), spread)
        below = max(self._unit(size[group], s.small_norm_floor), spread)
        large = log / above
        if direction is not None and why is not None:
            pure = 2 * np.log(np.clip(direction.values / s.pure, 1e-6, 1))
            large = np.maximum((log + pure) / above, log / max(s.noise_norm_floor, spread))
        scores = np.where(log > 0, large, -log / below).clip(0, self.numbers.score_cap)
        ratio = np.exp(log)

        def words(k: int) -> str:
            hint = (
                "check alpha and scaling" if ratio[k] > 1 else "hardly trained, or a wrong alpha?"
            )
            size = f"{ratio[k]:.0f}" if ratio[k] >= 100 else f"{ratio[k]:.2g}"
            return f"update is {size}x the usual size; {hint}"

        return Evidence(
            "CLR202",
            ratio,
            scores,
            (math.exp(-s.limit * below), math.exp(s.limit * above)),
            words,
        )

    def _local(self, kernels: Array, group: Mask) -> Evidence | None:
        """One-sided: the mean over the worst quarter of a client's modules, against the others'."""
        relative, usual_support = self.per_module(kernels, group)
        live = self.live(usual_support)
        count = int(live.sum())
        if count < self.numbers.fewest_modules:
            return None
        part = math.ceil(self.numbers.worst_modules * count)
        worst = np.sort(relative[live], axis=0)[:part].mean(axis=0)
        usual = float(np.median(worst[group]))
        spread = self._unit(worst[group], self.numbers.local_floor)

        return Evidence(
            "CLR204",
            worst,
            ((usual - worst) / spread).clip(0, self.numbers.score_cap),
            (usual - self.numbers.limit * spread, math.inf),
            lambda k: self._where(relative[:, k], live),
        )

    def _too_near(self, group: Mask) -> Evidence | None:
        values = agreement.support(self.kernel, group)
        usual = float(np.median(values[group]))
        if usual <= 0:
            return None
        relative = values / usual
        spread = self._unit(relative[group], self.numbers.agreement_floor)
        return Evidence(
            "CLR205",
            relative,
            ((relative - 1) / spread).clip(0, self.numbers.score_cap),
            (-math.inf, 1 + self.numbers.limit * spread),
            lambda k: (
                f"nearer to the others' mean than anyone: overlap {relative[k]:.2f}x the usual"
            ),
            decisive=False,
        )

    def _rank(self, group: Mask) -> Evidence:
        log = -self.narrowness(group)
        spread = self._unit(log[group], self.numbers.rank_floor)
        ratio = np.exp(log)
        return Evidence(
            "CLR207",
            ratio,
            (np.abs(log) / spread).clip(0, self.numbers.score_cap),
            (math.exp(-self.numbers.limit * spread), math.exp(self.numbers.limit * spread)),
            lambda k: f"effective rank is {ratio[k]:.2g}x the usual",
            decisive=False,
        )

    def _where(self, relative: Array, live: Mask) -> str:
        """Which of the live modules speak against a client of this relative support (M,)."""
        order = [m for m in np.argsort(relative) if live[m]]
        bad = [self.tables.modules[m] for m in order if relative[m] < self.numbers.odd_module]
        judged = [self.tables.modules[m] for m in np.flatnonzero(live)]
        mute = len(live) - len(judged)
        noun = f"modules that can be judged ({mute} of {len(live)} cannot)" if mute else "modules"
        return f"odd in {describe(bad or [self.tables.modules[order[0]]], judged, noun)}"

    def _unit(self, values: Array, floor: float) -> float:
        """One unit of distance among the members: their robust scale, but no less than `floor`.

        Few members say little about the honest spread, so they widen the floor.
        """
        few = self.numbers.few_members / max(len(values), 1)
        return max(robust_scale(values), floor * (1 + few**2))

    def module_scores(self, group: Mask) -> Array:
        """How far each client is out in each module, (M, K); 0 where the members do not agree either."""
        found = np.zeros(self.norms.shape)
        for kernels in (self.agree, self.cosine):
            relative, usual = self.per_module(kernels, group)
            spread = [self._unit(row[group], self.numbers.local_floor) for row in relative]
            scores = ((1 - relative) / np.array(spread)[:, None]).clip(0, self.numbers.score_cap)
            found = np.maximum(found, np.where((usual > 0)[:, None], scores, 0.0))
        return found
