"""Federations as tables: what every client was asked to learn, seen through the rows of its own A.

An update is (task + own deviation) Q'Q, with orthonormal rows Q (rank, d_in): what a LoRA of first A = Q
learns when A stays put. The task of a module has rank 3 and norm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.full import FullTables
from clair_cli.detection.tables import Tables
from clair_cli.detection.verdicts import Judgement, judge
from clair_cli.report import Verdict
from clair_cli.settings import Settings
from tests.helpers.heads import tables_of

Array = NDArray[np.float64]
MODULES, D_OUT, D_IN, RANK = 6, 48, 40, 8
USUAL = 0.7
"""Size of an honest client's own deviation, in norms of the task."""


def task(seed: int) -> Array:
    """One task: a matrix of rank 3 and norm 1 per module, (MODULES, D_OUT, D_IN)."""
    draw = np.random.default_rng(10_000 + seed)
    found = draw.standard_normal((MODULES, D_OUT, 3)) @ draw.standard_normal((MODULES, 3, D_IN))
    return np.asarray(found / np.linalg.norm(found, axis=(1, 2), keepdims=True))


def own(seed: int, size: float = USUAL) -> Array:
    """A deviation that nobody else has, of this norm in every module."""
    found = np.random.default_rng(20_000 + seed).standard_normal((MODULES, D_OUT, D_IN))
    return np.asarray(size * found / np.linalg.norm(found, axis=(1, 2), keepdims=True))


def rows(seed: int, rank: int = RANK) -> Array:
    """Orthonormal rows of a first A, (MODULES, rank, D_IN)."""
    found = np.random.default_rng(30_000 + seed).standard_normal((MODULES, D_IN, rank))
    return np.asarray(np.linalg.qr(found)[0].transpose(0, 2, 1))


@dataclass(frozen=True)
class Client:
    """A client's update (MODULES, D_OUT, D_IN), its rank, and its head where it has one:
    (n,), or (C, d) of a classifier."""

    update: Array
    rank: int = RANK
    rows: Array = field(default_factory=lambda: rows(0))
    head: Array | None = None

    def times(self, factor: float) -> Client:
        """The same update, this much larger."""
        return replace(self, update=factor * self.update)


def trained(content: Array, seed: int, shared: bool = True, noise: float = USUAL) -> Client:
    """Who learned `content` and, by its few data, a deviation of size `noise` of its own."""
    q = rows(0 if shared else seed + 1)
    return Client((content + own(seed, noise)) @ q.transpose(0, 2, 1) @ q, rows=q)


def honest(count: int, shared: bool = True, seed: int = 0) -> dict[str, Client]:
    """Clients h-00, h-01 ... of one task, alike in all but their own deviations."""
    return {f"h-{k:02d}": trained(task(seed), 100 * seed + k, shared) for k in range(count)}


def tabled(clients: Mapping[str, Client]) -> Tables:
    """The tables that the pipeline would make of them."""
    every = list(clients.values())
    stacked = np.array([c.update for c in every])
    flat = stacked.transpose(1, 0, 2, 3).reshape(MODULES, len(every), -1)
    count = len(every)
    wide = stacked.transpose(1, 2, 0, 3).reshape(MODULES, D_OUT, count * D_IN)
    both = (wide.transpose(0, 2, 1) @ wide).reshape(MODULES, count, D_IN, count, D_IN)
    return Tables(
        clients=tuple(clients),
        modules=tuple(f"layers.{m}.q_proj" for m in range(MODULES)),
        inner=flat @ flat.transpose(0, 2, 1),
        overlap=(both**2).sum(axis=(2, 4)),
        d_out=np.full(MODULES, float(D_OUT)),
        d_in=np.full(MODULES, float(D_IN)),
        members=np.ones(count, bool),
        digests=tuple(clients),
        full=_heads(every),
        rows=np.array([[_overlap(a.rows, b.rows) for b in every] for a in every]),
        ranks=np.array([float(c.rank) for c in every]),
    )


def _overlap(a: Array, b: Array) -> float:
    """Mean squared cosine of two row spaces over the modules."""
    both = a @ b.transpose(0, 2, 1)
    return float((both**2).sum(axis=(1, 2)).mean() / min(a.shape[1], b.shape[1]))


def _heads(every: Sequence[Client]) -> FullTables | None:
    present = np.array([[c.head is not None for c in every]])
    if not present.any():
        return None
    shape = next(np.atleast_2d(c.head).shape for c in every if c.head is not None)
    heads = [np.zeros(shape) if c.head is None else np.atleast_2d(c.head) for c in every]
    return tables_of({"score.weight": np.array(heads)}, present)


def judged(clients: Mapping[str, Client], settings: Settings | None = None) -> Judgement:
    """The verdicts on them."""
    return judge(tabled(clients), settings or Settings())


def called(found: Judgement, *names: str) -> set[str]:
    """The clients that have one of these verdicts."""
    return {v.client for v in found.verdicts if v.verdict in names}


def verdict(found: Judgement, client: str) -> Verdict:
    """What is said of this client."""
    return next(v for v in found.verdicts if v.client == client)


def codes(found: Judgement, client: str) -> set[str]:
    """The codes of its reasons."""
    return {r.code for r in verdict(found, client).reasons}


def reason(found: Judgement, client: str, code: str) -> str:
    """The one sentence of this code."""
    (message,) = (r.message for r in verdict(found, client).reasons if r.code == code)
    return message
