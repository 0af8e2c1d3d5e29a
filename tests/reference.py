"""Dense, slow, obvious: what the fast code must agree with on small problems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def shrink_singular(x: Array, by: float) -> Array:
    u, s, v = np.linalg.svd(x, full_matrices=False)
    return (u * np.maximum(s - by, 0)) @ v


def shrink_blocks(x: Array, by: float, clients: int) -> Array:
    """Proximal map of by * sum_k ||block_k||_F; x is (d_out, K * d_in)."""
    blocks = x.reshape(x.shape[0], clients, -1)
    norms = np.sqrt((blocks**2).sum(axis=(0, 2), keepdims=True))
    return (blocks * np.maximum(1 - by / np.maximum(norms, 1e-300), 0)).reshape(x.shape)


def outlier_pursuit(
    stack: Array, clients: int, weight: float, iterations: int = 3000, tolerance: float = 1e-10
) -> tuple[Array, Array]:
    """min ||L||_* + weight * sum_k ||S_k||_F  s.t.  L + S = stack, by the method of multipliers.

    Xu, Caramanis & Sanghavi 2012 with blocks in place of columns. `stack` is (d_out, K d_in).
    """
    mu = 1.25 / np.linalg.norm(stack, 2)
    sparse, dual = np.zeros_like(stack), np.zeros_like(stack)
    for _ in range(iterations):
        low = shrink_singular(stack - sparse + dual / mu, 1 / mu)
        sparse = shrink_blocks(stack - low + dual / mu, weight / mu, clients)
        gap = stack - low - sparse
        dual = dual + mu * gap
        if np.linalg.norm(gap) <= tolerance * np.linalg.norm(stack):
            break
        mu = min(mu * 1.02, 1e7)
    return low, sparse


def refined(
    updates: list[Array], basis: Array, strength: float, weights: list[float]
) -> list[Array]:
    """Delta_k - t (I - U U') (Delta_k - M), dense."""
    mean = sum(w * d for w, d in zip(weights, updates, strict=True))
    outside = np.eye(len(basis)) - basis @ basis.T
    return [d - strength * outside @ (d - mean) for d in updates]
