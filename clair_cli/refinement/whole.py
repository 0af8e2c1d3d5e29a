"""Matrices trained whole, above all classifier heads: which are averaged, and what each client gets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clair_cli.cohort import Adapter, Cohort
from clair_cli.cohort.records import natural_key
from clair_cli.detection.agreement import Array, common_share
from clair_cli.detection.full import read_full, read_full_estimate
from clair_cli.errors import CHANGED, ChangedWhileRead, Failed
from clair_cli.refinement.blame import LeftOut, of_client
from clair_cli.refinement.members import Recipients
from clair_cli.settings import Settings

BLOCK = 2**23
"""Elements of all clients that are in memory together."""


@dataclass(frozen=True, slots=True, eq=False)
class FullMatrices:
    """`names` are averaged among the clients that have them with the shape of `shapes`; of `alone`
    every client keeps its own, because their mean means nothing. `inner` (F, K, K) are the inner
    products of those that all clients of the group have.
    """

    names: tuple[str, ...]
    alone: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    inner: Array


def full_matrices(who: Recipients, settings: Settings, device: str) -> FullMatrices:
    """Those of a group. Raises AdapterError where an input changed, LeftOut of whom cannot be read."""
    shapes = _usual_shapes(who.clients)
    cohort = Cohort(clients=who.clients, modules=(), shapes={}, full=shapes)
    found = read_full(cohort, settings, device)
    for k, reason in found.failed.items():
        if reason.code in {kind.code for kind in CHANGED}:
            raise ChangedWhileRead(reason.message)
        raise LeftOut({who.clients[k].client: Failed(reason.message)})
    giving = np.array(who.giving)
    least = settings.refinement.full_common
    means = [
        _sent_alike(who.clients, name)
        or common_share(w[None, p & giving][:, :, p & giving]) >= least
        for name, w, p in zip(found.names, found.inner, found.present, strict=True)
    ]
    every = found.present.all(axis=1)
    return FullMatrices(
        names=tuple(n for n, fine in zip(found.names, means, strict=True) if fine),
        alone=tuple(n for n, fine in zip(found.names, means, strict=True) if not fine),
        shapes=shapes,
        inner=found.inner[every & np.array(means, bool)] if len(means) else found.inner,
    )


def _sent_alike(clients: Sequence[Adapter], name: str) -> bool:
    """Whether all were sent one matrix, so that their mean means something however they changed it."""
    sent = {id(a.since): a.since for a in clients}
    return len(sent) == 1 and all(s is not None and name in s.full for s in sent.values())


def _usual_shapes(clients: Sequence[Adapter]) -> dict[str, tuple[int, ...]]:
    """The shape that most clients have of every full matrix."""
    names = sorted({n for a in clients for n in a.full}, key=natural_key)
    found = {n: Counter(a.full[n].shape for a in clients if n in a.full) for n in names}
    return {n: count.most_common(1)[0][0] for n, count in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows from `start` on of one full matrix: of each client (None without it), and of the mean."""

    start: int
    own: list[Tensor | None]
    mean: Tensor


def in_rows(
    name: str,
    shape: tuple[int, ...],
    clients: Sequence[Adapter],
    weights: Sequence[float],
    device: str,
) -> Iterator[Rows]:
    """The full matrix `name` of all clients that have it with this shape, some rows at a time, float64,
    with what they were sent: a mean of wholes is what was sent and the mean change.

    Raises AdapterError where an input changed, LeftOut of whom cannot be read.
    """
    width = math.prod(shape[1:])
    having = [a.shape_of(name) == shape for a in clients]
    total = math.fsum(w for w, has in zip(weights, having, strict=True) if has)
    step = max(BLOCK // max(width * len(clients), 1), 1)
    count = shape[0] if shape else 1
    for start in range(0, count, step):
        stop = min(start + step, count)
        own: list[Tensor | None] = []
        for adapter, has in zip(clients, having, strict=True):
            with of_client(adapter.client):
                rows = None
                if has:
                    flat = read_full_estimate(adapter, name, start * width, stop * width, device)
                    rows = flat.reshape(-1, *shape[1:])
                own.append(rows)
        parts = [w / total * x for w, x in zip(weights, own, strict=True) if w and x is not None]
        yield Rows(start, own, torch.stack(parts).sum(dim=0))
