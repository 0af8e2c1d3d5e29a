"""Engines: where jobs run. A job carries names and paths, never tensors, and opens what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, get_args

from clair_cli.settings import EngineName

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """An ordered map. Law: results come in the order of the items, and a failing job surfaces."""

    def map(self, job: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """job(item) for every item, in order; one result is alive at a time where the caller lets go."""


class LocalEngine:
    """One after the other in this process: the linear algebra inside a job uses the threads."""

    def map(self, job: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Each result is computed when it is asked for."""
        return map(job, items)


ENGINES: dict[EngineName, Engine] = {"local": LocalEngine()}
assert set(ENGINES) == set(get_args(EngineName))


def choose(name: EngineName) -> Engine:
    """The engine of that name."""
    return ENGINES[name]
