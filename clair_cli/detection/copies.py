"""Who sent what another client sent: told from the updates, so that copies count once.

A copy is as near to its original as no honest client is to another. How near that is goes by the usual
distance of clients to whoever is nearest, copies left out: else many of them would make it their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.agreement import Array, Mask, pairs
from clair_cli.detection.blocks import blocks
from clair_cli.detection.calibration import DetectionCalibration
from clair_cli.detection.scales import median


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """`twins` (K, K): who is a copy of whom. `originals` (K,): whom each client counts as.

    An original counts as itself, and every copy is a twin of its original. Who of them sent it first
    nobody can tell: it is whoever has most twins, and of those the first.
    """

    twins: Mask
    originals: NDArray[np.intp]

    @property
    def first(self) -> Mask:
        """Who counts as itself, (K,)."""
        return np.asarray(self.originals == np.arange(len(self.originals)))

    def of(self, k: int) -> list[int]:
        """The twins of client k."""
        return [int(j) for j in np.flatnonzero(self.twins[k])]

    def partner(self, k: int) -> int | None:
        """The original of client k, or of an original its first copy; None for who has no copy."""
        first, twins = int(self.originals[k]), self.of(k)
        return first if first != k else twins[0] if twins else None


def copies(
    inner: Array | Sequence[Array], digests: Sequence[str], numbers: DetectionCalibration
) -> Copies:
    """From inner products (K, K) of the updates in each module and the digests of what is stored.

    Sines are kept in float32: they are only compared.
    """
    count = len(digests)
    energy = sum(np.einsum("kk->k", x).astype(float) for x in inner)
    size = np.sqrt(np.maximum(energy, np.finfo(float).tiny))
    sine: Any = np.empty((count, count), np.float32)
    for rows in blocks(count):
        cosine = sum(x[rows].astype(float) for x in inner) / size[rows, None] / size
        # what points the other way is no copy, and what is zero is nobody's
        sine[rows] = np.sqrt((1 - cosine.clip(0, 1) ** 2).clip(min=0))
    return alike(sine, digests, numbers.duplicate, numbers.copy_distance)


def alike(distance: Array, digests: Sequence[str], share: float, least: float) -> Copies:
    """Copies by distances (K, K): nearer than `share` of the usual nearest one, or than `least`.

    It begins with the usual distance of any two, finds the copies, and goes on with the usual nearest
    distance of the others, which is no larger, until that stands.
    """
    same = np.unique(np.array(digests), return_inverse=True)[1]
    every = pairs(distance, np.ones(len(distance), bool))
    usual = median(every) if len(every) else 0.0
    while True:
        twins = _near(distance, same, max(share * usual, least))
        found = Copies(twins, _originals(twins))
        after = _usual_nearest(distance, np.flatnonzero(found.first))
        if not after < usual:
            return found
        usual = after


def _near(distance: Array, same: NDArray[np.intp], limit: float) -> Mask:
    """Who is nearer than the limit, or of the same kind (K,), and not oneself, (K, K)."""
    found = np.empty(distance.shape, bool)
    for rows in blocks(len(distance)):
        found[rows] = (distance[rows] < limit) | (same[rows, None] == same)
    np.fill_diagonal(found, False)
    return found


def _usual_nearest(distance: Array, who: NDArray[np.intp]) -> float:
    """The usual distance of one of `who` to whoever of them is nearest; infinite where it is alone."""
    nearest = np.empty(len(who))
    for rows in blocks(len(who)):
        near = distance[np.ix_(who[rows], who)]
        near[np.arange(len(near)), np.arange(len(who))[rows]] = np.inf
        nearest[rows] = near.min(axis=1)
    return float(np.median(nearest))


def _originals(twins: Mask) -> NDArray[np.intp]:
    """Whoever has most twins first, an original for all of them that have none yet, (K,)."""
    found = np.full(len(twins), -1)
    for k in np.argsort(-twins.sum(axis=1), kind="stable"):
        if found[k] < 0:
            found[k] = k
            found[twins[k] & (found < 0)] = k
    return found
