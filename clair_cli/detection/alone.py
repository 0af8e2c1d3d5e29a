"""Who outside of a group is alone with its rest: like nobody else outside in what it does not share.

Against several groups that lack a client or two of one base, the others' cosines are those of the base
up to their drift (`residuals`). Only those are computed that the drift could carry across the limit,
and those of the clients that the groups lack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import residuals
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.causes import Shares, shares
from clair_cli.detection.references import References, Table
from clair_cli.detection.residuals import inverse

Who = NDArray[np.intp]


def alone(
    told: Table, groups: References, why: Shares, some: Mask, distinct: Mask, most: float
) -> Mask:
    """Of clients `some` (B, K) outside, those whose cosines with all others outside are below `most`."""
    found, outside = np.zeros_like(some), distinct & ~groups.masks
    if not some.any():
        return found
    near = _of_base(told, groups.base, distinct) if len(some) > 1 else None
    usable = np.zeros(len(some), bool)
    drift = np.zeros(len(some))
    if near is not None:
        part, length, nearest = near
        more = groups.masks & ~groups.base  # outside of the base, and not of the group
        usable = np.asarray(~more.any(axis=1))
        drift = residuals.drift(part, length, why.part, why.length, distinct & ~groups.base)
        usable &= np.isfinite(drift)
    for b in map(int, np.flatnonzero(some.any(axis=1))):
        mine, others = np.flatnonzero(some[b]), np.flatnonzero(outside[b])
        if near is None or not usable[b]:
            found[b, mine] = _company(told, why, b, mine, others) < most
            continue
        lost = np.flatnonzero(outside[b] & groups.base)
        with_lost = _company(told, why, b, mine, lost)
        old = ~groups.base[mine]
        surely = old & (nearest[mine] + drift[b] < most) & (with_lost < most)
        found[b, mine[surely]] = True
        never = (old & (nearest[mine] - drift[b] >= most)) | (with_lost >= most)
        open_ = mine[~surely & ~never]
        if len(open_):
            found[b, open_] = _company(told, why, b, open_, others) < most
    return found


def _company(told: Table, why: Shares, b: int, mine: Who, others: Who) -> Array:
    """The largest cosine of each of `mine` with another of `others`, -1 without any."""
    if not len(others):
        return np.full(len(mine), -1.0)
    part, length = why.part[b], why.length[b]
    company = told.values[np.ix_(mine, others)] - part[mine, None] * part[others]
    company *= inverse(length[mine])[:, None] * inverse(length[others])
    company[mine[:, None] == others] = -1
    return np.asarray(company.max(axis=1).clip(-1, 1))


def _of_base(told: Table, base: Mask, distinct: Mask) -> tuple[Array, Array, Array] | None:
    """Part and length (K,) against the base, and the largest cosine of each outside; None if unknown."""

    def made() -> tuple[Array, Array, Array] | None:
        found = shares(told, References(base[None])) if base.any() else None
        if found is None:
            return None
        outside, nearest = np.flatnonzero(distinct & ~base), np.full(len(base), -1.0)
        nearest[outside] = _company(told, found, 0, outside, outside)
        return found.part[0], found.length[0], nearest

    known: tuple[Array, Array, Array] | None = told.known(base, "alone", made)
    return known
