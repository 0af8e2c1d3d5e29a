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
    found, open_ = np.zeros_like(some), some
    near = _of_base(told, groups.base, distinct) if len(some) > 1 else None
    if near is not None and groups.lacking is not None and some.any():
        found, open_ = _by_base(told, groups, why, some, distinct, most, near)
    for b in map(int, np.flatnonzero(open_.any(axis=1))):
        mine, others = np.flatnonzero(open_[b]), np.flatnonzero(distinct & ~groups.masks[b])
        found[b, mine] = _company(told, why, b, mine, others) < most
    return found


def _by_base(
    told: Table,
    groups: References,
    why: Shares,
    some: Mask,
    distinct: Mask,
    most: float,
    near: tuple[Array, Array, Array],
) -> tuple[Mask, Mask]:
    """Who is surely alone, and of whom the base does not tell: groups that are the base less one."""
    part, length, nearest = near
    out, every = np.flatnonzero(distinct & ~groups.base), np.arange(len(some))
    drift = residuals.drift(part, length, why.part, why.length, distinct & ~groups.base)[:, None]
    assert groups.lacking is not None
    lost = groups.lacking
    has = (groups.counts < groups.base.sum()) & distinct[lost]
    with_lost = told.values[lost][:, out] - why.part[every, lost][:, None] * why.part[:, out]
    with_lost *= inverse(why.length[every, lost])[:, None] * inverse(why.length[:, out])
    with_lost = np.where(has[:, None], with_lost, -1)
    old = some[:, out]
    surely = old & (nearest[out] + drift < most) & (with_lost < most)
    never = (nearest[out] - drift >= most) | (with_lost >= most)
    found, open_ = np.zeros_like(some), np.zeros_like(some)
    found[:, out], open_[:, out] = surely, old & ~surely & ~never
    rows = np.flatnonzero(has)
    found[rows, lost[rows]] = some[rows, lost[rows]] & (with_lost[rows] < most).all(axis=1)
    return found, open_


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
