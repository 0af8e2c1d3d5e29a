"""Units of distance: robust spreads of few values."""

from __future__ import annotations

import numpy as np

from clair_cli.detection.agreement import Array

SMALL_SAMPLE = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}
"""Factors that make the MAD unbiased for few values (Croux & Rousseeuw 1992)."""
MAD = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""
TENTH = 1.2816
"""Standard deviations from the median of a normal distribution to its lower tenth."""
MANY, SAMPLE = 2**18, 2**14
"""Values from which on order statistics are looked for near those of a sample, and the size of that."""
BESIDE = 0.02
"""Share of the sample to both sides that is looked at: five standard errors of a median."""


def small_sample(count: int) -> float:
    """The factor that makes the MAD of `count` values unbiased."""
    return SMALL_SAMPLE.get(count, count / (count - 0.8))


def robust_scale(values: Array) -> float:
    """Robust standard deviation: 1.4826 times the median absolute deviation, unbiased for few."""
    factor = MAD * small_sample(len(values))
    return factor * median(np.abs(values - median(values)))


def median(values: Array) -> float:
    """Median of the values (n,), as np.median gives it, of many of them sooner."""
    count = len(values)
    if count < MANY or np.isnan(values.max()):
        return float(np.median(values))
    return float(np.mean(ordered(values, (count - 1) // 2, count // 2)))


def quantile(values: Array, share: float) -> float:
    """The value (n,) that this share of them is below, the nearest one."""
    place = round(share * (len(values) - 1))
    return float(ordered(values, place, place)[0])


def ordered(values: Array, low: int, high: int) -> Array:
    """The values at places `low` and `high` of the sorted (n,).

    Of many only those are sorted that lie where a sample has its own of these places; all of them,
    where that is not where they are.
    """
    count = len(values)
    if count >= MANY:
        sample = np.sort(values[:: count // SAMPLE])
        first, last = (
            int((x / count + y) * len(sample)) for x, y in ((low, -BESIDE), (high, BESIDE))
        )
        least = sample[first] if first >= 0 else -np.inf
        most = sample[last] if last < len(sample) else np.inf
        before = int(np.count_nonzero(values < least))
        near = values[(values >= least) & (values <= most)]
        if before <= low and high < before + len(near):
            values, low, high = near, low - before, high - before
    return np.asarray(np.partition(values, (low, high))[[low, high]])
