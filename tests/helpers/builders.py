"""Planted truth: cohorts of low-rank updates whose M, U, members and noise are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.detection.stacks import ModuleStack, stack_module
from clair_cli.update import LowRankUpdate


@dataclass
class Planted:
    """K clients, `modules` modules: updates[k][m], the truth they were made from."""

    updates: list[list[LowRankUpdate]]
    bases: list[Tensor]  # U per module (d_out, s)
    commons: list[Tensor]  # M per module (d_out, d_in)
    contaminated: list[int]

    @property
    def members(self) -> list[bool]:
        return [k not in self.contaminated for k in range(len(self.updates))]

    def stacks(
        self,
        max_columns: int = 512,
        dtype: torch.dtype = torch.float64,
        size: int | None = None,
    ) -> list[ModuleStack]:
        def cast(u: LowRankUpdate) -> LowRankUpdate:
            return LowRankUpdate(u.up.to(dtype), u.down.to(dtype), u.scale)

        return [
            stack_module(
                f"m{i}", [cast(client[i]) for client in self.updates], max_columns, size=size
            )
            for i in range(len(self.bases))
        ]


def orthonormal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64))[0]


def regauge(update: LowRankUpdate, draw: torch.Generator) -> LowRankUpdate:
    """The same product from other factors: (B G, G^-1 A)."""
    r = update.rank
    g = torch.randn(r, r, generator=draw, dtype=torch.float64) + 3 * torch.eye(
        r, dtype=torch.float64
    )
    g = g.to(update.up)
    return LowRankUpdate(update.up @ g, torch.linalg.solve(g, update.down), update.scale)


def factor(dense: Tensor, rank: int) -> LowRankUpdate:
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    root = s[:rank].sqrt()
    return LowRankUpdate(u[:, :rank] * root, root[:, None] * v[:rank])


def planted(
    clients: int = 20,
    contaminated: int = 0,
    kind: str = "random",
    modules: int = 2,
    shape: tuple[int, int] = (40, 30),
    shared_rank: int = 2,
    common_rank: int = 2,
    noise: float = 0.0,
    variation: float = 0.6,
    seed: int = 0,
) -> Planted:
    """Benign clients are M + U C_k + noise with ||M|| = 1; `contaminated` last ones are replaced.

    kind: "random" draws each its own update, "colluding" draws all from one common subspace.
    """
    draw = torch.Generator().manual_seed(seed)
    rank = shared_rank + common_rank
    truth = Planted(
        [[] for _ in range(clients)], [], [], list(range(clients - contaminated, clients))
    )
    for _ in range(modules):
        basis = orthonormal(shape[0], shared_rank, draw)
        common = (
            orthonormal(shape[0], common_rank, draw) @ orthonormal(shape[1], common_rank, draw).T
        )
        common = common / common.norm()
        foreign = orthonormal(shape[0], rank, draw)
        for k in range(clients):
            c = torch.randn(shared_rank, shape[1], generator=draw, dtype=torch.float64)
            dense = common + basis @ (variation * c / c.norm())
            if k in truth.contaminated:
                own = orthonormal(shape[0], rank, draw) if kind == "random" else foreign
                c = torch.randn(rank, shape[1], generator=draw, dtype=torch.float64)
                dense = own @ (1.2 * c / c.norm())
            if noise:
                e = torch.randn(shape, generator=draw, dtype=torch.float64)
                dense = dense + noise * e / e.norm()
            full = min(shape) if noise else rank
            truth.updates[k].append(regauge(factor(dense, full), draw))
        truth.bases.append(basis)
        truth.commons.append(common)
    return truth


def basis_of(truth: Planted, module: int, vectors: Tensor) -> Tensor:
    """U (d_out, s) from its coefficients on the padded, stacked columns (levelling leaves B alone), or
    itself, where so many columns are stacked that U is known in the space itself."""
    ups = [client[module].up for client in truth.updates]
    width = max(u.shape[1] for u in ups)
    padded = [torch.nn.functional.pad(u, (0, width - u.shape[1])) for u in ups]
    columns = torch.cat(padded, dim=1).to(vectors)
    return columns @ vectors if columns.shape[1] == len(vectors) else vectors
