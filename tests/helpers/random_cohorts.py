"""Cohorts of every kind as tables, drawn from a seed: what is judged in two ways has to come out alike.

An update is B A with orthonormal rows A, so <D_i, D_j> = <B_i A_i A_j', B_j> and ||D_i' D_j|| is that
of B_i' B_j.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.full import FullTables
from clair_cli.detection.tables import Tables
from tests.helpers.heads import tables_of

Array = NDArray[np.float64]
D_OUT, D_IN, HEAD, LABELS = 24, 40, 30, 5
KINDS = (
    "flipped",
    "stranger",
    "noise",
    "large",
    "small",
    "one module",
    "half",
    "adds",
    "domain",
    "zero",
)


def cohort(seed: int, clients: int) -> Tables:
    """A cohort of `clients`: how many are odd, in which ways, and all else depends on the seed."""
    draw = np.random.default_rng(seed)
    modules, rank = int(draw.choice([1, 2, 4, 6, 9])), int(draw.choice([2, 4]))
    shape = (modules, clients, D_OUT, rank)
    task, other, extra = draw.standard_normal((3, modules, D_OUT, rank))
    own = draw.standard_normal(shape)
    error = draw.choice([0.3, 0.7, 1.2]) * np.exp(draw.normal(0, draw.choice([0.1, 0.5]), clients))
    made = task[:, None] + error[:, None, None] * own
    heads = draw.standard_normal(HEAD) + error[:, None] * draw.standard_normal((clients, HEAD))
    share = draw.choice([0.0, 0.1, 0.25, 0.4, 0.48])
    kinds = draw.choice(KINDS, 2 if draw.random() < 0.5 else 6)
    for k in np.flatnonzero(draw.random(clients) < share):
        kind = draw.choice(kinds)
        m = int(draw.integers(modules))
        if kind == "flipped":
            made[:, k], heads[k] = -made[:, k], -heads[k]
        elif kind == "stranger":
            made[:, k] = draw.standard_normal((modules, D_OUT, rank)) + 0.5 * own[:, k]
        elif kind == "noise":
            made[:, k] += draw.uniform(1, 5) * own[:, k]
        elif kind in ("large", "small"):
            made[:, k] *= draw.uniform(1.5, 6) if kind == "large" else draw.uniform(0.05, 0.6)
        elif kind == "one module":
            made[m, k] = 2 * draw.standard_normal((D_OUT, rank))
        elif kind == "half":
            made[:, k] -= draw.uniform(0.2, 1) * task
            heads[k] *= draw.choice([-1.0, 0.1, 1.0])
        elif kind == "adds":
            made[:, k] += draw.uniform(0.3, 1.5) * extra
        elif kind == "domain":
            made[:, k] = other + error[k] * own[:, k]
        else:
            made[:, k] = 0
    _copied(made, draw)
    start = draw.choice(["shared", "own", "mixed"], p=[0.6, 0.2, 0.2])
    return _tabled(made, heads, error, str(start), draw)


def _copied(made: Array, draw: np.random.Generator) -> None:
    """Now and then some clients send what another has, as it is or nearly so."""
    clients = made.shape[1]
    for k in np.flatnonzero(draw.random(clients) < draw.choice([0.0, 0.0, 0.08])):
        noise = draw.choice([0.0, 0.01, 0.1]) * draw.standard_normal(made[:, k].shape)
        made[:, k] = made[:, draw.integers(clients)] + noise


def _tabled(
    made: Array, heads: Array, error: Array, start: str, draw: np.random.Generator
) -> Tables:
    modules, clients, _, rank = made.shape
    rows = np.linalg.qr(draw.standard_normal((clients, modules, D_IN, rank)))[0]
    alone = {"shared": 0.0, "own": 1.0, "mixed": draw.uniform(0.05, 0.4)}[start]
    rows[draw.random(clients) >= alone] = rows[0]
    seen = np.einsum("imdr,jmds->mijrs", rows, rows)
    inner = np.einsum("midr,mijrs,mjds->mij", made, seen, made, optimize=True)
    overlap = np.stack(
        [(np.einsum("idr,jds->ijrs", b, b, optimize=True) ** 2).sum(axis=(2, 3)) for b in made]
    )
    members = draw.random(clients) < draw.choice([0.7, 1.0])
    absolute = draw.random(modules) < draw.choice([0.6, 1.0])
    return Tables(
        clients=tuple(f"client-{k:03d}" for k in range(clients)),
        modules=tuple(f"layers.{m}.q_proj" for m in range(modules)),
        inner=(inner + inner.transpose(0, 2, 1)) / 2,
        overlap=(overlap + overlap.transpose(0, 2, 1)) / 2,
        d_out=np.full(modules, float(D_OUT)),
        d_in=np.full(modules, float(D_IN)),
        members=members,
        digests=tuple(made[:, k].tobytes().hex()[:500] for k in range(clients)),
        full=_full(heads, draw) if draw.random() < 0.3 else None,
        rows=(seen**2).sum(axis=(3, 4)).mean(axis=0) / rank if draw.random() < 0.8 else None,
        ranks=None if draw.random() < 0.2 else draw.choice([4.0, 4.0, 4.0, 4.0, 8.0], clients),
        absolute=absolute if draw.random() < 0.3 else None,
        unexplained=error**2 * draw.lognormal(0, 1, clients) if draw.random() < 0.5 else None,
    )


def _full(heads: Array, draw: np.random.Generator) -> FullTables:
    present = draw.random((2, len(heads))) < draw.choice([0.8, 1.0])
    both = np.stack([heads, heads[:, ::-1] + 0.3 * draw.standard_normal(heads.shape)])
    both = np.where(present[:, :, None], both, 0.0).reshape(2, len(heads), LABELS, -1)
    return tables_of({"a": both[0], "b": both[1]}, present)
