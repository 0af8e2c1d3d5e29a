"""One module of one group, read and put into common coordinates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeVar

from clair_cli.cohort import Adapter
from clair_cli.detection.changes import SentReader
from clair_cli.detection.fetching import Fetched, fetched_ahead, largest
from clair_cli.detection.reading import nothing, read_estimate
from clair_cli.refinement.blame import LeftOut, noted, of_any, of_client
from clair_cli.refinement.module import ModuleRefiner
from clair_cli.refinement.plan import Group, Plan
from clair_cli.refinement.replicates import errors, replicated
from clair_cli.update import LowRankUpdate

Result = TypeVar("Result")
Stored = Iterator[Fetched[LowRankUpdate]]
Item = tuple[str, Collection[str]]
"""A module, and who has failed before and is not read."""


def on_module(
    plan: Plan,
    which: int,
    module: str,
    compute: Callable[[ModuleRefiner], Result],
    gone: Collection[str] = (),
    stored: Stored | None = None,
) -> Result:
    """compute(refiner) of one module of a group, those that are `gone` counted as zero. The updates of
    the others are the next ones of `stored`, where they are read ahead.

    Raises AdapterError where an input changed, LeftOut of those with whom it fails.
    """
    group = plan.groups[which]
    if stored is None:
        stored = _stored(plan, [group], module, gone)
    updates, noise, failed = _read(plan, group, module, gone, stored)
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
) -> AbstractContextManager[Iterator[tuple[Item, Stored | None]]]:
    """The items; where this process computes them on a device, with the updates, read ahead."""
    everybody = [adapter for group in plan.groups for adapter in group.clients]
    room = largest(everybody, plan.modules, plan.dtype)

    def fetch(item: Item) -> Stored:
        return _stored(plan, plan.groups, *item)

    return fetched_ahead(items, fetch, (plan.settings.engine, plan.device), room)


def _stored(plan: Plan, groups: Sequence[Group], module: str, gone: Collection[str]) -> Stored:
    """The updates of the clients of these groups that are not gone, one after the other."""
    for group in groups:
        for k, adapter in enumerate(group.clients):
            if adapter.client in gone:
                continue
            try:
                found = Fetched(k, read_estimate(adapter, module, plan.dtype, plan.device))
            except Exception as error:  # whose it is, is asked where it is looked at
                found = Fetched(k, None, error)
            yield found


def _read(
    plan: Plan, group: Group, module: str, gone: Collection[str], stored: Stored
) -> tuple[list[LowRankUpdate], list[LowRankUpdate], dict[str, Exception]]:
    """The updates of all clients, those of the estimation error, and who could not be read."""
    updates, noise, failed = list[LowRankUpdate](), list[LowRankUpdate](), dict[str, Exception]()
    telling = _telling(group)
    for adapter in group.clients:
        update = nothing(adapter, module, plan.dtype, plan.device)
        if adapter.client not in gone:
            with noted(failed), of_client(adapter.client):
                update = next(stored).get()
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
