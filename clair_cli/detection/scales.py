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


def small_sample(count: int) -> float:
    """The factor that makes the MAD of `count` values unbiased."""
    return SMALL_SAMPLE.get(count, count / (count - 0.8))


def robust_scale(values: Array) -> float:
    """Robust standard deviation: 1.4826 times the median absolute deviation, unbiased for few."""
    factor = MAD * small_sample(len(values))
    return factor * float(np.median(np.abs(values - np.median(values))))
