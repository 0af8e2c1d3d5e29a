"""A fixed-size summary of one client's update of one module, from which it is compared with others.

Gaussian projections of both sides keep inner products: E[S'S] = I (Johnson & Lindenstrauss 1984).
What depends on one client alone is kept exact. A sketch needs its own client and a seed, nobody else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from clair_cli.update import LowRankUpdate

ROOM = 2**24
"""Entries of the products that all clients of a module are compared by: K p q. For K clients the tables
then cost K^2 p q = K ROOM multiplications, linear in the clients."""
LEAST, MOST = 64, 256
"""Coordinates per side, whatever ROOM says."""


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Delta = B A of rank r, shape (d_out, d_in), as `left` (p, r) = S B and `right` (q, r) = T A'.

    `up` (r, r) = B'B and `down` (r, r) = A A' are exact. A side of no more than `size` dimensions is
    kept whole, with the identity for S or T.
    """

    shape: tuple[int, int]
    left: Tensor
    right: Tensor
    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """Columns of B, r."""
        return self.left.shape[1]

    def zeroed(self) -> Sketch:
        """That of the update zero."""
        sides = (self.left, self.right, self.up, self.down)
        return Sketch(self.shape, *(torch.zeros_like(side) for side in sides))


def sketch_size(clients: int) -> int:
    """Coordinates per side for so many clients, a multiple of 8."""
    return min(max(math.isqrt(ROOM // max(clients, 1)) // 8 * 8, LEAST), MOST)


def sketched(update: LowRankUpdate, size: int, seed: int) -> Sketch:
    """The sketch of an update; sketches of one `size` and `seed` can be compared."""
    up, down = update.up, update.down.T * update.scale  # (d_out, r), (d_in, r)
    sides = [_projected(side, size, seed + which) for which, side in enumerate((up, down))]
    return Sketch((up.shape[0], down.shape[0]), sides[0], sides[1], up.T @ up, down.T @ down)


def _projected(side: Tensor, size: int, seed: int) -> Tensor:
    """(d, r) to (size, r), or itself where d <= size."""
    if side.shape[0] <= size:
        return side
    projected: Tensor = _draw(side.shape[0], size, seed, side.dtype, side.device) @ side
    return projected


@lru_cache(maxsize=16)
def _draw(d: int, size: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """S (size, d) of independent normal entries of variance 1 / size, drawn on the CPU."""
    draw = torch.Generator().manual_seed(2 * seed + d)
    entries: Tensor = torch.randn(size, d, generator=draw) / size**0.5
    return entries.to(device, dtype)
