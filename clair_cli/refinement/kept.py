"""What F keeps of a client's deviation, in the client's coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.refinement.coordinates import Frame


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """F (Delta_k - M) in coordinates, (p, q): `all_of` the deviation and `up` `down`' beside it."""

    all_of: float
    up: Tensor
    down: Tensor

    def times(self, share: float) -> Kept:
        """That share of it."""
        return Kept(share * self.all_of, share * self.up, self.down)

    def core(self, off: Tensor) -> Tensor:
        """Of the deviation `off`, (p, q)."""
        return self.all_of * off + self.up @ self.down.T


def kept_alike(frame: Frame, share: float) -> Kept:
    """The same share in all directions."""
    left, right = frame.left.coords, frame.right.coords
    return Kept(share, left[:, :0], right[:, :0])


def along(frame: Frame, side: str, basis: Tensor, more: Tensor, all_of: float) -> Kept:
    """`all_of` the deviation, and so much `more` (k,) of it in each direction of `basis` (p, k)."""
    off = frame.core - frame.mean
    turned = off.T if side == "right" else off
    wide = torch.nn.functional.pad(basis, (0, 0, 0, len(turned) - len(basis)))
    seen = turned.T @ wide
    if side == "right":
        return Kept(all_of, seen, wide * more)
    return Kept(all_of, wide * more, seen)
