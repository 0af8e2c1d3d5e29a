"""Matrices trained whole, above all classifier heads: how much of what the others have is in each.

They are compared as they are. A head that was trained agrees with the others' heads even from another
start, and its start cancels where all share it. Matrices that hardly moved are all alike, and are not
judged; nor are those in which the members agree no more than strangers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.calibration import DetectionCalibration
from clair_cli.detection.causes import LEAST
from clair_cli.detection.scales import robust_scale

if TYPE_CHECKING:
    from clair_cli.detection.tables import Tables

LARGE = 4.0
"""Size from which on a matrix is not cut to the usual one any more."""
FEWEST = 3
"""Members that have a matrix, below which nobody is judged by it."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadEvidence:
    """Of each client (K,): the share `kept` of what the members' matrices have in common, its score."""

    kept: Array
    scores: Array
    unit: float


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """The full matrices of K clients; `inner` (F, K, K), `present` (F, K), `sizes` (F,) elements."""

    names: tuple[str, ...]
    inner: Array
    present: Mask
    sizes: Array
    numbers: DetectionCalibration

    @classmethod
    def of(cls, tables: Tables, numbers: DetectionCalibration) -> Heads:
        """Those of a cohort, none where it has no full matrices."""
        full = tables.full
        if full is None:
            count = len(tables.clients)
            none = np.zeros((0, count, count)), np.zeros((0, count), bool), np.zeros(0)
            return cls((), *none, numbers)
        return cls(full.names, full.inner, full.present, full.sizes.astype(float), numbers)

    def judged(self, group: Mask) -> list[int]:
        """The matrices in which the members (K,) agree by more than chance, and not by hardly moving."""
        found = []
        for f, inner in enumerate(self.inner):
            members = group & self.present[f]
            if members.sum() < FEWEST:
                continue
            alike = float(np.median(agreement.pairs(_cosines(inner), members)))
            chance = self.numbers.clear_of_chance / math.sqrt(max(self.sizes[f], 1.0))
            if chance < alike < self.numbers.head_same:
                found.append(f)
        return found

    def kept(self, group: Mask) -> Array | None:
        """Share (K,) of what the members have in common, NaN for clients without; None if unknown."""
        known = self.judged(group)
        if not known:
            return None
        values, usual = np.zeros(len(group)), np.zeros(len(group))
        for f in known:
            present, members = self.present[f], group & self.present[f]
            norm = np.sqrt(self.inner[f].diagonal().clip(min=0))
            typical = float(np.median(norm[members]))
            cut = np.clip(norm, LEAST * typical, typical)
            cut = np.maximum(cut, norm / LARGE)  # of an enormous one only the direction counts
            own = agreement.support(self.inner[f] / np.outer(cut, cut), members)
            values += np.where(present, own, 0.0)
            usual += np.where(present, np.median(own[members]), 0.0)
        return np.asarray(
            np.divide(values, usual, out=np.full(len(group), np.nan), where=usual > 0)
        )

    def evidence(self, group: Mask, body: Array | None) -> HeadEvidence | None:
        """Lack in the matrices that the rest of the adapter does not share: the mark of other labels.

        `body` (K,) is the share kept by the other modules, None where that is not known. Where both lack
        alike the other modules decide.
        """
        kept = self.kept(group)
        if kept is None:
            return None
        n = self.numbers
        inside = kept[group & np.isfinite(kept)]
        unit = max(robust_scale(inside), n.head_floor)
        scores = np.nan_to_num((1 - kept) / unit, nan=0.0).clip(0, n.score_cap)
        if body is not None:
            apart = np.nan_to_num(body - kept, nan=0.0) >= n.head_apart
            scores = np.where(apart, scores, 0.0)
        return HeadEvidence(kept, scores, unit)

    def words(self, group: Mask) -> Callable[[float], str]:
        """What is said of a client that keeps a share of what the members' matrices have in common."""
        known = [self.names[f] for f in self.judged(group)]
        names = ", ".join(known[:3]) + " ..." * (len(known) > 3)

        def said(kept: float) -> str:
            if kept < 0:
                return f"{names} points against the others': labels flipped or permuted?"
            return (
                f"{names} has {100 * kept:.0f} % of what the others' have in common, unlike the other "
                "modules: labels flipped or permuted?"
            )

        return said


def _cosines(inner: Array) -> Array:
    return np.asarray(agreement.cosines(inner[None])[0])
