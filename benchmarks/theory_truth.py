"""Planted truth for theory.py: cohorts whose M, U, noise and contaminated clients are known, in float64.

Delta_k = M + U C_k + H_k + E_k + S_k in every module. ||M|| = 1 and ||U C_k|| = 0.6; E_k is noise, H_k
is the client's own, and the last clients alone have an S_k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.update import LowRankUpdate

Mask = NDArray[np.bool_]
Kind = Literal["random", "colluding", "shift"]
"""Of S_k: a subspace of its own; one foreign subspace for all; one and the same S for all."""
KINDS: tuple[Kind, ...] = ("random", "colluding", "shift")
VARIATION, COMMON_RANK, FOREIGN_RANK = 0.6, 2, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to plant; norms are per module and relative to ||M||.

    ||S_k|| is drawn between the two limits `size`, evenly in its logarithm; `noise` and `own` are
    ||E_k|| and ||H_k||, both of full rank; `coverage` is the share of the benign clients that vary in
    each direction of U.
    """

    clients: int
    contaminated: int = 0
    kind: Kind = "random"
    rank: int = 2
    size: tuple[float, float] = (1.0, 3.0)
    noise: float = 0.0
    own: float = 0.0
    coverage: float = 1.0
    modules: int = 2
    shape: tuple[int, int] = (40, 32)

    @property
    def members(self) -> Mask:
        """Who has no S, (K,)."""
        return np.arange(self.clients) < self.clients - self.contaminated

    @property
    def usual(self) -> float:
        """Norm of a benign update."""
        return float((1 + VARIATION**2 + self.noise**2 + self.own**2) ** 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """One module: the updates, and what they were made from.

    `basis` is U (d_out, s), `common` M (d_out, d_in), `wanted` (K, d_out, d_in) all but the noise.
    """

    updates: list[LowRankUpdate]
    basis: Tensor
    common: Tensor
    wanted: Tensor


def plant(plan: Plan, seed: int) -> list[Planted]:
    """`plan.modules` modules; every draw comes from `seed`."""
    draw = torch.Generator().manual_seed(seed)
    share = torch.rand(plan.clients, generator=draw, dtype=torch.float64)
    if plan.kind == "shift":
        share = share[0].expand(plan.clients)
    sizes = plan.size[0] ** (1 - share) * plan.size[1] ** share
    return [_module(plan, sizes, draw) for _ in range(plan.modules)]


def _module(plan: Plan, sizes: Tensor, draw: torch.Generator) -> Planted:
    rows, columns = plan.shape
    basis, common = _orthonormal(rows, plan.rank, draw), _orthonormal(rows, COMMON_RANK, draw)
    towards = _unit(COMMON_RANK, columns, draw)
    up, down = _orthonormal(rows, FOREIGN_RANK, draw), _unit(FOREIGN_RANK, columns, draw)
    updates, wanted = [], []
    for k, member in enumerate(plan.members):
        own = VARIATION * _unit(plan.rank, columns, draw) * _carried(plan, k)
        ups, downs = [common, basis], [towards, own]
        if not member:
            up = _orthonormal(rows, FOREIGN_RANK, draw) if plan.kind == "random" else up
            down = down if plan.kind == "shift" else _unit(FOREIGN_RANK, columns, draw)
            ups, downs = [*ups, up], [*downs, sizes[k] * down]
        update = LowRankUpdate(torch.cat(ups, dim=1), torch.cat(downs))
        wanted.append(update.dense() + plan.own * _unit(rows, columns, draw))
        if plan.noise or plan.own:
            noisy = wanted[-1] + plan.noise * _unit(rows, columns, draw)
            update = LowRankUpdate(noisy, torch.eye(columns, dtype=noisy.dtype))
        updates.append(update)
    return Planted(updates, basis, common @ towards, torch.stack(wanted))


def _carried(plan: Plan, client: int) -> Tensor:
    """1 for the directions that a client varies in, (s, 1): each is missing in as many clients."""
    count = plan.clients - plan.contaminated
    turn = client + torch.arange(plan.rank) * count // plan.rank
    return (turn % count >= round((1 - plan.coverage) * count)).double()[:, None]


def _orthonormal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64))[0]


def _unit(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Gaussian, of norm 1."""
    drawn = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    return drawn / drawn.norm()
