"""Ranks that are least for what the cut to them costs: measured before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from clair_cli import engines
from clair_cli.detection.agreement import Array
from clair_cli.progress import Progress, silent
from clair_cli.refinement.module import ModuleRefiner, squared_spectrum
from clair_cli.refinement.plan import Group, Plan
from clair_cli.refinement.refiner import refiner_of


def with_ranks(plan: Plan, on_progress: Progress = silent) -> Plan:
    """The plan with the ranks that "auto" stands for. Raises AdapterError."""
    clients, mean = plan.settings.rank == "auto", plan.settings.global_rank == "auto"
    mean = mean and plan.settings.write_global
    if not (clients or mean):
        return plan
    spectra: list[_Spectra] = []
    job = partial(_spectra, plan, clients)
    for found in engines.choose(plan.settings.engine).map(job, plan.modules):
        spectra.append(found)
        on_progress("measuring ranks", len(spectra), len(plan.modules))
    cost = plan.settings.refinement.rank_cost
    ranks: dict[str, int] = {}
    if clients:
        ranks = {
            adapter.client: max(
                least_rank([one.clients[k][s] for one in spectra], cost)
                for s in range(len(plan.groups[0].shrinkages))
            )
            for k, adapter in enumerate(plan.clients)
        }
    mean_rank = least_rank([one.mean for one in spectra], cost) if mean else None
    return replace(plan, ranks=ranks, mean_rank=mean_rank)


class _Spectra:
    """Squared singular values in one module: of the mean, and per client and strength."""

    def __init__(self, mean: Array, clients: list[list[Array]]) -> None:
        self.mean, self.clients = mean, clients


def _spectra(plan: Plan, clients: bool, module: str) -> _Spectra:
    refiners = [refiner_of(plan, group, module) for group in plan.groups[: None if clients else 1]]
    own: list[list[Array]] = []
    if clients:
        for group, refiner in zip(plan.groups, refiners, strict=True):
            per_strength = _of_group(group, refiner)
            own += [list(found) for found in zip(*per_strength, strict=True)]
    return _Spectra(squared_spectrum(refiners[0].mean), own)


def _of_group(group: Group, refiner: ModuleRefiner) -> list[list[Array]]:
    """Per strength and client."""
    found = []
    for how, mix, keeps in zip(group.shrinkages, group.mixes, group.keeps, strict=True):
        table = None if mix is None else torch.from_numpy(mix)
        found.append(refiner.spectra(refiner.aims(how, table, keeps)))
    return found


def least_rank(spectra: Sequence[Array], cost: float) -> int:
    """The least rank, one for all modules, that leaves out at most `cost` of the norm of them all.

    `spectra` are the squared singular values of each module, descending.
    """
    size = max(len(s) for s in spectra)
    left = np.zeros(size + 1)
    for spectrum in spectra:
        tail = np.concatenate([spectrum[::-1].cumsum()[::-1], [0.0]])
        left[: len(tail)] += tail
    fine = np.flatnonzero(left <= cost**2 * left[0])
    return max(int(fine[0]), 1)
