"""One module of all clients: the update in factors, and its stack in inner products.

The dense stack [Delta_1 .. Delta_K] never exists. Delta_k = B_k A_k; with all columns of the B_k side
by side (d_out x n) and all rows of the A_k on top of each other (n x d_in), every inner product, norm
and left singular vector of the stack follows from B'B and A A' (n x n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.linalg import eigh, gram, range_basis
from clair_cli.update import LowRankUpdate


@dataclass(frozen=True, slots=True, eq=False)
class ModuleStack:
    """One module of K clients in common coordinates, each client padded to r columns, n = K r.

    `left` (p, n) and `right` (q, n) are coordinates whose Gram matrices are B'B and A A', or those
    Gram matrices themselves (n, n) where `sketched` is False. `blocks` (K, r, r) are the diagonal
    blocks of A A'. `energies` (K,) are the exact ||Delta_k||_F^2 in float64; `left_out` is the share
    of their sum that the coordinates miss. `inner` (K, K) holds <Delta_i, Delta_j>, `overlap` (K, K)
    holds ||Delta_i' Delta_j||_F^2, both float64 on the CPU, and so is `rows` (K, K), the mean squared
    cosine of the principal angles between the row spaces of A_i and A_j: 1 where they are one space.
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
    left_out: float
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
    module: str, updates: Sequence[LowRankUpdate], max_columns: int = 512, seed: int = 0
) -> ModuleStack:
    """Stack one module of K >= 1 clients; all updates share d_out, d_in, dtype and device.

    Beyond `max_columns` columns the coordinates are those of a whole space where d_out or d_in is
    at most that; else a randomised range finder keeps them that small, and `left_out` says what they
    miss. Non-finite input shows as a non-finite `energies` entry of its client and leaves the other
    clients' numbers alone.
    """
    up, down, width = _columns(updates)
    shape = (up.shape[1], down.shape[1])
    count, columns = len(updates), up.shape[0]
    sketched, exact = columns > max_columns, min(shape) <= max_columns
    dense = (
        sketched and columns * width > shape[0] * shape[1]
    )  # products take less room than tables
    if dense:
        inner, overlap, rows = _dense_tables(up, down, count)
    if sketched:
        energies = _energies(up, down, width)
        up, down = _whole(up, down) if exact else _sketch(up, down, width, max_columns, seed)
        up, down, width = _narrowed(up, down, count, width)
    if dense:
        blocks = _blocks(down, count)
    else:
        left, right = gram(up), gram(down)
        inner, overlap, blocks = _tables(left, right, count, width)
        rows = _row_overlap(right, blocks)
    if not sketched:
        energies = inner.diagonal().clone()
    inner.diagonal().copy_(energies)
    return ModuleStack(
        module=module,
        shape=shape,
        left=up.T.contiguous() if sketched else left,
        right=down.T.contiguous() if sketched else right,
        blocks=blocks,
        energies=energies,
        inner=inner,
        overlap=overlap,
        rows=rows,
        left_out=0.0 if exact or not sketched else _left_out(energies, _energies(up, down, width)),
        sketched=sketched,
    )


def tables(stacks: Sequence[ModuleStack]) -> tuple[NDArray[np.float64], ...]:
    """inner and overlap (modules, K, K), d_out and d_in (modules,) of all stacks, in numpy."""
    inner = np.stack([s.inner.numpy() for s in stacks])
    overlap = np.stack([s.overlap.numpy() for s in stacks])
    shapes = np.array([s.shape for s in stacks], dtype=float)
    return inner, overlap, shapes[:, 0], shapes[:, 1]


def _left_out(energies: Tensor, kept: Tensor) -> float:
    total = float(energies.sum())
    return max(0.0, 1 - float(kept.sum()) / total) if total > 0 else 0.0


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


def _blocks(side: Tensor, count: int) -> Tensor:
    """Gram matrices (K, r, r) of each client's rows (n, d)."""
    own = side.reshape(count, -1, side.shape[1])
    return torch.bmm(own, own.transpose(1, 2))


def _dense_tables(up: Tensor, down: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """inner, overlap and rows as in ModuleStack from the products Delta_k (K, d_out, d_in)."""
    a = down.reshape(count, -1, down.shape[1])
    products = torch.bmm(up.reshape(count, -1, up.shape[1]).transpose(1, 2), a)
    whiten, ranks = _whitening(_blocks(down, count))
    bases = torch.bmm(whiten.transpose(1, 2), torch.where(_finite(a), a, 0))  # (K, r, d_in)
    shared = torch.minimum(ranks[:, None], ranks).clamp_min(1)
    tables = gram(products.flatten(1)), _squares(products), _squares(bases.transpose(1, 2)) / shared
    inner, overlap, rows = (t.cpu().double() for t in tables)
    return inner, overlap, rows


def _squares(x: Tensor) -> Tensor:
    """||X_i' X_j||_F^2 (K, K) for X (K, p, q), which is <X_i X_i', X_j X_j'>."""
    if x.shape[1] <= 4 * x.shape[2]:
        return gram(torch.bmm(x, x.transpose(1, 2)).flatten(1))
    return torch.stack([(one.T @ x).square().sum(dim=(1, 2)) for one in x])


def _finite(blocks: Tensor) -> Tensor:
    """Which of a batch of matrices (K, r, r) are finite throughout, (K, 1, 1)."""
    return torch.isfinite(blocks).all(dim=(1, 2))[:, None, None]


def _energies(up: Tensor, down: Tensor, width: int) -> Tensor:
    """||Delta_k||_F^2 (K,) in float64 on the CPU from the r x r cores of each client."""
    b = up.reshape(-1, width, up.shape[1])
    a = down.reshape(-1, width, down.shape[1])
    cores = torch.bmm(b, b.transpose(1, 2)) * torch.bmm(a, a.transpose(1, 2))
    return cores.sum(dim=(1, 2)).cpu().double()


def _whole(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Exact coordinates (n, p), (n, q): those of the space itself, or where that is larger than the
    n columns can be, in an orthonormal basis of the finite ones."""
    sides = []
    for side in (up, down):
        usable = torch.isfinite(side).all(dim=1, keepdim=True)
        wide = side.shape[1] > side.shape[0]
        sides.append(side @ torch.linalg.qr(torch.where(usable, side, 0).T)[0] if wide else side)
    return sides[0], sides[1]


def _narrowed(up: Tensor, down: Tensor, count: int, width: int) -> tuple[Tensor, Tensor, int]:
    """The same products from factors of no more columns than there are coordinates."""
    b, a = up.reshape(count, width, -1), down.reshape(count, width, -1)
    if width > a.shape[2]:
        turn, a = torch.linalg.qr(a)  # (K, r, q), (K, q, q)
        b = torch.bmm(turn.transpose(1, 2), b)
    if a.shape[1] > b.shape[2]:
        turn, b = torch.linalg.qr(b)
        a = torch.bmm(turn.transpose(1, 2), a)
    return b.flatten(0, 1), a.flatten(0, 1), a.shape[1]


def _sketch(up: Tensor, down: Tensor, width: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Coordinates (n, <= size) of both sides in randomised bases of the stacked updates."""
    b = up.reshape(-1, width, up.shape[1])
    a = down.reshape(-1, width, down.shape[1])
    sides = []
    for own, other in ((b, a), (a, b)):
        if 2 * width > own.shape[2]:  # the product itself, transposed where it is that of B
            weighed = torch.bmm(other.transpose(1, 2), own)
        else:
            weight = torch.bmm(other, other.transpose(1, 2))  # (K, r, r): weighs by the product
            weighed = torch.bmm(_root(weight), own)
        length = torch.linalg.vector_norm(weighed, dim=(1, 2), keepdim=True)  # no client dominates
        usable = torch.isfinite(length) & (length > 0)
        rows = torch.where(usable, weighed / torch.where(usable, length, 1), 0).flatten(0, 1)
        basis = range_basis(rows, size, seed)
        sides.append(own.reshape(up.shape[0], -1) @ basis.T)
    return sides[0], sides[1]


def _root(spd: Tensor) -> Tensor:
    """Symmetric roots of a batch of positive semidefinite matrices; non-finite ones become 0."""
    values, vectors = eigh(torch.where(_finite(spd), spd, 0))
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.transpose(1, 2)
    return root.to(spd.dtype)
