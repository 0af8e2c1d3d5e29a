"""Outlier pursuit on a dense matrix: min ||L||_* + weight ||S||_{1,2} with M = L + S.

Xu, Caramanis and Sanghavi, IEEE Trans. Inf. Theory 58 (2012); solved by the inexact augmented
Lagrangian of Lin, Chen and Ma (2010), in place. The singular values of a tall matrix come from its
small Gram matrix, which is several times as fast as a decomposition of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROWTH = 1.5
"""Of the penalty, from one step to the next."""


def outlier_pursuit(
    matrix: Tensor, share: float, tolerance: float = 1e-6, most: int = 200
) -> tuple[Tensor, Tensor, int]:
    """L and S, (d, K) each, of `matrix` (d, K) with one client per column, and the steps taken.

    `share` of the columns are outliers, f of them. The weight is 1 / sqrt(f + 1): f equal columns stay
    in S, one more would not. The paper's 3/7 / sqrt(f) is for many columns, and puts nearly all of a
    few into S. Ends where what is left of M - L - S is `tolerance` of M, or after `most` steps.
    """
    weight = (share * matrix.shape[1] + 1) ** -0.5
    size = float(matrix.norm())
    penalty = 1.25 / float(torch.linalg.eigvalsh((matrix.T @ matrix).double())[-1]) ** 0.5
    outliers, multiplier = torch.zeros_like(matrix), torch.zeros_like(matrix)
    step = 0
    while step < most:
        step += 1
        low = _shrunk_values(matrix - outliers + multiplier / penalty, 1 / penalty)
        outliers = matrix - low + multiplier / penalty
        lengths = outliers.norm(dim=0)
        outliers *= ((lengths - weight / penalty) / lengths.clamp_min(1e-30)).clamp_min(0)
        left = matrix - low - outliers
        multiplier += penalty * left
        penalty *= GROWTH
        if float(left.norm()) <= tolerance * size:
            break
    return low, outliers, step


def _shrunk_values(matrix: Tensor, by: float) -> Tensor:
    """Every singular value of (d, K) less `by`, and no less than zero."""
    squares, vectors = torch.linalg.eigh((matrix.T @ matrix).double())
    values = squares.clamp_min(0).sqrt()
    factors = ((values - by) / values.clamp_min(1e-30)).clamp_min(0)
    return matrix @ ((vectors * factors) @ vectors.T).to(matrix)
