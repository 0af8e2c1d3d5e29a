"""One module of one group, read and put into common coordinates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from clair_cli.cohort import Adapter
from clair_cli.detection.changes import SentReader
from clair_cli.detection.fetching import fetched_ahead, largest
from clair_cli.detection.forms import nothing, read_estimate
from clair_cli.refinement.blame import LeftOut, noted, of_any, of_client
from clair_cli.refinement.module import ModuleRefiner
from clair_cli.refinement.plan import Group, Plan
from clair_cli.refinement.replicates import errors, replicated
from clair_cli.update import LowRankUpdate

Result = TypeVar("Result")
Take = Callable[[str], LowRankUpdate]
"""The update of a client, by its name, in the order of the groups."""
Item = tuple[str, Collection[str]]
"""A module, and who has failed before and is not read."""


def on_module(
    plan: Plan,
    which: int,
    module: str,
    compute: Callable[[ModuleRefiner], Result],
    gone: Collection[str] = (),
    take: Take | None = None,
) -> Result:
    """compute(refiner) of one module of a group, those that are `gone` counted as zero. `take`
    gives the updates of the others, where they are read ahead.

    Raises AdapterError where an input changed, LeftOut of those with whom it fails.
    """
    group = plan.groups[which]
    updates, noise, failed = _read(plan, group, module, gone, take)
    reader = SentReader(module, plan.dtype, plan.device)
    sent = [reader.read(adapter) for adapter in group.clients]
    here = [k for k, a in enumerate(group.clients) if a.client not in gone]
    if failed or not here:
        raise LeftOut(failed)

    def of_those(kept: Sequence[int]) -> Result:
        used = [u if k in kept else u.zeroed() for k, u in enumerate(updates)]
        numbers = plan.settings.refinement
        exact = _exact(plan, group)
        refiner = ModuleRefiner(used, group.weights, noise, numbers, exact, sent)
        if not refiner.finite:
            raise ArithmeticError(f"the mean of {module!r} is not finite")
        return compute(refiner)

    return of_any(of_those, group.clients, here, which == 0)


def stored_ahead(
    plan: Plan, items: Iterable[Item]
) -> AbstractContextManager[Iterator[tuple[Item, Take | None]]]:
    """The items; where this process computes them on a device, with what is read ahead of them."""
    everybody = {a.client: a for group in plan.groups for a in group.clients}

    def clients(item: Item) -> list[str]:
        return [client for client in everybody if client not in item[1]]

    def reader(item: Item) -> Take:
        module, _ = item
        return lambda c: read_estimate(everybody[c], module, plan.dtype, plan.device)

    room = partial(largest, list(everybody.values()), plan.modules, plan.dtype)
    return fetched_ahead(items, clients, reader, (plan.settings.engine, plan.device), room)


def _read(
    plan: Plan, group: Group, module: str, gone: Collection[str], take: Take | None
) -> tuple[list[LowRankUpdate], list[LowRankUpdate], dict[str, Exception]]:
    """The updates of all clients, those of the estimation error, and who could not be read."""
    updates, noise, failed = list[LowRankUpdate](), list[LowRankUpdate](), dict[str, Exception]()
    telling = _telling(group)
    for adapter in group.clients:
        update = nothing(adapter, module, plan.dtype, plan.device)
        if adapter.client not in gone:
            with noted(failed), of_client(adapter.client):
                if take is not None:
                    update = take(adapter.client)
                else:
                    update = read_estimate(adapter, module, plan.dtype, plan.device)
                if adapter in telling:
                    noise += _noise(plan, group, adapter, module, len(telling))
        updates.append(update)
    return updates, noise, failed


def _exact(plan: Plan, group: Group) -> bool:
    """Whether whole coordinates are asked for, or needed for what F does."""
    rare = any(h.side in ("right", "client") or h.by_direction for h in group.shrinkages)
    few = all(h.rank == "auto" or h.side == "own" for h in group.shrinkages)
    return plan.settings.exact or rare or not few


def _telling(group: Group) -> list[Adapter]:
    """Who has replicates, where directions are weighed by the error they tell of."""
    if not any(how.by_direction and how.side != "client" for how in group.shrinkages):
        return []
    return [a for a in group.giving if replicated(a)]


def _noise(
    plan: Plan, group: Group, adapter: Adapter, module: str, telling: int
) -> list[LowRankUpdate]:
    """Updates of one of the `telling` clients; the energies of all sum to the error of all that give."""
    numbers = plan.settings.refinement
    factor = (len(group.giving) / telling) ** 0.5 * group.error_scales.get(adapter.client, 1.0)
    found = errors(adapter, module, plan.dtype, plan.device, numbers)
    return [replace(u, scale=u.scale * factor) for u in found]
