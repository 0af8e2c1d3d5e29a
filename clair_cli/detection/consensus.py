"""The consensus: the clients that everybody is measured against.

It starts as the most coherent majority and grows to everybody whose score is below the limit, until
it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.causes import named, sides
from clair_cli.detection.coherence import coherent
from clair_cli.detection.distances import Distances
from clair_cli.detection.evidence import Evidence
from clair_cli.detection.references import References
from clair_cli.detection.scales import robust_scale
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS


class Consensus:
    """Finds the consensus of one cohort from its distances."""

    def __init__(self, distances: Distances) -> None:
        self.distances, self.tables, self.numbers = distances, distances.tables, distances.numbers
        self.zero, self.distinct = distances.zero, distances.distinct
        self.settled = distances.distinct
        """The group (K,) that the last search ended at."""

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
            same, group = bool((after == group).all()), after
            if same or group.sum() < MIN_CLIENTS:
                break
        self.settled = group
        return group, self.unidentified(group, count)

    def start(self, present: Mask) -> Mask:
        """The smallest majority of those present: of the ones without S, those most alike."""
        need = int(present.sum()) // 2 + 1
        among = np.flatnonzero(present & self.tables.members)
        if len(among) < need:
            among = np.flatnonzero(present)
        core = coherent(self.distances.likeness[np.ix_(among, among)], need)
        group = np.zeros(len(present), bool)
        group[among[core]] = True
        return group

    def worst(self, evidence: Sequence[Evidence], most: bool = False) -> Array:
        """The largest score of the evidence that can contaminate, (K,) or (B, K); or what bounds it."""
        scores = [
            e.most if most and e.most is not None else e.scores for e in evidence if e.decisive
        ]
        return np.where(self.zero, self.numbers.score_cap, np.max(scores, axis=0))

    def unidentified(self, group: Mask, count: int) -> Reason | None:
        """Why no verdict can be given on `count` distinct clients, if so."""
        if 2 * self._with(group, count) <= count or group.sum() < MIN_CLIENTS:
            return self.no_majority(group)
        usual, spread = (float(x[0, 0]) for x in self._usual(self.distances.single(group)))
        if usual <= self._least():
            text = (
                "the clients share no output directions beyond chance; nothing to compare against"
            )
            return Reason("CLR302", text, usual, self._least())
        most = 1 / self.numbers.limit
        if spread >= most:
            text = "the clients agree so unevenly that even a stranger would not stand out"
            return Reason("CLR302", text, spread, most)
        return None

    def no_verdict(self, groups: References, count: int) -> Mask:
        """Whether no verdict can be given against each of several groups, (B,)."""
        with_it = self._with_each(groups, count)
        usual, spread = (x[:, 0] for x in self._usual(groups))
        few = (2 * with_it <= count) | (groups.counts < MIN_CLIENTS)
        return np.asarray(few | (usual <= self._least()) | (spread >= 1 / self.numbers.limit))

    def _with_each(self, groups: References, count: int) -> Array:
        """How many clients are members of several groups or follow them, (B,).

        Who follows is looked at where that decides whether they are a majority of `count`.
        """
        found: Array = groups.counts + self.distances.stragglers(groups).sum(axis=1)
        for b in np.flatnonzero((2 * groups.counts <= count) & (2 * found > count)):
            found[b] = groups.counts[b] + self.distances.following(groups, int(b))
        return found

    def _with(self, group: Mask, count: int) -> int:
        """The same of one group."""
        return int(self._with_each(self.distances.single(group), count)[0])

    def _least(self) -> float:
        """The agreement that is more than chance."""
        return self.numbers.clear_of_chance * agreement.chance_deviation(self.tables.d_out)

    def _usual(self, groups: References) -> tuple[Array, Array]:
        """The members' usual agreement and how unevenly they agree, (B, 1) each."""
        agreed, kept = self.distances.agreed(groups), self.distances.kept(groups)
        usual = groups.median(agreed)
        positive = np.where(usual > 0, usual, 1.0)
        # noise makes clients agree unevenly, and strangers stand out all the same
        spread = groups.scale(agreed / positive if kept is None else kept)
        return usual, spread

    def no_majority(self, group: Mask) -> Reason:
        """That the members and who follows them are too few, and the groups that there are."""
        count = int(self.distinct.sum())
        text = (
            f"only {self._with(group, count)} of {count} distinct clients agree with each other; "
            f"{max(count // 2 + 1, MIN_CLIENTS)} are needed to tell which side is right"
        )
        return Reason("CLR303", text + self._sides())

    def agreement_of(self, group: Mask) -> tuple[float, float]:
        """The members' usual agreement with each other, and the robust spread relative to it."""
        values = self.distances.agreed(group)[group]
        usual = float(np.median(values))
        return usual, robust_scale(values / usual) if usual > 0 else math.inf

    def _sides(self) -> str:
        """The groups that the clients form where no side is a majority, as the end of a sentence."""
        kernel = self.distances.alike(self.distinct)
        groups = sides(kernel, self.distinct, self.numbers.side_likeness)
        if len(groups) < 2:
            return ""
        said = [f"{len(g)} ({named(self.tables.clients, g)})" for g in groups]
        return f"; they form groups of {' and of '.join(said)}"
