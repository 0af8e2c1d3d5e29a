"""Whether suspects deviate in the same way: exactly against one group, by bounds against several.

Deviations are what is left of an update without its part along the members' mean. Two honest ones may
well agree, so a mean over few pairs has to lie further from the members' pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import agreement, residuals
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.references import References, Table
from clair_cli.detection.residuals import inverse
from clair_cli.detection.scales import MAD, median, robust_scale, small_sample
from clair_cli.settings import MIN_CLIENTS

if TYPE_CHECKING:
    from clair_cli.detection.kernels import Kernels


def accord(kernels: Kernels, suspects: Mask, groups: References) -> tuple[Array, Array]:
    """Least and largest score (B, K) of the mean cosine of each suspect's deviation with the others'."""
    none = np.zeros(suspects.shape, kernels.kernel.dtype)
    several = suspects.sum(axis=1) >= 2
    if not several.any():
        return none, none
    if len(suspects) == 1:
        found = kernels.kind(_exact(kernels, suspects[0], groups.masks[0])[None])
        return found, found
    left = groups.masks & ~suspects
    base = kernels.wholes.known(groups.base, "honest", lambda: 2 * left.sum(axis=0) > len(left))
    honest = References(left, base)
    if not groups.agreed(several) or not groups.agreed(honest.counts >= MIN_CLIENTS):
        return none, none
    part = kernels.along(honest)
    if part is None:
        return none, none
    return _bounded(kernels, suspects, honest, part)


def _exact(kernels: Kernels, suspects: Mask, group: Mask) -> Array:
    """The score (K,) against one group."""
    honest = group & ~suspects
    cosine = kernels.deviations(honest)
    if cosine is None:
        return np.zeros(len(suspects))
    pairs = agreement.pairs(cosine, honest)
    middle, spread = median(pairs), robust_scale(pairs)
    mean = agreement.support(cosine, suspects)
    unit = max(spread / math.sqrt(suspects.sum() - 1), kernels.numbers.accord_floor)
    score = (mean - middle) / unit
    return np.where(suspects, score.clip(0, kernels.numbers.suspicious), 0.0)


def _bounded(
    kernels: Kernels, suspects: Mask, honest: References, part: Array
) -> tuple[Array, Array]:
    """Bounds of the score: the suspects' cosines are exact, the members' near those of the base.

    The cosines of the base move by the drift of their parts at most, so their median and their median
    deviation from it do, too, beyond what the clients who come and go move them.
    """
    numbers, whole = kernels.numbers, kernels.wholes
    length = residuals.lengths(whole.diagonal, part)
    mean = _mean_cosines(whole, honest.base, part, length, suspects)
    own, own_length, cosine, spread, middle = _of_base(kernels, honest.base)
    drift = residuals.drift(own, own_length, part, length, honest.base | honest.masks.any(axis=0))
    low, high = honest.pair_median(cosine, diagonal=False)
    least, most = (low - drift)[:, None], (high + drift)[:, None]
    further = drift + max(high - middle, middle - low)
    pairs = honest.counts * (honest.counts - 1) // 2
    factor = MAD * np.array([small_sample(int(n)) for n in pairs])
    narrow, wide = honest.pair_median(spread, diagonal=False)
    units = (
        np.maximum(
            factor / np.sqrt(suspects.sum(axis=1) - 1) * np.maximum(x, 0), numbers.accord_floor
        )[:, None]
        for x in (wide + further, narrow - further)
    )
    with np.errstate(invalid="ignore"):  # infinite bounds: from nothing to the most there is
        scores = [(mean - x) / unit for x, unit in zip((most, least), units, strict=True)]
    first, last = (np.where(suspects, x.clip(0, numbers.suspicious), 0.0) for x in scores)
    return kernels.kind(np.nan_to_num(first)), kernels.kind(
        np.nan_to_num(last, nan=numbers.suspicious)
    )


def _of_base(kernels: Kernels, base: Mask) -> tuple[Array, Array, Table, Table, float]:
    """Part and length (K,) of the base, the cosines of its deviations, and how far from their median."""

    def made() -> tuple[Array, Array, Table, Table, float]:
        part = kernels.along(References(base[None]))
        if part is None or base.sum() < MIN_CLIENTS:
            part = np.full((1, len(base)), np.nan)  # no bound
        length = residuals.lengths(kernels.wholes.diagonal, part[0])
        cosine = residuals.cosines(kernels.wholes.values, part[0], length)
        middle = median(agreement.pairs(cosine, base))
        return part[0], length, Table(cosine), Table(np.abs(cosine - middle)), middle

    found: tuple[Array, Array, Table, Table, float] = kernels.wholes.known(base, "accord", made)
    return found


def _mean_cosines(whole: Table, base: Mask, part: Array, length: Array, suspects: Mask) -> Array:
    """Mean cosine (B, K) of each suspect's rest with those of the other suspects of its group."""
    who, values = _among(whole, base, np.asarray(suspects.any(axis=0)))
    one, of = inverse(length[:, who]), suspects[:, who]
    weights, inside = np.where(of, one, 0), part[:, who]
    sums = weights @ values
    sums = (sums - inside * (weights * inside).sum(axis=1, keepdims=True)) * one
    others = of.sum(axis=1, keepdims=True) - 1
    found = np.zeros(suspects.shape, values.dtype)
    found[:, who] = (sums - (one > 0)) / np.maximum(others, 1)
    return found


def _among(whole: Table, base: Mask, suspects: Mask) -> tuple[NDArray[np.intp], Array]:
    """Positions of all who were suspects against this base so far, and their part of the table."""
    seen: list[tuple[NDArray[np.intp], Array]] = whole.known(base, "suspects", list)
    latest = seen[-1] if seen else None
    if latest is not None and suspects[latest[0]].sum() == suspects.sum():
        return latest
    known = suspects.copy()
    if latest is not None:
        known[latest[0]] = True
    who = np.flatnonzero(known)
    latest = who, whole.values[np.ix_(who, who)]
    seen[:] = [latest]
    return latest
