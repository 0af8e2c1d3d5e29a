"""Average linkage of K clients in about K^2 steps, in the order of a plain search for the largest mean.

The mean of a third cluster with two that merge lies between its means with each. So the largest mean
of a row never grows but for the merged one, and what was once its largest bounds it from above: only
the row whose bound is the largest of all is looked at again, until that bound is its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.agreement import Array


@dataclass(frozen=True, slots=True)
class Merge:
    """Two clusters become one: how `alike` they are, and the mean `cosine` of all pairs in it.

    `first` and `second` are the first members of the two, `members` all of the new one, unordered.
    """

    alike: float
    cosine: float
    first: int
    second: int
    members: list[int]


def linked(kernel: Array, who: NDArray[np.intp]) -> Iterator[Merge]:
    """The merges over the clients `who` in the order of likeness; of equals the first in position."""
    count = len(who)
    sums = kernel[np.ix_(who, who)].astype(float)
    np.fill_diagonal(sums, -np.inf)
    sizes, inside = np.ones(count), np.zeros(count)
    clusters = {i: [int(k)] for i, k in enumerate(who)}
    bounds = sums.max(axis=1) if count else np.zeros(0)
    partner = sums.argmax(axis=1) if count else np.zeros(0, int)
    fresh = np.ones(count, bool)

    def look(i: int) -> None:
        """Take the largest mean of row i, and the first place that has it."""
        means = sums[i] / (sizes[i] * sizes)
        partner[i], fresh[i] = means.argmax(), True
        bounds[i] = means[partner[i]]

    for _ in range(count - 1):
        while not fresh[i := int(bounds.argmax())]:
            look(i)
        i, j = sorted((i, int(partner[i])))
        alike = float(sums[i, j] / (sizes[i] * sizes[j]))
        inside[i] += inside[j] + float(sums[i, j])
        sums[i] += np.where(np.isfinite(sums[j]), sums[j], 0)
        sums[j], sums[:, j] = -np.inf, -np.inf
        sums[i, i] = -np.inf
        sums[:, i] = sums[i]
        sizes[i] += sizes[j]
        fresh &= (partner != i) & (partner != j)
        bounds[j] = -np.inf
        look(i)
        clusters[i].extend(clusters.pop(j))
        cosine = inside[i] / (sizes[i] * (sizes[i] - 1) / 2)
        yield Merge(alike, float(cosine), int(who[i]), int(who[j]), list(clusters[i]))
