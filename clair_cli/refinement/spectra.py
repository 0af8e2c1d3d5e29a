"""Singular values and vectors of small matrices, and how many of them carry it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.linalg import eigh
from clair_cli.refinement.calibration import RefinementCalibration

WHOLE, STEPS, EVERY = 100, 96, 8
"""Rows up to which a table is decomposed whole; steps of Lanczos at most, and after how many each time
they are looked at."""
SMALL = 1e-7
"""What of the largest eigenvalue may be left over when steps end."""


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


def leading_eigenpair(
    table: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The largest eigenvalue of a symmetric table (K, K), and its vector (K,) of norm 1.

    Of many rows by the Lanczos method from near `start`, with every vector orthogonal to all before
    it: a few products with the table in place of K. Where the largest eigenvalues lie close together the
    vector may be a mixture of theirs, and its value is theirs all the same.
    """
    count = len(table)
    if count <= WHOLE:
        values, vectors = np.linalg.eigh(table)
        return float(values[-1]), vectors[:, -1]
    length = float(np.linalg.norm(start))
    vector = np.random.default_rng(0).standard_normal(count) / count**0.5
    vector = vector if length == 0 else start / length + 0.1 * vector
    basis = np.zeros((STEPS, count))
    diagonal, beside = np.zeros(STEPS), np.zeros(STEPS)
    for step in range(STEPS):
        basis[step] = vector / np.linalg.norm(vector)
        vector = table @ basis[step]
        diagonal[step] = vector @ basis[step]
        known = basis[: step + 1]
        for _ in range(2):  # once leaves what rounding has
            vector = vector - (known @ vector) @ known
        beside[step] = np.linalg.norm(vector)
        none_left = beside[step] <= SMALL * np.abs(diagonal[: step + 1]).max()
        if none_left or (step + 1) % EVERY == 0:
            small = np.diag(diagonal[: step + 1])
            small += np.diag(beside[:step], 1) + np.diag(beside[:step], -1)
            values, vectors = np.linalg.eigh(small)
            if none_left or beside[step] * abs(vectors[-1, -1]) <= SMALL * np.abs(values).max():
                break
    return float(values[-1]), vectors[:, -1] @ known
