"""Pure tensor functions: symmetric products, dominant directions, factors of little rank.

Columns that are known only through their inner products are enough for all of clair: with
Q = B V the coefficients V stand for directions, and Q'Q = V' (B'B) V for their inner products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def moved(tensor: Tensor, device: str) -> Tensor:
    """The tensor on `device`. From the CPU to another it goes as it is stored, and from pinned memory:
    then this thread does not wait, but what it begins next in its stream finds the tensor there.

    Torch keeps the pinned memory until the copy has ended. Where no more can be pinned, this waits.
    """
    if tensor.device.type == device:
        return tensor
    if tensor.device.type != "cpu":
        return tensor.to(device)
    try:
        pinned = tensor.pin_memory()
    except RuntimeError:
        return tensor.to(device)
    return pinned.to(device, non_blocking=True)


def finite(tensor: Tensor) -> bool:
    """Whether every entry is. Their sum tells in a twentieth of the time, unless it overflows."""
    wide = torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def gram(rows: Tensor, panels: int = 4) -> Tensor:
    """Gram matrix (n, n) of the rows of an (n, d) tensor; each pair of panels is multiplied once."""
    return gram_of([rows], panels)


def gram_of(parts: Iterable[Tensor], panels: int = 4) -> Tensor:
    """`gram` of a matrix whose columns come in parts (n, d'), of which one is held at a time."""
    out: Tensor | None = None
    for rows in parts:
        out = rows.new_zeros((len(rows), len(rows))) if out is None else out
        step = -(-len(rows) // panels) or 1
        for i in range(0, len(rows), step):
            out[i : i + step, i:].addmm_(rows[i : i + step], rows[i:].T)
    assert out is not None
    for i in range(step, len(out), step):
        out[i:, i - step : i] = out[i - step : i, i:].T
    return out


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., k), ascending, and eigenvectors (..., k, k) of symmetric matrices, in float64.

    Whatever their dtype they are solved in float64: of finite matrices in float32, LAPACK's eigh has
    returned NaN. For small ones, which cost little beside the products that they are made of.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    return values, vectors


def whiten(metric: Tensor) -> Tensor:
    """W (k, k') with W' metric W = I, for a symmetric positive semidefinite (k, k) metric.

    Directions below machine precision times k times the largest eigenvalue are dropped.
    """
    values, vectors = eigh(metric)
    keep = values > values[-1].clamp_min(0) * metric.shape[0] * torch.finfo(metric.dtype).eps
    return (vectors[:, keep] / values[keep].sqrt()).to(metric.dtype)


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
        values, rotation = (found.to(small.dtype) for found in eigh((small + small.T) / 2))
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


def balanced(up: Tensor, down: Tensor, scale: float) -> tuple[Tensor, Tensor, float]:
    """The same scale * up @ down (float64) with every column of `up` as large as its row of `down`.

    The factors are multiplied by powers of two alone, which is exact; the scale returned is near 1.
    What no number of float64 holds overflows to Inf, and columns that are not finite stay so.
    """
    share, whole = math.frexp(scale)
    if share < 2 / 3:
        share, whole = 2 * share, whole - 1
    left, right = (_exponents(x) for x in (up.T, down))  # (r,)
    wanted = ((whole + right - left) / 2).round()
    wanted = torch.where(torch.isfinite(left + right), wanted, (-left).clamp(-1023, 1023))
    rest = torch.where(torch.isfinite(left + right), whole - wanted, (-right).clamp(-1023, 1023))
    return _shifted(up.T, wanted).T, _shifted(down, rest), share


def _exponents(rows: Tensor) -> Tensor:
    """log2 of the largest absolute value of each row (n, d): -Inf of zeros."""
    most: Tensor = torch.linalg.vector_norm(rows, math.inf, dim=1)
    return most.log2()


def _shifted(rows: Tensor, exponents: Tensor) -> Tensor:
    """Row i times 2^exponents[i], in halves: 2^e alone may be no number of float64."""
    half = (exponents / 2).floor()
    return rows * half.exp2()[:, None] * (exponents - half).exp2()[:, None]


def shortened(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """up (d_out, r) and down (r, d_in) of the same product with r <= min(d_out, d_in).

    By a QR decomposition of the factor on the smaller side, whose other factor takes the turn along.
    """
    if up.shape[1] <= min(up.shape[0], down.shape[1]):
        return up, down
    if down.shape[1] <= up.shape[0]:
        turn, core = torch.linalg.qr(down)  # (r, d_in), (d_in, d_in)
        return up @ turn, core
    turn, core = torch.linalg.qr(up.T)  # (r, d_out), (d_out, d_out)
    return core.T, turn.T @ down


def leading(up: Tensor, down: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Factors (d_out, size) and (size, d_in) of most of up @ down, without the product.

    Randomised range finder with two power iterations (Halko, Martinsson & Tropp 2011, algorithm 4.4).
    The draw is made on the CPU. A product of rank `size` or less is kept whole.
    """
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(down.shape[1], size, generator=draw, dtype=torch.float64).to(down)
    for _ in range(3):
        basis = torch.linalg.qr(up @ (down @ rows))[0]  # (d_out, size)
        rows = down.T @ (up.T @ basis)  # (d_in, size)
    return basis, rows.T


EXACT_SIZE = 128
"""Up to this size one SVD takes less than the tries that might spare it."""
TRIED_RANKS = (16, 32, 64, 128, 256, 512)
"""Ranks up to which a larger matrix is tried, one after the other, before it is taken as it is."""
NEARLY = 10.0
"""A random basis may miss several times what the best one does; from here on it is worth improving."""


def thin_factors(matrix: Tensor, roundoff: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """up (d_out, r) and down (r, d_in) with up @ down = `matrix` (float64), r its numerical rank.

    The rank is the least whose best approximation is as near, in Frobenius norm, as rounding to a
    dtype of relative error `roundoff` leaves a matrix of that rank; at least one column is returned.
    A matrix of no such rank below min(d_out, d_in), or of one that no number in TRIED_RANKS reaches, is
    returned itself with an identity beside it, and so is one that is not finite.
    """
    d_out, d_in = matrix.shape
    norm = float(matrix.norm())
    least = norm * max(roundoff, torch.finfo(matrix.dtype).eps * max(d_out, d_in))
    found = _top_factors(matrix, least, seed) if math.isfinite(norm) else None
    if found is not None and found[0].shape[1] < min(d_out, d_in):
        return found
    whole = torch.eye(min(d_out, d_in), dtype=matrix.dtype, device=matrix.device)
    return (matrix, whole) if d_in <= d_out else (whole, matrix)


def _top_factors(matrix: Tensor, least: float, seed: int) -> tuple[Tensor, Tensor] | None:
    """Factors that miss at most `least` of the matrix, in Frobenius norm; None where none is found.

    Larger matrices through a randomised range finder (Halko, Martinsson & Tropp 2011, algorithm
    4.2), whose error is measured.
    """
    if min(matrix.shape) <= EXACT_SIZE:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return _truncated(u, s, vt, least)
    draw = torch.Generator().manual_seed(seed)
    for size in (r for r in TRIED_RANKS if r < min(matrix.shape)):
        rows = torch.randn(matrix.shape[1], size, generator=draw, dtype=torch.float64).to(matrix)
        for _ in range(2):
            basis = torch.linalg.qr(matrix @ rows)[0]  # (d_out, size)
            rows = (basis.T @ matrix).T  # (d_in, size)
            missed = float((matrix - basis @ rows.T).norm())
            if missed <= least:
                u, s, vt = torch.linalg.svd(rows.T, full_matrices=False)
                return _truncated(basis @ u, s, vt, math.sqrt(least**2 - missed**2))
            if missed > NEARLY * least:
                break
    return None


def _truncated(u: Tensor, s: Tensor, vt: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Balanced factors of as few singular triplets as miss at most `least`, but of one at least."""
    tail = s.flip(0).square().cumsum(0).sqrt().flip(0)  # what leaving out s[r:] misses
    rank = max(int((tail > least).sum()), 1)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


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
