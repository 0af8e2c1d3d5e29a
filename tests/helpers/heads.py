"""Classifiers' heads: their tables, and heads as training with a softmax leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from clair_cli.detection.frequencies import moving_frequencies
from clair_cli.detection.full import FullTables, Head

Array = NDArray[np.float64]
WIDTH, START = 96, 0.1
"""Of what a head sees; deviation of the entries that it begins with."""


def tables_of(heads: Mapping[str, Array], present: NDArray[np.bool_] | None = None) -> FullTables:
    """The tables of matrices (K, C, d) by name; those of one row are no heads. `present` (F, K)."""
    every = list(heads.values())
    flat = [x.reshape(len(x), -1) for x in every]
    return FullTables(
        names=tuple(heads),
        sizes=np.array([x.shape[1] for x in flat]),
        present=np.ones((len(every), len(every[0])), bool) if present is None else present,
        inner=np.array([x @ x.T for x in flat]),
        failed={},
        heads={f: head_of(x) for f, x in enumerate(every) if x.shape[1] > 1},
    )


def head_of(heads: Array) -> Head:
    """What is known of heads (K, C, d)."""
    sums = heads.sum(axis=1)
    frequency = moving_frequencies(torch.tensor(heads)).numpy()
    return Head(heads.shape[1], heads.shape[2], sums @ sums.T, frequency)


@cache
def task(labels: int, width: int) -> torch.Tensor:
    """What inputs of each label (C, d) have in common; all inputs share a mean besides."""
    draw = torch.Generator().manual_seed(7)
    mean = torch.randn(width, generator=draw, dtype=torch.float64)
    return mean + 0.6 * torch.randn(labels, width, generator=draw, dtype=torch.float64)


def untrained(start: int, labels: int = 6, width: int = WIDTH) -> torch.Tensor:
    """A head (C, d) before training, drawn from the seed `start`."""
    draw = torch.Generator().manual_seed(start)
    return START * torch.randn(labels, width, generator=draw, dtype=torch.float64)


def trained(
    seed: int,
    start: int = 0,
    kind: str = "honest",
    labels: int = 6,
    width: int = WIDTH,
    samples: int = 120,
) -> Array:
    """A head (C, d) after 60 steps of Adam on its own samples, from entries drawn from the seed `start`.

    `kind`: honest, flipped, or random labels.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    head = untrained(start, labels, width).requires_grad_()
    truth = torch.randint(labels, (samples,), generator=draw)
    noise = torch.randn(samples, width, generator=draw, dtype=torch.float64)
    inputs = task(labels, width)[truth] + noise
    told = truth
    if kind == "flipped":
        told = labels - 1 - truth
    elif kind == "random":
        told = torch.randint(labels, (samples,), generator=draw)
    optimizer = torch.optim.Adam([head], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(inputs @ head.T, told).backward()
        optimizer.step()
    return np.asarray(head.detach().numpy())
