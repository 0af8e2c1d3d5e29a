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


def shrunk(
    updates: list[Array],
    weights: list[float],
    side: str,
    s: int,
    inside: float,
    outside: float,
    boost: float = 0.0,
    mix: Array | None = None,
) -> list[Array]:
    """(1 + g) M + F (Delta_k - M), dense: F takes `inside` of the s leading directions of `side`.

    Own directions are singular triplets of a client's deviation; left and right ones are principal
    directions of all deviations; `mix` (K, K) is F for the side "client".
    """
    mean = sum(w * d for w, d in zip(weights, updates, strict=True))
    offs = [d - mean for d in updates]
    kept = [off - taken(off, offs, weights, side, s, inside, outside) for off in offs]
    if mix is not None:
        kept = [sum(m * off for m, off in zip(row, offs, strict=True)) for row in mix]
    energy = sum(w * (off**2).sum() for w, off in zip(weights, offs, strict=True))
    left = sum(w * (a * b).sum() for w, a, b in zip(weights, kept, offs, strict=True))
    gain = min(boost * (1 - left / energy), 0.25)
    return [(1 + gain) * mean + k for k in kept]


def taken(
    off: Array,
    offs: list[Array],
    weights: list[float],
    side: str,
    s: int,
    inside: float,
    outside: float,
) -> Array:
    """What F leaves out of one deviation: `inside` of its part in s directions, else `outside`."""
    u, _, vt = np.linalg.svd(off)
    if side == "own":
        part = u[:, :s] @ u[:, :s].T @ off @ vt[:s].T @ vt[:s]
    elif side == "left":
        basis = leading([o @ o.T for o in offs], weights, s)
        part = basis @ basis.T @ off
    else:
        basis = leading([o.T @ o for o in offs], weights, s)
        part = off @ basis @ basis.T
    return inside * part + outside * (off - part)


def leading(covariances: list[Array], weights: list[float], s: int) -> Array:
    """The s leading eigenvectors (d, s) of a weighted sum."""
    total = sum(w * c for w, c in zip(weights, covariances, strict=True))
    return np.linalg.eigh(total)[1][:, ::-1][:, :s]
