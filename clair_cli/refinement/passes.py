"""Passes over all clients' factors: what their mean, and their deviations, make of a few vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.linalg import eigh

DEVIATIONS = 12
"""Directions of the clients' deviations that are looked for beside those of the mean."""
SWEEPS = 2
"""Of the search for these."""


class Draw:
    """Normal random numbers, the same on every device, in the dtype of `like`."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.random = like, torch.Generator().manual_seed(len(like))

    def __call__(self, rows: int, columns: int) -> Tensor:
        """(rows, columns)."""
        values = torch.randn(rows, max(columns, 0), generator=self.random, dtype=torch.float64)
        return values.to(self.like)


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """B (d_out, r), A (r, d_in), the scale between, and what the client counts in the mean."""

    up: Tensor
    down: Tensor
    scale: float
    weight: float


def orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def gathered(giving: Sequence[Client], size: int) -> Tensor:
    """Sums of the clients' A', (d_in, size), dealt out column by column: they span what most have in
    common."""
    total = giving[0].up.new_zeros(size, giving[0].down.shape[1])
    at = 0
    for client in giving:
        for rows in torch.split(client.down, size):
            where = torch.arange(at, at + len(rows), device=total.device) % size
            total.index_add_(0, where, rows, alpha=client.weight * client.scale)
            at += len(rows)
    return total.T


def times(giving: Sequence[Client], x: Tensor) -> Tensor:
    """M x, (d_out, k)."""
    total = x.new_zeros(len(giving[0].up), x.shape[1])
    for client in giving:
        total.addmm_(client.up, client.down @ x, alpha=client.weight * client.scale)
    return total


def turned(giving: Sequence[Client], x: Tensor) -> Tensor:
    """M'x, (d_in, k)."""
    total = x.new_zeros(giving[0].down.shape[1], x.shape[1])
    for client in giving:
        total.addmm_(client.down.T, client.up.T @ x, alpha=client.weight * client.scale)
    return total


def deviations(giving: Sequence[Client], draw: Draw) -> Tensor:
    """A basis (d_out, DEVIATIONS) of most of what sum_k w_k Delta_k Delta_k' has: random images of each,
    and what the sum makes of them, SWEEPS times."""
    covariances = [(c.down @ c.down.T).double() * c.scale**2 for c in giving]
    found = draw(len(giving[0].up), 0).new_zeros(len(giving[0].up), DEVIATIONS)
    for client, covariance in zip(giving, covariances, strict=True):
        values, vectors = eigh(covariance)
        root = (vectors * values.clamp_min(0).sqrt()).to(found)
        random = root @ draw(client.down.shape[0], DEVIATIONS)
        found.addmm_(client.up, random, alpha=client.weight**0.5)
    for _ in range(SWEEPS):
        start = orthonormal(found)
        found = torch.zeros_like(start)
        for client, covariance in zip(giving, covariances, strict=True):
            image = covariance.to(start) @ (client.up.T @ start)
            found.addmm_(client.up, image, alpha=client.weight)
    return orthonormal(found)
