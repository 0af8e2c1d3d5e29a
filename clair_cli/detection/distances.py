"""How far every client is from the others, in several ways, each as a score.

A distance is |x - median| / max(robust scale, floor) over the members of a group, the client itself
left out of its own reference. The scale makes a score statistically far, the floor materially far:
the floors are the widest honest spread that was measured, over the limit (docs/explanation/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from clair_cli.detection.accord import accord
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.causes import Shares
from clair_cli.detection.evidence import Evidence, at_most, single
from clair_cli.detection.excess import excess
from clair_cli.detection.kernels import Kernels
from clair_cli.detection.module_names import describe
from clair_cli.detection.references import Fixed, References, mean_of_least, measured
from clair_cli.detection.scales import robust_scale


@dataclass(frozen=True, slots=True, eq=False)
class Singly:
    """The distances one by one, against several groups: in direction, agreement and norm, of a part of
    the modules (`local`), and the others; with the shares that they rest on."""

    direction: Evidence | None
    agree: Evidence | None
    norm: Evidence
    why: Shares | None
    local: list[Evidence | None]
    rest: list[Evidence | None]


class Distances(Kernels):
    """The tables of one cohort and every distance taken from them."""

    # --- distances

    def evidence(self, group: Mask) -> list[Evidence]:
        """Every distance of every client against `group`, each client left out of its own reference."""
        groups = self.single(group)
        remarks = map(self._of_originals, (self._too_near(groups), self._rank(groups)))
        known = [e for e in remarks if e is not None]
        return [*self.decisive(group), *map(single, [*known, *self._doubts(groups)])]

    def decisive(self, group: Mask, settled: bool = True) -> list[Evidence]:
        """The distances that can contaminate; whom they make suspects is of use once `group` settled."""
        return [single(e) for e in self.decisive_of(self.single(group), settled)]

    def decisive_of(self, groups: References, settled: bool) -> list[Evidence]:
        """`decisive` against several groups, (B, K) each.

        Noise lowers agreement and cosines as well as foreign content does. So no distance says more
        of a client than the share of the common content that it lacks.
        """
        each = self._singly(groups)
        why, agree = each.why, each.agree
        lack = self._lack(groups, why, settled)
        if agree is not None:  # other rows hide what is there
            lack = np.where(self.elsewhere(groups), np.minimum(lack, agree.scores), lack)
        near = [at_most(agree, lack), at_most(each.direction, lack)]
        parts = [e for e in map(self._of_originals, near) if e is not None]
        both = np.maximum(lack[:, self.originals], each.norm.scores)
        together = at_most(self._together([*parts, each.norm], groups, settled), both)
        local = each.local if why is None else self._calm(each.local, why, lack, groups)
        found = [*parts, each.norm, together, *map(self._of_originals, [*local, *each.rest])]
        return [e for e in found if e is not None]

    @measured
    def _singly(self, groups: References) -> Singly:
        """What no bound is known of yet: the same before and after the groups settled."""
        direction = self._direction(groups)
        why = self.shares(groups) if direction is not None else None
        local = [self._local(self.in_modules(groups), groups)]
        if direction is not None:
            per = self.cosines_in_modules(groups) if why is None else self.cut_in_modules(groups)
            local.append(self._local(per, groups))
        rest = [self._head(groups, why), *(excess(self, groups, why) if why is not None else [])]
        norm = self._norm(groups, direction, why)
        return Singly(direction, self._agreement(groups), norm, why, local, rest)

    def _head(self, groups: References, why: Shares | None) -> Evidence | None:
        """What full matrices say that the other modules do not."""
        found = self.heads.evidence(groups, None if why is None else why.kept)
        if found is None:
            return None
        limit = (1 - self.numbers.limit * found.unit, math.inf)
        said = self.heads.words(groups)
        return Evidence(
            "CLR210", found.kept, found.scores, limit, lambda k: said(float(found.kept[0, k]))
        )

    def _lack(self, groups: References, why: Shares | None, settled: bool) -> Array:
        """Score (B, K) of what is lacking of the common content; no bound where that is not known.

        Members have to have more of it than others need so as not to be convicted. The unit is the
        widest of three: honest unevenness is one-sided, and few members say little about it.
        """
        kept = self.kept(groups) if why is not None else None
        if why is None or kept is None:
            return np.full(groups.masks.shape, np.inf, self.kernel.dtype)
        n = self.numbers
        if settled:
            who = References(groups.masks | self.stragglers(groups))
            unit = np.maximum(self._unit(groups, kept, n.content_floor), who.lower_scale(kept))
        else:
            kept, unit = why.kept, self._unit(groups, why.kept, n.direction_floor)
        bound = ((1 - kept) / unit).clip(0, n.score_cap)
        return np.where(kept < n.nothing, np.inf, bound)

    def _calm(
        self, local: list[Evidence | None], why: Shares, lack: Array, groups: References
    ) -> list[Evidence | None]:
        """Of a part of the modules no more than of all, unless the better half has the common content.

        Of noisy clients agreement says no more than what is missing of the content there.
        """
        whole = np.where(self._whole_elsewhere(groups), np.inf, lack)
        agree, content = (at_most(e, whole) for e in local)
        if content is None:
            return [agree]
        return [
            at_most(agree, np.where(why.error < self.numbers.noisy, whole, content.scores)),
            content,
        ]

    @measured
    def _whole_elsewhere(self, groups: References) -> Mask:
        """Whose better half of the modules has what the others share: only then a part is odd."""
        relative, usual = self.cut_in_modules(groups)
        live = self.live(usual)
        better = -mean_of_least(-relative[live], int(live.sum()) - int(live.sum()) // 2)
        found: Mask = better >= self.numbers.kept_whole
        return found

    # --- what makes a client suspicious at most

    def _doubts(self, groups: References) -> list[Evidence]:
        """Clients that have the common content only in part, and such as stand out by little."""
        why = self.shares(groups) if self.clear(groups) else None
        if why is None:
            return []
        n, head = self.numbers, self.heads.kept(groups)
        known = [why.kept] if head is None else [why.kept, head]
        kept = np.nanmean(known, axis=0)
        direction = self._direction(groups)
        whole = [self._agreement(groups), direction, self._norm(groups)]
        joint = self._together([e for e in whole if e is not None], groups, True).scores
        some = (kept < n.kept_whole) | ((kept < n.kept_most) & (why.error < 2 * n.noisy))
        partly = np.where(some, joint, 0.0)
        usual = np.maximum(groups.scale(kept), n.finest)
        own = usual * np.sqrt(np.maximum(why.error / n.noisy, 1))  # who is noisy is known less well
        lack = groups.median(kept) - kept
        fine = (lack / own * n.limit / n.fine).clip(0, n.score_cap)
        scores = np.maximum(partly, np.where(why.size < n.hardly_trained, 0.0, fine))

        def words(k: int) -> str:
            share, error = float(kept[0, k]), float(why.error[0, k])
            if share < -n.opposing:
                return "opposes what the others share"
            if share < n.kept_half:
                there = f"{100 * max(share, 0):.0f} %"
                return f"lacks what the others share: {there} of it is there"
            partly = f"has {100 * share:.0f} % of the common content"
            return f"{partly}, {error:.2g}x the usual error: little data?"

        limit = (1 - n.fine * float(usual[0, 0]), math.inf)
        return [Evidence("CLR209", kept, scores, limit, words, decisive=False)]

    def _of_originals(self, evidence: Evidence | None) -> Evidence | None:
        """Copies are judged as what they copy, but for their size: each would vouch for the other."""
        if evidence is None or self.copies.first.all():
            return evidence
        first, copied = self.originals, ~self.copies.first
        values, scores = evidence.values.copy(), evidence.scores.copy()
        for found in (values, scores):
            found[:, copied] = found[:, first[copied]]
        return replace(
            evidence, values=values, scores=scores, words=lambda k: evidence.words(int(first[k]))
        )

    def _together(self, parts: Sequence[Evidence], groups: References, settled: bool) -> Evidence:
        """What several distances say jointly: their scores add up as independent ones (Stouffer).

        Suspects whose deviations point the same way deviate for one reason, which honest noise does
        not; that adds to what is said of them.
        """
        total = np.sum([p.scores for p in parts], axis=0)
        scores = total / math.sqrt(len(parts))
        suspects = (scores >= self.numbers.suspicious) & self.distinct & settled
        least, most = (x[:, self.originals] for x in accord(self, suspects, groups))

        def with_accord(accord: Array) -> Array:
            joint = (total + accord) / math.sqrt(len(parts) + 1)
            return np.asarray(np.maximum(scores, joint).clip(0, self.numbers.score_cap))

        def words(k: int) -> str:
            loud = [p for p in parts if p.scores[0, k] >= self.numbers.spoken_score]
            said = [p.words(k) for p in sorted(loud, key=lambda p: -p.scores[0, k])]
            same = least[0, k] >= self.numbers.spoken_accord
            return "; ".join([*said, *(["differs in the same way as other suspects"] * bool(same))])

        joint = with_accord(least)
        limit = (-math.inf, self.numbers.limit)
        return Evidence(
            "CLR201", joint, joint, limit, words, parts=tuple(parts), most=with_accord(most)
        )

    def _agreement(self, groups: References) -> Evidence | None:
        return self._relative(
            "CLR201",
            self.agreed(groups),
            groups,
            self.numbers.agreement_floor,
            lambda k, x: (
                f"changes other outputs than the others do: {100 * max(x, 0):.0f} % of the usual overlap"
            ),
        )

    def _direction(self, groups: References) -> Evidence | None:
        """None where the members' cosines are no more than chance: other row spaces of A."""
        floor = self.numbers.direction_floor
        if not self.clear(groups):
            return None

        def words(k: int, x: float) -> str:
            if x >= -floor:
                aligned = f"{100 * max(x, 0):.0f} % as aligned with the others as a typical client"
                return f"points elsewhere: {aligned}"
            (signs, usual), names = self.cosines_in_modules(groups), self.tables.modules
            order = np.argsort(signs[:, 0, k])
            against = [m for m in order if signs[m, 0, k] < 0 and usual[m, 0] > 0]
            return f"points against the others in {describe([names[m] for m in against], names)}"

        return self._relative("CLR203", self.aligned(groups), groups, floor, words)

    def _relative(
        self,
        code: str,
        values: Array,
        groups: References,
        floor: float,
        words: Callable[[int, float], str],
    ) -> Evidence | None:
        """One-sided: how far below the usual support a client falls, relative to the usual."""
        usual = groups.median(values)
        if not groups.agreed(usual > 0):
            return None
        relative = values / usual
        spread = self._unit(groups, relative, floor)
        return Evidence(
            code,
            relative,
            ((1 - relative) / spread).clip(0, self.numbers.score_cap),
            (1 - self.numbers.limit * float(spread[0, 0]), math.inf),
            lambda k: words(k, float(relative[0, k])),
        )

    def _norm(
        self, groups: References, direction: Evidence | None = None, why: Shares | None = None
    ) -> Evidence:
        """Two-sided, against the members or against everybody, whichever is nearer.

        The consensus, chosen blind to size, may be of one size; a large minority moves the median. Of
        a large update only the part along the others counts as size, what is noise on top by a wider
        unit: a large learning rate or little data make noise, a wrong alpha makes everything larger.
        """
        s, size = self.numbers, self.sizes
        middle, spread = self.among_all
        inside, among_all = size - self.kind(groups.median(self.fixed_sizes)), size - middle
        log = np.where(np.abs(inside) < np.abs(among_all), inside, among_all)
        above = np.maximum(self._unit(groups, size, s.norm_floor), spread)
        below = np.maximum(self._unit(groups, size, s.small_norm_floor), spread)
        large = log / above
        if direction is not None and why is not None:
            pure = 2 * np.log(np.clip(direction.values / s.pure, 1e-6, 1))
            large = np.maximum((log + pure) / above, log / max(s.noise_norm_floor, spread))
        scores = np.where(log > 0, large, -log / below).clip(0, self.numbers.score_cap)

        def words(k: int) -> str:
            ratio = math.exp(log[0, k])
            hint = "check alpha and scaling" if ratio > 1 else "hardly trained, or a wrong alpha?"
            times = f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2g}"
            return f"update is {times}x the usual size; {hint}"

        least, most = (float(math.exp(s.limit * x[0, 0])) for x in (-below, above))
        return Evidence("CLR202", np.exp(log), scores, (least, most), words)

    @cached_property
    def among_all(self) -> tuple[float, float]:
        """Median and robust scale of `sizes` over the distinct clients, whatever the group."""
        distinct = self.sizes[self.distinct]
        return float(np.median(distinct)), robust_scale(distinct)

    @cached_property
    def fixed_sizes(self) -> Fixed:
        """`sizes`, to be asked for their median."""
        return Fixed(self.sizes)

    @cached_property
    def sizes(self) -> Array:
        """Log of the size of each whole update, (K,), every module in units of its usual norm."""
        unit = np.median(self.norms[:, self.distinct], axis=1)
        live = unit > 0
        total = np.sqrt(((self.norms[live] / unit[live, None]) ** 2).mean(axis=0))
        return self.kind(np.log(np.maximum(total, np.finfo(float).tiny)))

    def _local(self, per_module: tuple[Array, Array], groups: References) -> Evidence | None:
        """One-sided: the mean over the worst quarter of a client's modules, against the others'."""
        relative, usual_support = per_module
        live = self.live(usual_support)
        count = int(live.sum())
        if count < self.numbers.fewest_modules:
            return None
        worst = mean_of_least(relative[live], math.ceil(self.numbers.worst_modules * count))
        usual = groups.median(worst)
        spread = self._unit(groups, worst, self.numbers.local_floor)

        return Evidence(
            "CLR204",
            worst,
            ((usual - worst) / spread).clip(0, self.numbers.score_cap),
            (float((usual - self.numbers.limit * spread)[0, 0]), math.inf),
            lambda k: self._where(relative[:, 0, k], live),
        )

    def _too_near(self, groups: References) -> Evidence | None:
        values = self.agreed(groups)
        usual = groups.median(values)
        if not groups.agreed(usual > 0):
            return None
        relative = values / usual
        spread = self._unit(groups, relative, self.numbers.agreement_floor)
        return Evidence(
            "CLR205",
            relative,
            ((relative - 1) / spread).clip(0, self.numbers.score_cap),
            (-math.inf, 1 + self.numbers.limit * float(spread[0, 0])),
            lambda k: (
                f"nearer to the others' mean than anyone: overlap {relative[0, k]:.2f}x the usual"
            ),
            decisive=False,
        )

    def _rank(self, groups: References) -> Evidence:
        log = -self.narrowness(groups)
        spread = self._unit(groups, log, self.numbers.rank_floor)
        ratio, far = np.exp(log), self.numbers.limit * float(spread[0, 0])
        return Evidence(
            "CLR207",
            ratio,
            (np.abs(log) / spread).clip(0, self.numbers.score_cap),
            (math.exp(-far), math.exp(far)),
            lambda k: f"effective rank is {ratio[0, k]:.2g}x the usual",
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

    def _unit(self, groups: References, values: Array, floor: float) -> Array:
        """One unit of distance among the members, (..., B, 1): their robust scale, but no less than
        `floor`.

        Few members say little about the honest spread, so they widen the floor.
        """
        few = self.numbers.few_members / np.maximum(groups.counts, 1)[:, None]
        scale = groups.scale(values)
        return np.asarray(np.maximum(scale, (floor * (1 + few**2)).astype(scale.dtype)))

    def module_scores(self, group: Mask) -> Array:
        """How far each client is out in each module, (M, K); 0 where the members do not agree either."""
        groups, found = self.single(group), np.zeros(self.norms.shape)
        for relative, usual in (self.in_modules(groups), self.cosines_in_modules(groups)):
            spread = self._unit(groups, relative, self.numbers.local_floor)
            scores = ((1 - relative) / spread).clip(0, self.numbers.score_cap)[:, 0]
            found = np.maximum(found, np.where(usual > 0, scores, 0.0))
        return found
