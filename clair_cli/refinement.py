"""Refined updates: what is a client's own inside the shared subspace, the average outside it.

Delta~_k = Delta_k - t (I - U U') (Delta_k - M),  M the mean of the benign clients and t the strength:
t = 0 is the local adapter; t = 1 keeps U U' Delta_k and replaces the rest by the average, whose
estimation error is smaller by the number of benign clients. Averages are of products, never of factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli import agreement
from clair_cli.linalg import standing_out
from clair_cli.stack import LowRankUpdate

MAX_KEPT = 3
"""Directions per module that "auto" keeps at most: more left nothing to average (docs/method.md)."""
SPECTRUM = 8
OVERSAMPLING = 8


@dataclass(frozen=True, slots=True, eq=False)
class RefinedModule:
    """One module of the benign clients after refinement.

    `updates` are the refined updates at the ranks asked for, `common` the mean of the benign.
    `subspace_rank` is s, `spectrum` the leading shares (<= SPECTRUM) of the deviation energy per output
    direction. Per client: `squared` ||Delta_k||^2, `moved` ||Delta~_k - Delta_k||^2 before truncation,
    `lost` ||truncated - Delta~_k||^2. `deviation` and `averaged` are the benign energy around the mean
    and the part of it outside the subspace.
    """

    updates: tuple[LowRankUpdate, ...]
    common: LowRankUpdate
    subspace_rank: int
    spectrum: NDArray[np.float64]
    squared: NDArray[np.float64]
    moved: NDArray[np.float64]
    lost: NDArray[np.float64]
    deviation: float
    averaged: float


def auto_strength(inner: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """The strength in [0, 1] that the members' agreement justifies: the square of their common share.

    `inner` (modules, K, K) are inner products. The common share is 0.35 to 0.6 where clients share an
    initial A and 0.15 to 0.25 where they do not, and there averages harm, because equal functions
    have unlike updates. Adapters alone cannot tell noise from honest difference, hence the square
    (docs/method.md, Refinement).
    """
    return agreement.common_share(inner[:, members][:, :, members]) ** 2


def refine_module(
    updates: Sequence[LowRankUpdate],
    weights: Sequence[float],
    ranks: Sequence[int],
    subspace_rank: int | Literal["auto"] = "auto",
    strength: float = 1.0,
    common_rank: int | None = None,
) -> RefinedModule:
    """Refine one module of the benign clients; all work is on thin factors and their cores.

    `weights` sum to one and define the mean; `ranks` are the ranks to write, per client;
    `common_rank` is that of the mean (default: the largest of `ranks`).
    """
    stack = _Coordinates(updates)
    mean = sum(w * c for w, c in zip(weights, stack.cores(), strict=True))
    assert isinstance(mean, Tensor)
    shares, directions, deviation = _deviation_directions(stack, mean, weights)
    keep = _kept(shares, subspace_rank, stack)
    basis = directions[:, :keep]  # (p, s)
    refined, squared, moved, lost, outside = [], [], [], [], 0.0
    for core, weight, rank in zip(stack.cores(), weights, ranks, strict=True):
        off = core - mean
        off = off - basis @ (basis.T @ off)
        outside += weight * float(off.square().sum())
        target = core - strength * off
        update, error = stack.truncate(target, rank, guide=core if strength < 1 else target)
        refined.append(update)
        squared.append(float(core.square().sum()))
        moved.append(strength**2 * float(off.square().sum()))
        lost.append(error)
    common, _ = stack.truncate(mean, common_rank or max(ranks), guide=mean)
    return RefinedModule(
        updates=tuple(refined),
        common=common,
        subspace_rank=keep,
        spectrum=shares[:SPECTRUM],
        squared=np.array(squared),
        moved=np.array(moved),
        lost=np.array(lost),
        deviation=deviation,
        averaged=outside,
    )


class _Coordinates:
    """Orthonormal bases of all columns and all rows, and every client's core (p, q) in them."""

    def __init__(self, updates: Sequence[LowRankUpdate]) -> None:
        up = torch.cat([u.up for u in updates], dim=1)  # (d_out, n)
        down = torch.cat([u.down * u.scale for u in updates], dim=0)  # (n, d_in)
        self.left, left = torch.linalg.qr(up)  # (d_out, p), (p, n)
        self.right, right = torch.linalg.qr(down.T)  # (d_in, q), (q, n)
        sizes = [u.rank for u in updates]
        self.lefts, self.rights = left.split(sizes, dim=1), right.split(sizes, dim=1)

    def cores(self) -> list[Tensor]:
        """Delta_k in the common coordinates, (p, q) each."""
        return [b @ a.T for b, a in zip(self.lefts, self.rights, strict=True)]

    def truncate(self, core: Tensor, rank: int, guide: Tensor) -> tuple[LowRankUpdate, float]:
        """Best approximation of `core` (p, q) by `rank`, as factors, and the squared error.

        Small cores are decomposed exactly; large ones by subspace iteration, whose error is as
        reported, not as hoped for.
        """
        u, s, v = _top_singular(core, rank, guide)
        error = max(float(core.square().sum()) - float(s.square().sum()), 0.0)
        root = s.sqrt()
        return LowRankUpdate((self.left @ u) * root, root[:, None] * (self.right @ v).T), error


def _top_singular(core: Tensor, rank: int, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets u (p, k), s (k,), v (q, k), k = min(rank, p, q)."""
    rank = min(rank, *core.shape)
    width = rank + OVERSAMPLING
    if min(core.shape) <= 4 * width:
        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank].T
    rows = torch.linspace(0, guide.shape[0] - 1, width, dtype=torch.long, device=core.device)
    basis = torch.linalg.qr((guide[rows] @ core.T).T)[0]  # (p, width)
    for _ in range(4):
        basis = torch.linalg.qr(core @ torch.linalg.qr(core.T @ basis)[0])[0]
    u, s, vt = torch.linalg.svd(basis.T @ core, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank].T


def _deviation_directions(
    stack: _Coordinates, mean: Tensor, weights: Sequence[float]
) -> tuple[NDArray[np.float64], Tensor, float]:
    """Left directions of the benign deviations: shares of energy, directions (p, p), total energy."""
    cov = mean.new_zeros((mean.shape[0], mean.shape[0]))
    for core, weight in zip(stack.cores(), weights, strict=True):
        cov += weight * (core - mean) @ (core - mean).T
    values, vectors = torch.linalg.eigh(cov)
    energy = values.flip(0).clamp_min(0).cpu().double().numpy()
    total = float(energy.sum())
    return energy / total if total > 0 else energy, vectors.flip(1), total


def _kept(
    shares: NDArray[np.float64], subspace_rank: int | Literal["auto"], stack: _Coordinates
) -> int:
    """s: the rank asked for, or the leading directions that stand out of the bulk, at most MAX_KEPT."""
    if subspace_rank != "auto":
        return min(subspace_rank, len(shares))
    rows, columns = stack.left.shape[0], sum(b.shape[1] for b in stack.lefts)
    return standing_out(shares[:MAX_KEPT].tolist(), float(shares.sum()), rows, columns)
