"""One matrix-valued update in factors. It holds tensors and needs no torch to be imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRankUpdate:
    """Delta W (d_out, d_in) = scale * up @ down, with up (d_out, r) and down (r, d_in)."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    def __repr__(self) -> str:
        shape = f"{self.up.shape[0]}x{self.down.shape[1]}"
        return f"LowRankUpdate({shape}, rank {self.rank}, scale={self.scale:.4g})"

    @property
    def rank(self) -> int:
        """Number of columns of `up`; the rank of the product is at most this."""
        return self.up.shape[1]

    def dense(self) -> Tensor:
        """The product as a (d_out, d_in) tensor: for tests and small matrices."""
        return self.scale * (self.up @ self.down)

    def zeroed(self) -> LowRankUpdate:
        """The update zero, in one column, of the same shape, dtype and device."""
        up, down = self.up, self.down
        return LowRankUpdate(up.new_zeros(len(up), 1), down.new_zeros(1, down.shape[1]))


def combined(updates: Sequence[LowRankUpdate], factors: Sequence[float]) -> LowRankUpdate:
    """sum_r f_r Delta_r in stacked factors: the ranks add up."""
    import torch

    up = torch.cat([u.up for u in updates], dim=1)
    down = torch.cat([u.down * (u.scale * f) for u, f in zip(updates, factors, strict=True)], dim=0)
    return LowRankUpdate(up, down)


def inner(one: LowRankUpdate, other: LowRankUpdate) -> float:
    """<Delta, Delta'> from the factors, without the products."""
    cores = (one.up.T @ other.up) * (one.down @ other.down.T)
    return float(cores.sum()) * one.scale * other.scale


def faint(update: LowRankUpdate) -> bool:
    """Whether inner products with it are lost among the least numbers of its dtype: as good as zero.

    In float32 so are norms below 1e-16. Their squares would be 0 or rounded to a few bits, their
    products with larger updates not, and then cosines come out as 1. The factors are balanced.
    """
    import torch

    size = float(update.up.norm()) * float(update.down.norm()) * update.scale
    return size**2 < 2**20 * torch.finfo(update.up.dtype).tiny


def energy(update: LowRankUpdate) -> float:
    """||Delta W||_F^2 from the factors, without the product."""
    down = update.down * update.scale
    return float(((update.up.T @ update.up) * (down @ down.T)).sum().clamp_min(0))
