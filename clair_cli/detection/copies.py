"""Who sent what another client sent: told from the updates, so that copies count once.

A copy is as near to its original as no honest client is to another. How near that is goes by the usual
distance of clients to whoever is nearest, copies left out: else many of them would make it their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.calibration import DetectionCalibration


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


def copies(inner: Array, digests: Sequence[str], numbers: DetectionCalibration) -> Copies:
    """From inner products (modules, K, K) of the updates and the digests of what is stored."""
    whole = inner.sum(axis=0)
    energy = whole.diagonal()
    size = np.sqrt(np.maximum(energy, np.finfo(float).tiny))
    sine = np.sqrt((1 - (whole / size[:, None] / size).clip(-1, 1) ** 2).clip(min=0))
    zero = energy <= 0
    sine[np.ix_(zero, zero)] = 1
    sine[whole <= 0] = 1  # what points the other way is no copy
    return alike(sine, digests, numbers.duplicate, numbers.copy_distance)


def alike(distance: Array, digests: Sequence[str], share: float, least: float) -> Copies:
    """Copies by distances (K, K): nearer than `share` of the usual nearest one, or than `least`.

    It begins with the usual distance of any two, finds the copies, and goes on with the usual nearest
    distance of the others, which is no larger, until that stands.
    """
    digest = np.array(digests)
    apart = ~np.eye(len(digest), dtype=bool)
    same = (digest[:, None] == digest) & apart
    pairs = distance[np.triu_indices(len(digest), 1)]
    usual = float(np.median(pairs)) if len(pairs) else 0.0
    while True:
        near = (distance < max(share * usual, least)) & apart
        found = Copies(near | same, _originals(near | same))
        nearest = np.where(apart, distance, np.inf)[np.ix_(found.first, found.first)].min(axis=1)
        after = float(np.median(nearest))
        if not after < usual:
            return found
        usual = after


def _originals(twins: Mask) -> NDArray[np.intp]:
    """Whoever has most twins first, an original for all of them that have none yet, (K,)."""
    found = np.full(len(twins), -1)
    for k in np.argsort(-twins.sum(axis=1), kind="stable"):
        if found[k] < 0:
            found[k] = k
            found[twins[k] & (found < 0)] = k
    return found
