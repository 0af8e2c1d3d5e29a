"""Whether each client would be judged alike also without each other one.

The consensus is sought without each client as it was with all, for all of them at once. Their groups
differ by few clients, so each costs K steps and not K^2 (`references`); equal ones are measured once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import blocks
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.coherence import EVERY, coherent_without
from clair_cli.detection.consensus import Consensus
from clair_cli.detection.references import Apart, References
from clair_cli.settings import MIN_CLIENTS

TOGETHER, PARTS = (2, 8), 16
"""Least and most blocks of numbers that a thread works on at a time, and how many parts there are
between these: with smaller ones threads wait for the interpreter."""

Who = NDArray[np.intp]
Law = Callable[[References], tuple[Mask, ...]]


def same_without(consensus: Consensus, out: Mask) -> Mask:
    """[j, k]: whether client k is `out` or not also when j, and whatever copies it, is left out.

    One client less widens every limit, so whoever is out stays out until inside the consensus.
    """
    each = np.flatnonzero(consensus.distinct)
    least = np.where(out, consensus.numbers.inside, consensus.numbers.limit)
    again = Without(consensus, each).out(least, ~out)
    same = np.ones((len(out), len(out)), bool)
    same[each] = (again == out) | consensus.zero | (consensus.distances.originals == each[:, None])
    return same


class Without:
    """The consensus of one cohort without each of its distinct clients `each` (J,)."""

    def __init__(self, consensus: Consensus, each: Who) -> None:
        self.consensus, self.each = consensus, each
        self.distances, self.numbers = consensus.distances, consensus.numbers
        self.count = len(each) - 1
        self.present = np.repeat(consensus.distinct[None], len(each), axis=0)
        self.present[np.arange(len(each)), each] = False

    def out(self, least: Array, unknown: Mask) -> Mask:
        """[j, k]: whether client k has a score of `least` (K,) against those without client j.

        Where they have no consensus it is `unknown` (K,).
        """
        found = np.repeat(unknown[None], len(self.each), axis=0)
        if self.count < MIN_CLIENTS:
            return found
        groups, going = self._starts(), np.arange(len(self.each))
        late = []
        for step in range(self.numbers.growing_rounds + self.count):
            before = groups[going]
            near, known, far = self._for_each(before, lambda g: self._judged(g, least))
            after = near & self.present[going]
            if step >= self.numbers.growing_rounds:
                after &= before
            settled, groups[going] = (after == before).all(axis=1), after
            done = settled & known
            found[going[done]] = np.where(far[done, :1], unknown, far[done, 1:])
            late.append(going[settled & ~known])
            going = going[~settled & (after.sum(axis=1) >= MIN_CLIENTS)]
            if not len(going):
                break
        if len(rows := np.concatenate(late)):
            _, _, far = self._for_each(groups[rows], lambda g: self._judged(g, least, True))
            found[rows] = np.where(far[:, :1], unknown, far[:, 1:])
        return found

    def _starts(self) -> Mask:
        """The groups (J, K) that the search begins from.

        Of up to EVERY clients they are what `Consensus.start` finds among all but one. Of more it is the
        consensus with all, less the one: a single client of so many decides where a search ends only at
        a tie, and a group that stands without it is where one ends.
        """
        consensus, found = self.consensus, np.zeros_like(self.present)
        if self.count >= EVERY:
            return np.asarray(self.present & consensus.settled)
        need, members = self.count // 2 + 1, consensus.distinct & consensus.tables.members
        enough = members.sum() - members[self.each] >= need
        for pool, rows in ((members, enough), (consensus.distinct, ~enough)):
            if not rows.any():
                continue
            among = np.flatnonzero(pool)
            kernel = self.distances.likeness[np.ix_(among, among)]
            whole, without = coherent_without(kernel, need)
            place = np.searchsorted(among, self.each)
            for row in np.flatnonzero(rows):
                core = without[place[row]] if pool[self.each[row]] else whole
                found[row, among[core]] = True
        return found

    # --- laws of several groups

    def _judged(
        self, groups: References, least: Array, settled: bool = False
    ) -> tuple[Mask, Mask, Mask]:
        """Who is inside, (B, K), whether the groups may have settled, (B,), and then who is far.

        (B, 1 + K) says whether there is no verdict, and who has a score of `least`. That is asked where
        nobody comes in or goes but the one client that may be missing from those present.
        """
        evidence = self.distances.decisive_of(groups, settled=False)
        near = self.consensus.worst(evidence) < self.numbers.inside
        far = np.zeros((len(near), 1 + near.shape[1]), bool)
        moved = (near & self.consensus.distinct) != groups.masks
        known = (moved.sum(axis=1) <= 1) | settled
        if known.any():
            those = groups if known.all() else References(groups.masks[known], groups.base)
            far[known, 0] = self.consensus.no_verdict(those, self.count)
            far[known, 1:] = self._far(those, least)
        return near, known, far

    def _far(self, groups: References, least: Array) -> Mask:
        """Who has a score of `least` against settled groups, (B, K); exactly if bounds do not tell."""
        evidence = self.distances.decisive_of(groups, settled=True)
        found = self.consensus.worst(evidence) >= least
        surely = found == (self.consensus.worst(evidence, most=True) >= least)
        for b in np.flatnonzero(~surely.all(axis=1)):
            one = References(groups.masks[b : b + 1], groups.base)
            found[b] = self.consensus.worst(self.distances.decisive_of(one, True))[0] >= least
        return found

    def _for_each(self, groups: Mask, law: Law) -> tuple[Mask, ...]:
        """The law's answers on each group (J, K), equal groups asked about once, some at a time."""
        packed = np.packbits(groups, axis=1)
        rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, first, which = np.unique(rows, return_index=True, return_inverse=True)
        different = groups[first]
        base = 2 * different.sum(axis=0) > len(different)
        width = groups.shape[1] * max(len(self.distances.norms), 1)
        least, most = (max(x * blocks.BLOCK // width, 1) for x in TOGETHER)
        step = min(max(least, len(different) // PARTS), most)
        some = [different[i : i + step] for i in range(0, len(different), step)]
        parts = blocks.each(some, lambda g: _apart(g, base, law), self.distances.threads)
        return tuple(np.concatenate(part)[which] for part in zip(*parts, strict=True))


def _apart(groups: Mask, base: Mask, law: Law) -> tuple[Mask, ...]:
    """The answers on groups together, or on each half of them where the law takes several ways."""
    try:
        return law(References(groups, base))
    except Apart:
        half = len(groups) // 2
        parts = [_apart(g, base, law) for g in (groups[:half], groups[half:])]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
