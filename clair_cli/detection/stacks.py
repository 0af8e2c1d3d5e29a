"""One module of all clients: the update in factors, and its stack in inner products.

The dense stack [Delta_1 .. Delta_K] never exists. Delta_k = B_k A_k; with all columns of the B_k side
by side (d_out x n) and all rows of the A_k on top of each other (n x d_in), every inner product, norm
and left singular vector of the stack follows from B'B and A A' (n x n).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.detection.sketches import Sketch, sketch_size, sketched
from clair_cli.linalg import eigh, gram, gram_of
from clair_cli.update import LowRankUpdate

STRIPS = 16
"""Strips of rows in which products are made and compared: little memory is needed at a time, and of
symmetric ones only the half is made, and one part in so many of the other."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleStack:
    """One module of K clients in common coordinates, each client padded to r columns, n = K r.

    `shape` is that of the space in which the updates are compared: (d_out, d_in), or that of their
    sketches. `left` (p, n) and `right` (q, n) are coordinates whose Gram matrices are B'B and A A', or
    those Gram matrices themselves (n, n) where `sketched` is False. `blocks` (K, r, r) are the diagonal
    blocks of A A'. `energies` (K,) are the exact ||Delta_k||_F^2 in float64; `error` is that of the
    coordinates, 0 where they are exact: the root mean square over clients of what they make of the
    energies, relative to these. `inner` (K, K) holds <Delta_i, Delta_j>, `overlap` (K, K) holds
    ||Delta_i' Delta_j||_F^2, both float64 on the CPU, and so is `rows` (K, K), the mean squared cosine
    of the principal angles between the row spaces of A_i and A_j: 1 where they are one space.
    """

    module: str
    shape: tuple[int, int]
    left: Tensor
    right: Tensor
    blocks: Tensor
    energies: Tensor
    inner: Tensor
    overlap: Tensor
    rows: Tensor
    error: float
    sketched: bool

    @property
    def clients(self) -> int:
        """How many clients are stacked, K."""
        return self.blocks.shape[0]

    @property
    def width(self) -> int:
        """The number of columns that each client is padded to, r."""
        return self.blocks.shape[1]

    def left_dot(self, x: Tensor) -> Tensor:
        """B'B x for x (n, k)."""
        return self.left.T @ (self.left @ x) if self.sketched else self.left @ x

    def right_dot(self, x: Tensor) -> Tensor:
        """A A' x for x (n, k)."""
        return self.right.T @ (self.right @ x) if self.sketched else self.right @ x

    def block_dot(self, x: Tensor) -> Tensor:
        """blockdiag(A_k A_k') x for x (n, k)."""
        shaped = x.reshape(self.clients, self.width, -1)
        return torch.bmm(self.blocks, shaped).reshape(x.shape)

    def spread(self, per_client: Tensor) -> Tensor:
        """One number per client (K,) repeated over its columns: (n, 1)."""
        return per_client.to(self.blocks).repeat_interleave(self.width)[:, None]

    def scaled(self, factors: Tensor) -> ModuleStack:
        """The stack of factors_k * Delta_k, for factors (K,)."""
        on = factors.to(self.energies)
        column = self.spread(factors)
        right = self.right * column.T if self.sketched else self.right * column * column.T
        return replace(
            self,
            right=right,
            blocks=self.blocks * factors.to(self.blocks).square()[:, None, None],
            energies=self.energies * on.square(),
            inner=self.inner * on[:, None] * on,
            overlap=self.overlap * on.square()[:, None] * on.square(),
        )

    def select(self, clients: Sequence[int]) -> ModuleStack:
        """The same stack with only the clients at these positions."""
        who = torch.as_tensor(clients, dtype=torch.long)
        columns = (
            (who[:, None] * self.width + torch.arange(self.width)).flatten().to(self.left.device)
        )
        sides = [s[:, columns] if self.sketched else s[columns][:, columns] for s in self._sides()]
        return replace(
            self,
            left=sides[0],
            right=sides[1],
            blocks=self.blocks[who.to(self.blocks.device)],
            energies=self.energies[who],
            inner=self.inner[who][:, who],
            overlap=self.overlap[who][:, who],
            rows=self.rows[who][:, who],
        )

    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right


def stack_module(
    module: str,
    updates: Sequence[LowRankUpdate],
    max_columns: int = 512,
    seed: int = 0,
    size: int | None = None,
) -> ModuleStack:
    """Stack one module of K >= 1 clients; all updates share d_out, d_in, dtype and device.

    Beyond `max_columns` columns the clients are compared by sketches of `size` coordinates (default:
    as their number allows), and `error` says how well. Non-finite input shows as a non-finite
    `energies` entry of its client and leaves the other clients' numbers alone.
    """
    count = len(updates)
    if count * max(u.rank for u in updates) > max_columns:
        shape = len(updates[0].up), updates[0].down.shape[1]
        size = size or sketch_size(count, shape)
        return stack_sketches(module, [sketched(u, size, seed) for u in updates])
    up, down, width = _columns(updates)
    left, right = gram(up), gram(down)
    inner, overlap, blocks = _tables(left, right, count, width)
    return ModuleStack(
        module=module,
        shape=(up.shape[1], down.shape[1]),
        left=left,
        right=right,
        blocks=blocks,
        energies=inner.diagonal().clone(),
        inner=inner,
        overlap=overlap,
        rows=_row_overlap(right, blocks),
        error=0.0,
        sketched=False,
    )


def stack_sketches(module: str, sketches: Sequence[Sketch]) -> ModuleStack:
    """Stack one module of K >= 1 clients from their sketches, all of one size and seed.

    Work and room grow with K (the pairs: K^2, of a size that `sketch_size` brings down with K).
    What is stacked is a cohort in p x q dimensions: the projected updates, each at its exact norm. All
    that is said of chance is said of these dimensions, and a copy is a copy.
    """
    width = max(s.rank for s in sketches)
    left, right = (
        torch.stack([_padded(side, width) for side in sides])  # (K, p, r), (K, q, r)
        for sides in ([s.left for s in sketches], [s.right for s in sketches])
    )
    blocks = torch.stack([_padded(_padded(s.down, width).T, width) for s in sketches])
    energies = torch.stack([s.energy for s in sketches]).cpu().double()
    whiten, ranks = _whitening(blocks)
    bases = torch.bmm(torch.where(torch.isfinite(right), right, 0), whiten)
    rows = _row_cosines(bases, ranks.cpu().double(), right.shape[1] < sketches[0].shape[1])
    right, error = _of_energy(left, right, energies)
    blocks = torch.bmm(right.transpose(1, 2), right)
    inner = gram_of(_strips(left, right)).cpu().double()
    inner.diagonal().copy_(energies)
    return ModuleStack(
        module=module,
        shape=(left.shape[1], right.shape[1]),
        left=left.permute(1, 0, 2).flatten(1).contiguous(),
        right=right.permute(1, 0, 2).flatten(1).contiguous(),
        blocks=blocks,
        energies=energies,
        inner=inner,
        overlap=_pairs(torch.bmm(left, blocks), left),
        rows=rows,
        error=error,
        sketched=True,
    )


def _padded(matrix: Tensor, width: int) -> Tensor:
    """(d, r) with zero columns up to `width`."""
    return torch.nn.functional.pad(matrix, (0, width - matrix.shape[1]))


def _strips(one: Tensor, other: Tensor, halved: bool = False) -> Iterator[Tensor]:
    """The entries of one_k other_k' (K, p, q), some rows of all clients at a time, (K, entries).

    Of symmetric products, `halved`, each strip begins with its diagonal block. What is right of that
    counts twice.
    """
    step = -(-one.shape[1] // STRIPS)
    for i in range(0, one.shape[1], step):
        strip = torch.bmm(one[:, i : i + step], other[:, i * halved :].transpose(1, 2))
        if halved:
            strip[:, :, step:] *= math.sqrt(2)
        yield strip.flatten(1)


def _pairs(one: Tensor, other: Tensor) -> Tensor:
    """<P_i, P_j> (K, K) in float64 on the CPU, of the symmetric P_k = one_k other_k' (K, p, p)."""
    return gram_of(_strips(one, other, halved=True)).cpu().double()


def _row_cosines(bases: Tensor, ranks: Tensor, projected: bool) -> Tensor:
    """`rows` of ModuleStack from row spaces (K, q, r) of these ranks (K,).

    Projection to q dimensions makes strangers alike: <T X T', T Y T'> has the mean
    (1 + 1/q) <X, Y> + tr X tr Y / q, but for the share of tr X tr Y that lies in single rows.
    """
    alike = _pairs(bases, bases)
    if projected:
        alike = (alike - ranks[:, None] * ranks / bases.shape[1]).clamp_min(0)
    own = alike.diagonal().clone()
    unit = torch.where(own > 0, ranks / torch.where(own > 0, own, 1), 0).sqrt()
    alike = alike * unit[:, None] * unit
    return (alike / torch.minimum(ranks[:, None], ranks).clamp_min(1)).clamp(max=1)


def _of_energy(left: Tensor, right: Tensor, energies: Tensor) -> tuple[Tensor, float]:
    """`right` (K, q, r) scaled so that every product left_k right_k' has its energy; the `error`."""
    cores = torch.bmm(left.transpose(1, 2), left) * torch.bmm(right.transpose(1, 2), right)
    found = cores.sum(dim=(1, 2)).cpu().double()
    fine = torch.isfinite(found) & (found > 0) & torch.isfinite(energies)
    share = torch.where(fine, found, 1) / torch.where(fine, energies, 1)
    error = float((share[fine] - 1).square().mean().sqrt()) if bool(fine.any()) else 0.0
    return right * share.rsqrt().to(right)[:, None, None], error


def tables(stacks: Sequence[ModuleStack]) -> tuple[NDArray[np.float64], ...]:
    """inner and overlap (modules, K, K), d_out and d_in (modules,) of all stacks, in numpy."""
    inner = np.stack([s.inner.numpy() for s in stacks])
    overlap = np.stack([s.overlap.numpy() for s in stacks])
    shapes = np.array([s.shape for s in stacks], dtype=float)
    return inner, overlap, shapes[:, 0], shapes[:, 1]


def _columns(updates: Sequence[LowRankUpdate]) -> tuple[Tensor, Tensor, int]:
    """Columns of all up factors (n, d_out), rows of all down factors (n, d_in), padded width r."""
    width = max(u.rank for u in updates)
    first = updates[0]
    up = first.up.new_zeros((len(updates) * width, first.up.shape[0]))
    down = first.down.new_zeros((len(updates) * width, first.down.shape[1]))
    for k, update in enumerate(updates):
        up[k * width : k * width + update.rank] = update.up.T
        down[k * width : k * width + update.rank] = update.down * update.scale
    return up, down, width


def _tables(left: Tensor, right: Tensor, count: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """inner (K, K) and overlap (K, K) in float64 on the CPU, and the diagonal blocks of `right`.

    With W_k = A_k A_k':  <Delta_i, Delta_j> = sum (B_i'B_j o A_i A_j')  and
    ||Delta_i' Delta_j||_F^2 = tr(B_i'B_j W_j B_j'B_i W_i).
    """
    who = torch.arange(count, device=right.device)
    grid = (count, width, count, width)
    blocks = right.reshape(grid).permute(0, 2, 1, 3)[who, who].contiguous()  # (K, r, r)
    inner = (left * right).reshape(grid).sum(dim=(1, 3))
    mixed = torch.bmm(left.reshape(-1, count, width).transpose(0, 1), blocks)  # (K, n, r)
    mixed = mixed.transpose(0, 1).reshape(left.shape)
    overlap = (mixed * mixed.T).reshape(grid).sum(dim=(1, 3))
    return inner.cpu().double(), overlap.cpu().double(), blocks


def _row_overlap(right: Tensor, blocks: Tensor) -> Tensor:
    """`rows` of ModuleStack from A A' (n, n) and its diagonal blocks (K, r, r)."""
    count, width, _ = blocks.shape
    whiten, ranks = _whitening(blocks)
    once = torch.where(torch.isfinite(right), right, 0).reshape(count, width, -1)
    once = torch.bmm(whiten.transpose(1, 2), once).reshape(-1, count, width)
    turned = torch.bmm(once.transpose(0, 1), whiten).reshape(count, count, width, width)
    shared = torch.minimum(ranks[:, None], ranks).clamp_min(1)
    return (turned.square().sum(dim=(2, 3)) / shared).cpu().double()


def _whitening(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """W (K, r, r) whose W_k' A_k has orthonormal or zero rows, and the rank of each A_k, (K,)."""
    values, vectors = eigh(torch.where(_finite(blocks), blocks, 0))
    least = torch.finfo(blocks.dtype).eps * blocks.shape[1] * values[:, -1:].clamp_min(0)
    real = values > least  # (K, r)
    whiten = vectors * torch.where(real, values, 1).rsqrt()[:, None, :] * real[:, None, :]
    return whiten.to(blocks.dtype), real.sum(dim=1)


def _finite(blocks: Tensor) -> Tensor:
    """Which of a batch of matrices (K, r, r) are finite throughout, (K, 1, 1)."""
    return torch.isfinite(blocks).all(dim=(1, 2))[:, None, None]
