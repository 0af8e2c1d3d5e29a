"""A fixed-size summary of one client's update of one module, from which it is compared with others.

Both sides are projected by count sketches (Charikar, Chen & Farach-Colton 2002): every row goes into one
of p buckets, with a random sign. E[S'S] = I keeps inner products, at an error of variance
(|x|^2 |y|^2 + <x, y>^2) / p or less and one addition per number (Clarkson & Woodruff 2013). What depends
on one client alone is kept exact. A sketch needs its own client and a seed, nobody else.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from clair_cli.update import LowRankUpdate

ROOM = 2**22
"""Entries of the products that all clients of a module are compared by: K p q. For K clients the tables
then cost K^2 p q = K ROOM multiplications, linear in the clients."""
SIZES = (64, 96, 128, 192, 256)
"""Coordinates per side, whatever ROOM says. Few, so that one client more seldom makes other sketches of
all: what a cache keeps of the others is then of no use."""
STEP = 8
"""ROOM counts in these: the size is the least of SIZES that is not below a multiple that fits."""


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Delta = B A of rank r, shape (d_out, d_in), as `left` (p, r) = S B and `right` (q, r) = T A'.

    `down` (r, r) = A A' and `energy` () = ||Delta||_F^2 are exact. A side of no more than `size`
    dimensions is kept whole, with the identity for S or T.
    """

    shape: tuple[int, int]
    left: Tensor
    right: Tensor
    down: Tensor
    energy: Tensor

    @property
    def rank(self) -> int:
        """Columns of B, r."""
        return self.left.shape[1]

    def zeroed(self) -> Sketch:
        """That of the update zero."""
        all_of_it = (self.left, self.right, self.down, self.energy)
        return Sketch(self.shape, *(torch.zeros_like(x) for x in all_of_it))


def sketch_size(clients: int, shape: tuple[int, int]) -> int:
    """Coordinates per side for so many clients, one of SIZES; those of the whole space where all their
    products (d_out, d_in) find room. It changes at 105, 227, 388 and 810 clients."""
    if clients * shape[0] * shape[1] <= ROOM:
        return max(shape)
    fits = math.isqrt(ROOM // max(clients, 1)) // STEP * STEP
    return next((size for size in SIZES if size >= fits), SIZES[-1])


def sketched(update: LowRankUpdate, size: int, seed: int) -> Sketch:
    """The sketch of an update; sketches of one `size` and `seed` can be compared."""
    up, down = update.up, update.down.T * update.scale  # (d_out, r), (d_in, r)
    sides = [projected(side, size, seed + which) for which, side in enumerate((up, down))]
    inner = down.T @ down
    energy = ((up.T @ up) * inner).sum()
    return Sketch((up.shape[0], down.shape[0]), sides[0], sides[1], inner, energy)


def projected(side: Tensor, size: int, seed: int) -> Tensor:
    """(d, r) to (size, r), or itself where d <= size."""
    if side.shape[0] <= size:
        return side
    found: Tensor = _buckets(side.shape[0], size, seed, side.dtype, side.device) @ side
    return found


@lru_cache(maxsize=16)
def _buckets(d: int, size: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """S (size, d), sparse, with one entry of 1 or -1 in every column; drawn on the CPU.

    All buckets are of one size, so that S S' is a multiple of I: of unequal ones, the larger would be
    something that all clients have in common.
    """
    draw = torch.Generator().manual_seed(2 * seed + d)
    bucket = torch.randperm(d, generator=draw) % size
    sign = 2 * torch.randint(2, (d,), generator=draw) - 1
    with warnings.catch_warnings():  # torch calls compressed rows beta
        warnings.simplefilter("ignore", UserWarning)
        entries = torch.sparse_coo_tensor(torch.stack([bucket, torch.arange(d)]), sign, (size, d))
        found: Tensor = entries.to(dtype).coalesce().to_sparse_csr().to(device)
    return found
