"""Pure tensor functions: symmetric products, dominant directions in a Gram metric, range finder.

Columns that are known only through their inner products are enough for all of clair: with
Q = B V the coefficients V stand for directions, and Q'Q = V' (B'B) V for their inner products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def gram(rows: Tensor, panels: int = 4) -> Tensor:
    """Gram matrix (n, n) of the rows of an (n, d) tensor; each pair of panels is multiplied once."""
    n = rows.shape[0]
    out = rows.new_empty((n, n))
    step = -(-n // panels) or 1
    for i in range(0, n, step):
        strip = rows[i : i + step] @ rows[i:].T  # (step, n - i)
        out[i : i + step, i:] = strip
        out[i:, i : i + step] = strip.T
    return out


def whiten(metric: Tensor) -> Tensor:
    """W (k, k') with W' metric W = I, for a symmetric positive semidefinite (k, k) metric.

    Directions below machine precision times k times the largest eigenvalue are dropped.
    """
    values, vectors = torch.linalg.eigh(metric)
    keep = values > values[-1].clamp_min(0) * metric.shape[0] * torch.finfo(metric.dtype).eps
    white: Tensor = vectors[:, keep] / values[keep].sqrt()
    return white


def dominant(
    metric: Operator, inner: Operator, start: Tensor, sweeps: int, tolerance: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Dominant eigenpairs of B H B' by subspace iteration on the coefficients of B's columns.

    `metric` applies B'B (n, n), `inner` applies H (n, n), both symmetric positive semidefinite;
    `start` is (n, k). Returns values (k',) descending, coefficients V (n, k') with V' B'B V = I, and
    B'B V. Stops early when the values change by less than `tolerance` relative to the largest.
    Accuracy is that of a Rayleigh quotient: quadratic in the angle (Parlett 1998, chapter 14).
    """
    result: tuple[Tensor, Tensor, Tensor] | None = None
    vectors = start
    for _ in range(max(sweeps, 1)):
        dual = metric(vectors)  # (n, k)
        white = whiten(vectors.T @ dual)
        if white.shape[1] == 0 and result is not None:  # the operator is zero on all there is
            break
        vectors, dual = vectors @ white, dual @ white
        image = inner(dual)
        small = dual.T @ image
        values, rotation = torch.linalg.eigh((small + small.T) / 2)
        values, rotation = values.flip(0), rotation.flip(1)
        before, result = result, (values, vectors @ rotation, dual @ rotation)
        vectors = image @ rotation
        if before is not None and _settled(values, before[0], tolerance):
            break
    assert result is not None
    return result


def _settled(values: Tensor, before: Tensor, tolerance: float) -> bool:
    if values.shape != before.shape:
        return False
    return bool((values - before).abs().max() <= tolerance * values[0].abs())


def range_basis(rows: Tensor, size: int, seed: int, power: int = 1) -> Tensor:
    """Orthonormal rows (p, d), p <= size, that span most of the row space of `rows` (n, d).

    Randomised range finder with power iterations (Halko, Martinsson & Tropp 2011, algorithm 4.4).
    The draw is made on the CPU. `energy_left_out` says what the basis misses.
    """
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, rows.shape[0], generator=draw, dtype=torch.float64)
    sketch = mix.to(rows) @ rows  # (size, d)
    for _ in range(power):
        sketch = (whiten(gram(sketch)).T @ sketch @ rows.T) @ rows
    basis = whiten(gram(sketch)).T @ sketch
    return whiten(gram(basis)).T @ basis


def energy_left_out(rows: Tensor, basis: Tensor) -> float:
    """Share in [0, 1] of the squared norm of `rows` (n, d) outside the orthonormal `basis` (p, d)."""
    total = float(rows.double().square().sum())
    kept = float((rows @ basis.T).double().square().sum())
    return max(0.0, 1.0 - kept / total) if total > 0 else 0.0


def standing_out(values: Sequence[float], total: float, rows: int, columns: int) -> int:
    """How many leading eigenvalues of a covariance lie above the edge of what is left without them.

    `values` descend, `total` is the trace, the covariance is that of `columns` columns of `rows`
    entries. For noise the largest of n = min(rows, columns) eigenvalues is (1 + sqrt(q))^2 times
    their mean, q = min / max of the two numbers (Marchenko & Pastur 1967), and strays from that by
    n^(-2/3) or so (Johnstone 2001).
    """
    few, many = min(rows, columns), max(rows, columns, 1)
    edge = (1 + math.sqrt(few / many)) ** 2 * (1 + 2 * max(few, 1) ** (-2 / 3))
    left = total
    for count, value in enumerate(values):
        if count + 1 >= few or value <= edge * max(left, 0.0) / (few - count):
            return count
        left -= value
    return len(values)
