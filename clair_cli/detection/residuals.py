"""Cosines of what is left of the clients when their part along one direction is taken away.

With inner products W and a part v of each client, the rest is W - v v', and its cosines are those of
the rests. Another reference changes v by little, and the cosines by no more than `drift` says.
"""

from __future__ import annotations

import numpy as np

from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.blocks import blocks


def lengths(diagonal: Array, part: Array, least: float | Array = 0.0) -> Array:
    """How long the rests are, (..., K): zero where their energy is not above `least`."""
    energy = diagonal - part**2
    return np.sqrt(np.where(energy > least, energy, 0))


def cosines(whole: Array, part: Array, length: Array) -> Array:
    """Cosines (K, K) of the rests, 0 where one is zero."""
    found = np.empty_like(whole)
    one = inverse(length)
    for rows in blocks(len(whole)):
        left = (whole[rows] - part[rows, None] * part) * (one[rows, None] * one)
        found[rows] = left.clip(-1, 1)
    return found


def inverse(values: Array) -> Array:
    """1 / values, 0 where those are zero."""
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)


def drift(part: Array, length: Array, others: Array, lengths: Array, who: Mask) -> Array:
    """Bounds (B,) of how much cosines of two of `who` (K,) change with the parts, to `others` (B, K).

    With p = v / l, q = v_b / l and g = l_b / l a cosine c becomes (c + p p' - q q') / (g g'). So it
    moves by no more than |1 / (g g') - 1| + (max |p| + max |q|) max |p - q| / (g g').
    """
    if not who.any():
        return np.zeros(len(others))
    with np.errstate(divide="ignore", invalid="ignore"):
        one = 1 / length[who]
        p, q, g = part[who] * one, others[:, who] * one, lengths[:, who] * one
        least, most = g.min(axis=1) ** 2, g.max(axis=1) ** 2
        size = np.abs(p).max() + np.abs(q).max(axis=1)
        found = np.maximum(1 / least - 1, 1 - 1 / most) + size * np.abs(p - q).max(axis=1) / least
    return np.where(np.isfinite(found), found, np.inf)
