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

from clair_cli.detection.agreement import Array
from clair_cli.detection.evidence import Evidence

if TYPE_CHECKING:
    from clair_cli.detection.causes import Shares
    from clair_cli.detection.kernels import Kernels
    from clair_cli.detection.references import References


def excess(kernels: Kernels, groups: References, why: Shares) -> Iterator[Evidence]:
    """How far each client is out by what it alone has; a larger update may have more error."""
    grown = np.maximum(why.content**2, 1.0)
    yield _narrow(kernels, groups, why.error / grown)
    if kernels.left is None:
        return
    n, left, usual = kernels.numbers, kernels.left.values, groups.median(kernels.left)
    yield _beyond(left / grown, np.maximum(usual, n.material), n.distorted, n.limit, decisive=True)
    seen = np.where(left > n.rounding, left, 0.0) / grown
    usual = np.maximum(usual, n.rounding)
    yield _beyond(seen, usual, n.enormous, n.suspicious, decisive=False)


def _narrow(kernels: Kernels, groups: References, error: Array) -> Evidence:
    """Much error in fewer directions than the others' updates have; of clients of the usual rank."""
    n = kernels.numbers
    narrow = n.limit * kernels.narrowness(groups) / n.narrow
    much = n.limit * np.log(np.maximum(error, 1.0)) / math.log(n.addition_error)
    scores = np.minimum(narrow, much).clip(0, n.score_cap)
    scores = np.where(kernels.of_usual_rank(groups), scores, 0.0)
    return Evidence(
        "CLR214",
        error,
        scores,
        (-math.inf, n.addition_error),
        lambda k: (
            f"adds something of its own: {error[0, k]:.2g}x the usual error, in few directions"
        ),
    )


def _beyond(left: Array, usual: Array, most: float, score: float, decisive: bool) -> Evidence:
    """Energy `left` (B, K) outside of what is shared; `most` times the `usual` is worth `score`."""
    ratio = left / usual

    def words(k: int) -> str:
        much = (
            "more than little data make"
            if ratio[0, k] >= most
            else "very little data, or an addition?"
        )
        return f"has {ratio[0, k]:.2g}x the usual error: {much}"

    scores = score * np.log(np.maximum(ratio, 1.0)) / math.log(most)
    return Evidence("CLR214", ratio, scores, (-math.inf, most), words, decisive)
