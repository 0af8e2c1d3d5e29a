"""Who is a copy of whom, byte by byte or in what it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from clair_cli.detection.agreement import Array
from clair_cli.detection.blocks import blocks


def copies(inner: Array, digests: Sequence[str], share: float, least: float) -> list[list[int]]:
    """For each of K clients the others it is a copy of, in order.

    Two are near whose sine, over `inner` (M, K, K) summed, is below `least` or the `share` of the usual
    least sine of a client. A sine is at most 1, so no other pair can be below the larger of the two.
    """
    count = inner.shape[1]
    energy = np.einsum("mkk->k", inner).astype(float)
    size = np.sqrt(np.maximum(energy, np.finfo(float).tiny))
    nearest = np.full(count, np.inf)
    found: list[tuple[int, int, float]] = []
    for rows in blocks(count):
        c = inner[:, rows].astype(float).sum(axis=0)
        sine = np.sqrt((1 - (c / size[rows, None] / size).clip(-1, 1) ** 2).clip(min=0))
        sine[np.arange(len(sine)), np.arange(count)[rows]] = np.inf
        nearest[rows] = sine.min(axis=1)
        i, j = np.nonzero((sine < max(share, least)) & (c > 0))
        found += zip((i + rows.start).tolist(), j.tolist(), sine[i, j].tolist(), strict=True)
    limit = max(share * float(np.median(nearest)), least)
    twins: list[set[int]] = [set() for _ in range(count)]
    for one, other, sine_ in found:
        if sine_ < limit:
            twins[one].add(other)
    same = defaultdict(set)
    for k, digest in enumerate(digests):
        same[digest].add(k)
    return [sorted(twins[k] | same[digest] - {k}) for k, digest in enumerate(digests)]
