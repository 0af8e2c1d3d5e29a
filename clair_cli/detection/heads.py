"""Matrices trained whole, above all classifier heads: how much of what the others have is in each.

They are compared as they are, heads without the start that they share (`starts`). A head that was
trained agrees with the others' heads even from another start. Matrices that hardly moved are all alike,
and are not judged; nor are those in which the members agree no more than strangers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clair_cli.detection import agreement, residuals
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.calibration import DetectionCalibration
from clair_cli.detection.causes import LEAST, in_usual, parted
from clair_cli.detection.references import Measuring, References, Table, measured
from clair_cli.detection.starts import learned

if TYPE_CHECKING:
    from clair_cli.detection.tables import Tables

LARGE = 4.0
"""Size from which on a matrix is not cut to the usual one any more."""
FEW_LABELS = 2
"""With so many labels their frequency and their difference lie in one direction."""
FEWEST = 3
"""Members that have a matrix, below which nobody is judged by it."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadEvidence:
    """Of each client (B, K): the share `kept` of what the members' matrices share, and its score."""

    kept: Array
    scores: Array
    unit: float


class Heads(Measuring):
    """The full matrices of K clients; `inner` (F, K, K), `present` (F, K), `sizes` (F,) elements."""

    def __init__(self, tables: Tables, numbers: DetectionCalibration, distinct: Mask) -> None:
        """Those of a cohort, none where it has no full matrices."""
        full, self.numbers = tables.full, numbers
        self.names = () if full is None else full.names
        self.tables, self.cosines = list[Table](), list[Table]()
        self.present, self.sizes = np.zeros((0, 0), bool), np.zeros(0)
        self.own_labels = np.zeros(len(tables.clients), bool)
        if full is not None:
            self.tables = [
                Table(learned(full, f, distinct, numbers)) for f in range(len(full.names))
            ]
            self.cosines = [Table(x) for x in agreement.cosines(full.inner)]
            self.present, self.sizes = full.present, full.sizes.astype(float)
            for head in full.heads.values():
                if head.labels > FEW_LABELS:
                    self.own_labels |= head.frequency >= numbers.head_frequency

    def _having(self, groups: References, f: int) -> References:
        """The members that have this matrix."""
        key = f"having {f}"
        if key not in groups.remembered:
            present = self.present[f]
            groups.remembered[key] = References(groups.masks & present, groups.base & present)
        found: References = groups.remembered[key]
        return found

    @measured
    def judged(self, groups: References) -> list[int]:
        """The matrices in which the members agree by more than chance, and not by hardly moving."""
        found = []
        for f, table in enumerate(self.cosines):
            members = self._having(groups, f)
            if not groups.agreed(members.counts >= FEWEST):
                continue
            chance = self.numbers.clear_of_chance / math.sqrt(max(self.sizes[f], 1.0))
            same = self.numbers.head_same
            low, high = members.pair_median(table, diagonal=False)
            alike = np.full(len(groups.masks), chance < low and high < same)
            if not alike.all() and high > chance and low < same:  # the bounds do not tell
                for b in range(len(alike)):
                    usual = members.exact_pair_median(table, b, diagonal=False)
                    alike[b] = chance < usual < same
            if groups.agreed(alike):
                found.append(f)
        return found

    @measured
    def kept(self, groups: References) -> Array | None:
        """Share of what the members have in common, NaN for clients without; None if unknown."""
        known = self.judged(groups)
        if not known:
            return None
        values, usual = np.zeros(groups.masks.shape), np.zeros(groups.masks.shape)
        for f in known:
            present, members, table = self.present[f], self._having(groups, f), self.tables[f]
            norm = np.sqrt(table.diagonal.clip(min=0))
            own = members.weighted(table, "cut", members.median(norm)[:, 0], norm, _cut)
            values += np.where(present, own, 0.0)
            usual += np.where(present, members.median(own), 0.0)
        return np.asarray(
            np.divide(values, usual, out=np.full(usual.shape, np.nan), where=usual > 0)
        )

    @measured
    def error(self, groups: References) -> Array:
        """Energy of what is not shared (B, K), in usual ones; of several matrices the least."""
        found = np.full(groups.masks.shape, np.inf)
        for f in self.judged(groups):
            members = self._having(groups, f)
            if (parts := parted(self.tables[f], members)) is not None:
                error = in_usual(parts[2], members)
                found = np.where(self.present[f], np.minimum(found, error), found)
        return np.where(np.isfinite(found), found, 1.0)

    def evidence(self, groups: References, body: Array | None) -> HeadEvidence | None:
        """Lack in the matrices that the rest of the adapter does not share: the mark of other labels.

        `body` (B, K) is the share kept by the other modules, None where that is not known. Where both
        lack alike the other modules decide.
        """
        kept = self.kept(groups)
        if kept is None:
            return None
        n = self.numbers
        inside = References(groups.masks & np.isfinite(kept))
        # who has nothing is odd, however uneven the members are
        unit = np.maximum(inside.scale(kept), n.head_floor).clip(max=1 / n.limit)
        error = np.minimum(self.error(groups), n.addition_error)  # else noise would hide a flip
        own = unit * np.sqrt(np.maximum(error / n.noisy, 1))  # who is noisy is known less well
        scores = np.nan_to_num((1 - kept) / own, nan=0.0).clip(0, n.score_cap)
        other = self.own_labels & ~(kept < -n.opposing)  # other frequencies of labels are no flip
        scores = np.where(other, np.minimum(scores, n.suspicious), scores)
        if body is not None:
            apart = np.nan_to_num(body - kept, nan=0.0) >= n.head_apart
            scores = np.where(apart, scores, 0.0)
        return HeadEvidence(kept, scores, float(unit[0, 0]))

    def words(self, groups: References) -> Callable[[float], str]:
        """What is said of a client that keeps a share of what the members' matrices have in common."""
        known = [self.names[f] for f in self.judged(groups)]
        names = ", ".join(known[:3]) + " ..." * (len(known) > 3)

        def said(kept: float) -> str:
            if kept < -self.numbers.opposing:
                return f"{names} points against the others': labels flipped or permuted?"
            there = f"{100 * max(kept, 0):.0f} % of what the others' have in common"
            return f"{names} has {there}, unlike the other modules: labels flipped or permuted?"

        return said


def _cut(norm: Array, typical: float) -> Array:
    """Factors (K,) that cut to the typical size; of an enormous matrix only the direction counts."""
    return residuals.inverse(np.maximum(np.clip(norm, LEAST * typical, typical), norm / LARGE))
