"""What others would say about a cohort of real clients, as a score per client; higher is worse.

Statistics of single adapters, by their |z| within the cohort: Horus (arXiv 2508.03579) takes the energy
of lora_A in its leading singular values, and weight-space detection (arXiv 2602.15195) concentration
and entropy of the spectrum of B A. And of robust aggregation, Multi-Krum and the cosine to the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.field import delta_view, multi_krum
from benchmarks.real_cells import written
from benchmarks.real_cohorts import Cohort
from benchmarks.real_pools import Pool, start, untrained
from benchmarks.saved import PREFIX, Saved, read

Array = NDArray[np.float64]
Starts = list[dict[str, Tensor]]
"""Per client, module -> the A it began with, (r, d_in); none where each client has its own."""
LEADING = 2


@cache
def first_a(pool: Pool, rank: int, data: Path) -> dict[str, Tensor]:
    """Module -> the A that clients of this rank began with, which a server that sent it knows."""
    model = untrained(pool, rank, data, start(pool, pool.clients()[0]))
    return {
        name.removeprefix(PREFIX).partition(".lora_A")[0]: weight.detach()
        for name, weight in model.named_parameters()
        if ".lora_A." in name
    }


def starts(pool: Pool, cohort: list[Saved], data: Path) -> Starts:
    """Of every client of the cohort."""
    if pool.own:
        return [{} for _ in cohort]
    return [first_a(pool, int(c.config["r"]), data) for c in cohort]


# Of one adapter


def drift(adapter: Saved, began: dict[str, Tensor]) -> dict[str, Tensor]:
    """Module -> A less what it began with; A itself where that is not known."""
    return {m: a - began.get(m, torch.zeros_like(a)) for m, (_, a) in adapter.factors.items()}


def drift_size(adapter: Saved, began: dict[str, Tensor]) -> float:
    """Frobenius norm over all modules."""
    return float(torch.cat([d.flatten() for d in drift(adapter, began).values()]).norm())


def drift_energy(adapter: Saved, began: dict[str, Tensor]) -> float:
    """Share of the drift's energy in its leading singular values, mean over the modules."""
    squares = [torch.linalg.svdvals(d).square() for d in drift(adapter, began).values()]
    return float(np.mean([float(s[:LEADING].sum() / s.sum()) for s in squares]))


def spectra(adapter: Saved) -> list[Tensor]:
    """Singular values of B A over their sum, one tensor (r,) per module."""
    found = []
    for up, down in adapter.factors.values():
        values = torch.linalg.svdvals(torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T)
        found.append(values / values.sum())
    return found


def first_share(adapter: Saved, _: dict[str, Tensor]) -> float:
    """Of the first singular value, mean over the modules."""
    return float(np.mean([float(s[0]) for s in spectra(adapter)]))


def entropy(adapter: Saved, _: dict[str, Tensor]) -> float:
    """Of the singular values, mean over the modules, nats."""
    return float(np.mean([float(torch.special.entr(s).sum()) for s in spectra(adapter)]))


STATISTICS: dict[str, Callable[[Saved, dict[str, Tensor]], float]] = {
    "drift of A": drift_size,
    "Horus: leading energy of A": drift_energy,
    "first singular value": first_share,
    "spectral entropy": entropy,
}
COHORT = ("Multi-Krum", "cosine to the mean")
PEERS = (*STATISTICS, *COHORT)


# Of a cohort


def z(values: list[float]) -> Array:
    """Distance to the mean in standard deviations, (K,)."""
    found = np.asarray(values)
    distance: Array = np.abs(found - found.mean()) / max(float(found.std()), 1e-12)
    return distance


def cosine_to_mean(x: Array) -> Array:
    """1 - cosine of each row and the mean of all rows, (K,)."""
    mean = x.mean(axis=0)
    cosine: Array = x @ mean / (np.linalg.norm(x, axis=1) * np.linalg.norm(mean))
    return 1 - cosine


def scores(cohort: list[Saved], began: Starts, bad: int) -> dict[str, list[float]]:
    """Peer -> score of every client.

    Multi-Krum is told how many are contaminated; its scores are in units of the cohort's median.
    """
    x = delta_view(cohort).astype(np.float64)
    found = {
        name: z([statistic(c, b) for c, b in zip(cohort, began, strict=True)]).tolist()
        for name, statistic in STATISTICS.items()
    }
    krum = multi_krum(x, bad)[0]
    found["Multi-Krum"] = (krum / np.median(krum)).tolist()
    found["cosine to the mean"] = cosine_to_mean(x).tolist()
    return found


def judged(data: Path, work: Path, cohort: Cohort) -> dict[str, Any]:
    """`scores`: peer -> client -> score."""
    with written(cohort, work) as folder:
        clients = [read(folder / name) for name in cohort.clients]
    bad = sum(not c.honest for c in cohort.clients.values())
    said = scores(clients, starts(cohort.pool, clients, data), bad)
    return {"scores": {p: dict(zip(cohort.clients, s, strict=True)) for p, s in said.items()}}
