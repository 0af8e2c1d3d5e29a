"""What moves the frequencies of labels in classifiers' heads.

A head that learns how frequent its labels are moves along one input direction, the mean of what it
sees, which all clients share, by different amounts per label. Noise has no such direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 30


def few_outputs(shape: tuple[int, ...], most: int) -> bool:
    """Whether a matrix may be a classifier's head: of two rows to `most`, one for each label, and fewer
    than columns."""
    return len(shape) == 2 and 2 <= shape[0] <= min(most, shape[1] - 1)


def moving_frequencies(heads: Tensor) -> Tensor:
    """Share of every head's deviation (K, C, d) in the input direction that all deviations share most,
    (K,) in [0, 1]."""
    if not len(heads):
        return heads.new_zeros(0)
    unit = unit_deviations(heads)
    rows = unit.flatten(0, 1)
    return (unit @ leading(rows, torch.ones_like(rows[0]))).square().sum(dim=1)


def unit_deviations(heads: Tensor) -> Tensor:
    """What each of the heads (K, C, d) differs by from their mean, of norm 1; zero where by nothing."""
    off = heads - heads.mean(dim=0)
    size = off.flatten(1).norm(dim=1)
    return off / torch.where(size > 0, size, 1)[:, None, None]


def leading(rows: Tensor, start: Tensor) -> Tensor:
    """The leading right singular vector of `rows` (n, d), from `start` (d,) on."""
    vector = start
    for _ in range(SWEEPS):
        image = rows.T @ (rows @ vector)
        size = image.norm()
        if not size > 0:
            break
        vector = image / size
    return vector
