"""The summary of an update that a sketch file keeps, and what of it is compared.

Delta = B A is written as L R' with orthonormal columns of R, which makes the summary one of the
product and not of its factors. Of L / ||Delta|| and R the count sketches are kept, in half
precision: entries lie near 1 / sqrt(p), whose rounding is far below the error of a sketch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clair_cli.cohort import Sketching, UpdateSpec
from clair_cli.detection.sketches import Sketch, projected
from clair_cli.linalg import finite
from clair_cli.update import LowRankUpdate, faint


def summary(update: LowRankUpdate, kind: Sketching) -> LowRankUpdate:
    """The summary of an update, rounded as its file has it: up (p, r), down (r, q), its norm as scale.

    A rank beyond the size, of which nothing is left in the sketch, is reduced to it. Numbers that are
    not finite make all of the summary so. Computed on the CPU in float64, whatever the device.
    """
    up, down = update.up.cpu().double(), update.down.cpu().double() * update.scale
    left, right = _turned(up, down)
    norm = float(left.norm())
    if norm > 0:
        left = left / norm
    left, right = (
        projected(side, kind.size, kind.seed + which) for which, side in enumerate((left, right))
    )
    if right.shape[1] > kind.size:
        left, right = left @ right.T, torch.eye(right.shape[0], dtype=right.dtype)
    return LowRankUpdate(left.half().float(), right.half().float().T, norm)


def _turned(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """L (d_out, r) and R (d_in, r) with L R' = up @ down, the columns of R orthonormal or zero."""
    if not (finite(up) and finite(down)):
        return torch.full_like(up, torch.nan), torch.full_like(down.T, torch.nan)
    basis, lower = torch.linalg.qr(down.T)
    turn, sizes, _ = torch.linalg.svd(lower)
    real = sizes > sizes[:1] * len(sizes) * torch.finfo(sizes.dtype).eps
    return up @ (lower.T @ turn) * real, basis @ turn * real


def as_sketch(found: LowRankUpdate, spec: UpdateSpec, device: str = "cpu") -> Sketch:
    """What is compared of a summary; rows of zero columns count as none, and faint updates as zero."""
    if faint(found):
        found = LowRankUpdate(found.up, torch.zeros_like(found.down), 0.0)
    right = found.down.T
    return Sketch(
        (spec.d_out, spec.d_in),
        (found.up * found.scale).to(device),
        right.to(device),
        (right != 0).any(dim=0).to(right).diag().to(device),
        torch.tensor(found.scale, dtype=torch.float64, device=device).square(),
    )
