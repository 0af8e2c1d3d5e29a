"""Engines: where jobs run. A job carries names and paths, never tensors, and opens what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, get_args

from clair_cli.engines.cluster import RayEngine
from clair_cli.settings import EngineName

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """An ordered map. Law: results come in the order of the items, and a failing job surfaces."""

    def map(
        self,
        job: Callable[[Item], Result],
        items: Iterable[Item],
        at: Callable[[Item], str] | None = None,
    ) -> Iterator[Result]:
        """job(item) for every item, in order; few results are alive at a time where the caller lets go.

        Items are asked for when there is room for them. `at` names the machine that one had better be
        worked on, or none by an empty name.
        """

    def everywhere(self, job: Callable[[], object]) -> None:
        """Run the job once on every machine."""


class LocalEngine:
    """One after the other in this process: the linear algebra inside a job uses the threads."""

    def map(
        self,
        job: Callable[[Item], Result],
        items: Iterable[Item],
        at: Callable[[Item], str] | None = None,
    ) -> Iterator[Result]:
        """Each result is computed when it is asked for."""
        return map(job, items)

    def everywhere(self, job: Callable[[], object]) -> None:
        """Here."""
        job()


ENGINES: dict[EngineName, Engine] = {"local": LocalEngine(), "ray": RayEngine()}
assert set(ENGINES) == set(get_args(EngineName))


def choose(name: EngineName) -> Engine:
    """The engine of that name."""
    return ENGINES[name]
