"""One module of one group, read and put into common coordinates."""

from __future__ import annotations

from dataclasses import replace

from clair_cli.detection.reading import read_estimate
from clair_cli.refinement.module import ModuleRefiner
from clair_cli.refinement.plan import Group, Plan
from clair_cli.refinement.replicates import errors, replicated
from clair_cli.update import LowRankUpdate


def refiner_of(plan: Plan, group: Group, module: str) -> ModuleRefiner:
    """The refiner of one module of a group. Raises AdapterError."""
    updates = [read_estimate(a, module, plan.dtype, plan.device) for a in group.clients]
    noise = _noise(plan, group, module)
    return ModuleRefiner(updates, group.weights, noise, numbers=plan.settings.refinement)


def _noise(plan: Plan, group: Group, module: str) -> list[LowRankUpdate]:
    """Updates whose energies sum to the error of all that give, where directions are weighed by it."""
    if not any(how.by_direction and how.side != "client" for how in group.shrinkages):
        return []
    numbers, telling = plan.settings.refinement, [a for a in group.giving if replicated(a)]
    if not telling:
        return []
    share = (len(group.giving) / len(telling)) ** 0.5
    noise: list[LowRankUpdate] = []
    for adapter in telling:
        found = errors(adapter, module, plan.dtype, plan.device, numbers)
        factor = share * group.error_scales.get(adapter.client, 1.0)
        noise += [replace(u, scale=u.scale * factor) for u in found]
    return noise
