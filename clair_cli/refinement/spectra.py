"""Singular values and vectors of small matrices, and how many of them carry it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.linalg import eigh
from clair_cli.refinement.calibration import RefinementCalibration


def squared_spectrum(core: Tensor) -> NDArray[np.float64]:
    """Squared singular values, descending."""
    values: NDArray[np.float64] = torch.linalg.svdvals(core).square().cpu().double().numpy()
    return values


def top_singular(
    core: Tensor, rank: int, guide: Tensor, numbers: RefinementCalibration
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets u (p, k), s (k,), v (q, k), k = min(rank, p, q)."""
    rank = min(rank, *core.shape)
    width = rank + numbers.svd_oversampling
    if min(core.shape) <= numbers.exact_svd * width:
        return _leading(core, rank)
    rows = torch.linspace(0, guide.shape[0] - 1, width, dtype=torch.long, device=core.device)
    basis = torch.linalg.qr((guide[rows] @ core.T).T)[0]  # (p, width)
    for _ in range(numbers.svd_sweeps):
        basis = torch.linalg.qr(core @ torch.linalg.qr(core.T @ basis)[0])[0]
    u, s, vt = torch.linalg.svd(basis.T @ core, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank].T


def _leading(core: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` leading singular triplets of a small matrix in float64, by the eigenvectors of its
    smaller Gram matrix: what is below 1e-8 of the largest is rounding."""
    if core.shape[0] > core.shape[1]:
        v, s, u = _leading(core.T, rank)
        return u, s, v
    u = eigh(core @ core.T)[1].flip(1)[:, :rank]
    image = core.T @ u
    s = image.norm(dim=0)
    return u, s, image / torch.where(s > 0, s, 1)


def participation(off: Tensor, energy: float) -> int:
    """How many directions carry a deviation: (sum s^2)^2 / sum s^4, rounded; 0 for zero."""
    small = off if off.shape[0] <= off.shape[1] else off.T
    fourth = float((small @ small.T).square().sum())
    return round(energy**2 / fourth) if fourth > 0 else 0
