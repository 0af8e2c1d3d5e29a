"""Clients that are far from the consensus together: what a few add, and minorities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.blocks import blocks
from clair_cli.detection.causes import Company, addition, sides
from clair_cli.detection.consensus import Consensus
from clair_cli.detection.residuals import inverse


class Groups:
    """The companies of one cohort: `companies` share an addition to what all of `group` (K,) share.

    `group` is the consensus without them. `split` says that without them there is no majority left.
    """

    def __init__(self, consensus: Consensus, group: Mask) -> None:
        self.consensus, self.group = consensus, group
        self.distances, self.numbers = consensus.distances, consensus.numbers
        self.companies: list[Company] = []
        self.split = False
        while (found := self._addition_of_few()) is not None:
            left = self.group & ~self._mask(found.members)
            alone = self.consensus.unidentified(left, int(self.consensus.distinct.sum()))
            if alone is not None and found.cosine < self.numbers.same:
                break  # a weak likeness unseats no majority
            self.companies.append(found)
            if alone is not None:
                self.split = True
                break
            self.group = left  # what they add is no part of what all share

    @property
    def adding(self) -> Mask:
        """Who shares an addition with a few others, (K,)."""
        return self._mask([k for c in self.companies for k in c.members])

    def _mask(self, members: Sequence[int]) -> Mask:
        found = np.zeros(len(self.group), bool)
        found[list(members)] = True
        return found

    def _addition_of_few(self) -> Company | None:
        """Clients with a rest that they share with a few others, most striking first.

        Not judged by it are updates that hardly moved, that have another rank, and that began elsewhere
        than the members did.
        """
        n, distances = self.numbers, self.distances
        why = distances.causes(self.group)
        if why is None:
            return None
        able = self.consensus.distinct & (why.size > n.hardly_trained) & ~self.adding
        able &= ~self._copied(able) & ~distances.elsewhere(self.group)
        able &= distances.of_usual_rank(self.group)
        further = (why.content >= n.grown) & (why.error >= n.hasty * why.content**2)
        for who in (able, able & ~further) if (able & further).any() else (able,):
            found = addition(why.company, who, n.addition_floor, n.addition_apart)
            if found is not None and self._striking(
                found, bool(further[list(found.members)].any())
            ):
                return found
        some = why.content > 1 - n.limit * n.content_floor  # who has less is far whatever it adds
        return self._subspace_of_few(able & ~further & some)

    def _subspace_of_few(self, able: Mask) -> Company | None:
        """Three and more that change the same outputs on top of what all change, each in its own way."""
        n, why = self.numbers, self.distances.output_causes(self.group)
        if why is None or len(self.distances.tables.modules) < n.fewest_modules:
            return None  # in one module a few honest clients are alike by chance
        found = addition(why.company, able, n.addition_floor, n.addition_apart)
        if found is None or len(found.members) < 3:
            return None
        beyond = found.cosine >= n.subspace_cosine and found.score >= n.subspace
        return found if beyond else None

    def _striking(self, found: Company, further: bool) -> bool:
        """Whether so many are so alike; who went `further` has to be alike beyond doubt."""
        n, count = self.numbers, len(found.members)
        few = 1 + 1 / (count - 1) ** 2  # chance makes two alike more easily than many
        alike = found.cosine >= (n.same if count > 2 else n.same_two)
        beyond = found.cosine >= n.addition_cosine and found.score >= n.addition * few
        return alike or (beyond and not further)

    def _copied(self, able: Mask) -> Mask:
        """Clients of usual error whose whole rest lies in that of another, (K,): it copied them.

        Otherwise whoever sends somebody's update with noise on top would have company in that client.
        """
        n, why = self.numbers, self.distances.causes(self.group)
        assert why is not None
        length, most = np.sqrt(why.error), np.zeros(len(able))
        one = inverse(length)
        for rows in blocks(len(able)):  # [i, j]: share of the rest of i that j has, too
            inside = why.company[rows] * (one[rows, None] * np.where(able, length, 0.0))
            inside[np.arange(len(inside)), np.arange(len(able))[rows]] = 0.0
            most[rows] = inside.max(axis=1)
        usual = (why.error < n.noisy) & (why.kept > n.kept_whole)
        found: Mask = usual & (most > n.copied)
        return found

    def minorities(self, scores: Array) -> tuple[tuple[int, ...], ...]:
        """Groups of two and more that are far from the consensus in the same way."""
        n, zero = self.numbers, self.consensus.zero
        if self.distances.told is None:  # what all share is unknown, and so is who shares more
            return ()
        uneven = self._uneven()
        most = n.many * self.consensus.distinct.sum()
        groups = [
            c.members
            for c in self.companies
            if uneven or self._elsewhere(c) or len(c.members) > most
        ]
        taken = self.adding
        far = (scores >= n.limit) & ~zero & ~taken & self.consensus.distinct
        near = (scores >= n.suspicious) & ~zero & ~taken & self.consensus.distinct
        alike = self.distances.alike(self.group)
        alike = np.where(np.isfinite(alike), alike, 0.0)
        towards = agreement.support(alike, self.group)
        for members in sides(alike, near & ~self.group | far, 0.0, n.minority):
            inside = [float(np.mean([alike[k, j] for j in members if j != k])) for k in members]
            # of so many nobody knows whether they or the others are the badly trained ones
            many = len(members) > most
            pairs = zip(members, inside, strict=True)
            own = tuple(k for k, x in pairs if many or towards[k] < n.kept_whole * x)
            if len(own) > 1 and far[list(own)].any():
                groups.append(own)
        return tuple(sorted(groups))

    def likeness(self, minorities: Sequence[tuple[int, ...]]) -> tuple[float, ...]:
        """How alike two members of each minority are, in units of two typical members of `group`."""
        alike = self.distances.alike(self.group)
        return tuple(float(agreement.pairs_of(alike, np.array(g)).mean()) for g in minorities)

    def _elsewhere(self, company: Company) -> bool:
        """Whether its members lack of the common content, too: then they do something else."""
        kept = self.distances.kept(self.group)
        members = list(company.members)
        return kept is not None and bool(np.median(kept[members]) < self.numbers.kept_whole)

    def _uneven(self) -> bool:
        """Whether so many others have the common content only in part that a group is no plot."""
        kept = self.distances.kept(self.group)
        if kept is None:
            return False
        others = self.consensus.distinct & ~self.adding
        partly = others & (kept < self.numbers.kept_whole)
        return bool(partly.sum() > self.numbers.even * max(others.sum(), 1))
