"""What one client alone has on top of all that is shared, and that is not the noise of little data.

Error falls with the data, so a tenth of them leaves ten times the error, in no direction of its own:
such updates have a higher effective rank than others. An error in a few directions is an addition. So
is one beyond what any lack of data leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.evidence import Evidence

if TYPE_CHECKING:
    from clair_cli.detection.causes import Causes
    from clair_cli.detection.kernels import Kernels


def excess(kernels: Kernels, group: Mask, why: Causes) -> Iterator[Evidence]:
    """How far each client is out by what it alone has; a larger update may have more error."""
    grown = np.maximum(why.content**2, 1.0)
    yield _narrow(kernels, group, why.error / grown)
    left = kernels.tables.unexplained
    if left is None:
        return
    n, usual = kernels.numbers, float(np.median(left[group]))
    yield _beyond(left / grown, max(usual, n.material), n.distorted, n.limit, decisive=True)
    seen = np.where(left > n.rounding, left, 0.0) / grown
    yield _beyond(seen, max(usual, n.rounding), n.enormous, n.suspicious, decisive=False)


def _narrow(kernels: Kernels, group: Mask, error: Array) -> Evidence:
    """Much error in fewer directions than the others' updates have; of clients of the usual rank."""
    n = kernels.numbers
    narrow = n.limit * kernels.narrowness(group) / n.narrow
    much = n.limit * np.log(np.maximum(error, 1.0)) / math.log(n.addition_error)
    scores = np.minimum(narrow, much).clip(0, n.score_cap)
    scores = np.where(kernels.of_usual_rank(group), scores, 0.0)
    return Evidence(
        "CLR214",
        error,
        scores,
        (-math.inf, n.addition_error),
        lambda k: f"adds something of its own: {error[k]:.2g}x the usual error, in few directions",
    )


def _beyond(left: Array, usual: float, most: float, score: float, decisive: bool) -> Evidence:
    """Energy `left` (K,) outside of what is shared; `most` times the `usual` is worth `score`."""
    ratio = left / usual

    def words(k: int) -> str:
        much = (
            "more than little data make"
            if ratio[k] >= most
            else "very little data, or an addition?"
        )
        return f"has {ratio[k]:.2g}x the usual error: {much}"

    scores = score * np.log(np.maximum(ratio, 1.0)) / math.log(most)
    return Evidence("CLR214", ratio, scores, (-math.inf, most), words, decisive)
