"""Ranks that are least for what the cut to them costs: measured before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from clair_cli import engines
from clair_cli.progress import Progress, silent
from clair_cli.refinement.blame import LeftOut, noted
from clair_cli.refinement.module import ModuleRefiner, Spectrum
from clair_cli.refinement.plan import Group, Plan
from clair_cli.refinement.refiner import on_module


def with_ranks(plan: Plan, on_progress: Progress = silent) -> Plan:
    """The plan with the ranks that "auto" stands for. Raises AdapterError, LeftOut."""
    clients, mean = plan.settings.rank == "auto", plan.settings.global_rank == "auto"
    mean = mean and plan.settings.write_global
    if not (clients or mean):
        return plan
    spectra, failed = list[_Spectra](), dict[str, Exception]()
    job = partial(_spectra, plan, clients)
    items = ((module, frozenset(failed)) for module in plan.modules)
    for found in engines.choose(plan.settings.engine).map(job, items):
        spectra.append(found)
        failed |= found.failed | failed
        on_progress("measuring ranks", len(spectra), len(plan.modules))
    if failed:
        raise LeftOut(failed)
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
    """The spectra in one module, of the mean, and per client and strength; who failed."""

    def __init__(self) -> None:
        self.mean: Spectrum = (np.zeros(1), 0.0)
        self.clients: list[list[Spectrum]] = []
        self.failed: dict[str, Exception] = {}


def _spectra(plan: Plan, clients: bool, item: tuple[str, Collection[str]]) -> _Spectra:
    (module, gone), found = item, _Spectra()
    for which, group in enumerate(plan.groups[: None if clients else 1]):
        compute = partial(_measured, group if clients else None)
        with noted(found.failed):
            mean, per_strength = on_module(plan, which, module, compute, gone)
            found.mean = found.mean if which else mean
            found.clients += [list(own) for own in zip(*per_strength, strict=True)]
    return found


def _measured(group: Group | None, refiner: ModuleRefiner) -> tuple[Spectrum, list[list[Spectrum]]]:
    """Of the mean, and of the clients of a group."""
    own = [] if group is None else _of_group(group, refiner)
    return refiner.mean_spectrum(), own


def _of_group(group: Group, refiner: ModuleRefiner) -> list[list[Spectrum]]:
    """Per strength and client."""
    found = []
    for how, mix, keeps in zip(group.shrinkages, group.mixes, group.keeps, strict=True):
        table = None if mix is None else torch.from_numpy(mix)
        aim = refiner.aims(how, table, keeps)
        found.append(refiner.spectra(aim))
    return found


def least_rank(spectra: Sequence[Spectrum], cost: float) -> int:
    """The least rank, one for all modules, whose cut leaves out at most `cost` of the norm of what it is
    measured by, over all modules together."""
    size = max(len(s) for s, _ in spectra)
    left = np.zeros(size + 1)
    for spectrum, _ in spectra:
        tail = np.concatenate([spectrum[::-1].cumsum()[::-1], [0.0]])
        left[: len(tail)] += tail
    fine = np.flatnonzero(left <= cost**2 * sum(energy for _, energy in spectra))
    return max(int(fine[0]), 1)
