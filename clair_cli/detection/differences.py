"""Updates known up to a part that all clients share: brought to where differences alone matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.detection.copies import alike
from clair_cli.linalg import finite
from clair_cli.update import LowRankUpdate


def centred(
    updates: Sequence[LowRankUpdate], seed: int = 0, numbers: DetectionCalibration = DETECTION
) -> list[LowRankUpdate]:
    """Updates (d_out + 1, d_in + 1) of which differences alone matter, whatever part all share.

    A common update near the geometric median is taken off, and one entry beyond all others added,
    of `numbers.lift` times the median energy of what is left: so that clients agree by how little
    they differ, and those that differ as usual get the cosine lift / (1 + lift). Copies count once.
    """
    up = [u.up.double() for u in updates]
    down = [u.down.double() * u.scale for u in updates]
    both = zip(up, down, strict=True)
    fine = [finite(b) and finite(a) for b, a in both]
    if not any(fine):
        return list(updates)
    weights, energy = _geometric_median(up, down, torch.tensor(fine), numbers)
    whole_up = torch.cat([w * b for w, b, ok in zip(weights, up, fine, strict=True) if ok], dim=1)
    whole_down = torch.cat([a for a, ok in zip(down, fine, strict=True) if ok])
    size = 2 * max(u.rank for u in updates)
    draw = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(whole_down.T), size, generator=draw, dtype=torch.float64)
    basis = basis.to(whole_up.device)
    for _ in range(
        numbers.common_sweeps
    ):  # power iteration: the common part need not be exact, only common
        left = torch.linalg.qr(whole_up @ (whole_down @ basis))[0]
        basis = torch.linalg.qr(whole_down.T @ (whole_up.T @ left))[0]
    common = (left.T @ whole_up) @ whole_down
    lift = float((numbers.lift * energy).sqrt())
    return [
        _lifted(torch.cat([b, -left], dim=1), torch.cat([a, common]), lift, u)
        for b, a, u in zip(up, down, updates, strict=True)
    ]


def _geometric_median(
    up: Sequence[Tensor], down: Sequence[Tensor], fine: Tensor, numbers: DetectionCalibration
) -> tuple[Tensor, Tensor]:
    """Weights (K,) of the geometric median of the products, and their median squared distance to it."""
    gram = fine.new_zeros((len(up), len(up)), dtype=torch.float64)
    who = torch.nonzero(fine).flatten().tolist()
    for i in who:
        for j in who:
            gram[i, j] = ((up[i].T @ up[j]) * (down[i] @ down[j].T)).sum().cpu()
    counted = fine.clone()
    counted[fine] = _distinct(gram[fine][:, fine], numbers.duplicate)
    weights = counted.double() / counted.sum()
    least = torch.finfo(gram.dtype).eps * gram.diagonal().max().clamp_min(1e-300)
    for _ in range(numbers.median_steps):  # Weiszfeld
        towards = gram @ weights
        square = (gram.diagonal() - 2 * towards + weights @ towards).clamp_min(least)
        weights = counted / square.sqrt()
        weights = weights / weights.sum()
    return weights, square[counted].median()


def _distinct(gram: Tensor, share: float) -> Tensor:
    """Whose update (K,) is nobody's copy, from inner products (K, K)."""
    energy = gram.diagonal()
    distance = (energy[:, None] + energy - 2 * gram).clamp_min(0).sqrt().numpy()
    names = [str(k) for k in range(len(gram))]
    return torch.from_numpy(alike(distance, names, share, 0.0).first)


def _lifted(up: Tensor, down: Tensor, lift: float, like: LowRankUpdate) -> LowRankUpdate:
    """up @ down and `lift` in a row and a column of its own; cancelled before it is rounded."""
    if not (finite(up) and finite(down)):
        left, right = up, down
    else:
        basis, turn = torch.linalg.qr(down.T)
        left, right = up @ turn.T, basis.T
    ends = up.new_tensor([lift, 1.0])
    sides = []
    for side, end in ((left, ends[0]), (right, ends[1])):
        wide = side.new_zeros((side.shape[0] + 1, side.shape[1] + 1))
        wide[:-1, :-1], wide[-1, -1] = side, end
        sides.append(wide.to(like.up))
    return LowRankUpdate(sides[0], sides[1])
