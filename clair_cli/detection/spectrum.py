"""The largest eigenvalues of a large symmetric table, where not all of them are wanted."""

from __future__ import annotations

import numpy as np

from clair_cli.detection.agreement import Array

WIDTH, MOST = 8, 400
"""Vectors that are multiplied by the table at a time, and dimensions of the space."""


def leading(table: Array, wanted: int, centred: bool) -> tuple[Array, Array]:
    """The `wanted` largest eigenvalues, descending, and their vectors (K, wanted), up to MOST.

    Of C T C with C = 1 - 1/K where `centred`. From a fixed start the blocks X, T X, T T X ... are made,
    each orthogonal to those before. The eigenvalues of the table in the space that they span come near
    the largest ones from below, as in the block Lanczos method (Golub and Van Loan, 10.3.6), the more
    so the further they stand out. Where the space is the whole the values are exact.
    """
    count = len(table)
    draw = np.random.default_rng(0)
    size = min(count, MOST)
    basis, products = np.zeros((count, size)), np.zeros((count, size))
    block = draw.standard_normal((count, WIDTH))
    for first in range(0, size, WIDTH):
        now = slice(first, min(first + WIDTH, size))
        block = _orthogonal(block[:, : now.stop - first], basis[:, :first], draw)
        basis[:, now] = block
        block = _centred(block) if centred else block
        block = np.asarray(table @ block.astype(table.dtype), float)
        products[:, now] = block = _centred(block) if centred else block
    small = basis.T @ products
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    return values[::-1][:wanted], basis @ vectors[:, ::-1][:, :wanted]


def _centred(x: Array) -> Array:
    return np.asarray(x - x.mean(axis=0))


def _orthogonal(block: Array, basis: Array, draw: np.random.Generator) -> Array:
    """An orthonormal block of this width, orthogonal to the basis; of what it has in it other vectors
    are drawn."""
    while True:
        for _ in range(2):  # once leaves rounding, twice is enough
            block = block - basis @ (basis.T @ block)
        block = np.linalg.qr(block)[0]
        inside = np.linalg.norm(basis.T @ block, axis=0) > 1e-10
        if not inside.any():
            return block
        block[:, inside] = draw.standard_normal((len(block), int(inside.sum())))
