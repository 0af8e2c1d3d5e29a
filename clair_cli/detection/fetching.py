"""The updates of the clients, one after the other: read when their turn comes, or ahead of it.

Where a device computes, a thread reads the next clients' updates and sends them there on a lane of
their own while the module at hand is compared. It goes over the same clients in the same order, under
the same watch, so that who fails, and why, does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor

from clair_cli.cohort import Adapter
from clair_cli.detection.guard import Watch
from clair_cli.detection.lanes import LANES, Lane, Ticket
from clair_cli.errors import AdapterError
from clair_cli.formats.ahead import Ahead
from clair_cli.settings import DtypeName, EngineName

ROOM = 2**27
"""Bytes of updates that wait on the device for their turn, beside those of the module at hand, or fewer
where the largest module of all clients is smaller. More are of no use: they do not come any faster."""

Part = TypeVar("Part")
Update = TypeVar("Update")


@dataclass(frozen=True, slots=True, eq=False)
class Fetched(Generic[Update]):
    """The update of the client at a position, or what was raised instead."""

    client: int
    update: Update | None
    error: Exception | None = None

    def get(self) -> Update:
        """The update. Raises what was raised instead."""
        if self.error is not None:
            raise self.error
        assert self.update is not None
        return self.update


@dataclass(frozen=True, slots=True, eq=False)
class _Sent(Generic[Part, Update]):
    """What was read ahead, of which part, and what says when it is on the device."""

    part: Part
    fetched: Fetched[Update]
    ticket: Ticket


def fetched(
    clients: Iterable[int], watch: Watch, what: str, read: Callable[[int], Update]
) -> Iterator[Fetched[Update]]:
    """What `read` gives of the client at each position, or the kind of AdapterError that it raises."""
    usual = watch.usual()
    for k in clients:
        try:
            with watch.reading(k, what, usual):
                found = Fetched(k, read(k))
        except AdapterError as error:
            found = Fetched(k, None, error)
        yield found


@contextmanager
def fetched_ahead(
    parts: Iterable[Part],
    fetch: Callable[[Part], Iterable[Fetched[Update]]],
    where: tuple[EngineName, str],
    room: int,
) -> Iterator[Iterator[tuple[Part, Iterator[Fetched[Update]] | None]]]:
    """Every part, for the block of a `with`, with what `fetch` gives of it, up to `room` bytes ahead and
    no more than ROOM. Nothing is read ahead but where the engine, the first of `where`, computes in this
    process, on a device that has lanes.

    A part must be used up before the next is taken, and `fetch` give something of each.
    """
    engine, device = where
    make = LANES.get(device) if engine == "local" else None
    if make is None:
        yield ((part, None) for part in parts)
        return
    lane = make()
    with Ahead(_sent(parts, fetch, lane), _bytes, min(room, ROOM)) as items:
        of_parts = groupby(items, lambda item: item.part)
        yield ((part, _received(of_part, lane)) for part, of_part in of_parts)


def largest(adapters: Sequence[Adapter], modules: Iterable[str], dtype: DtypeName) -> int:
    """Bytes that the factors of all clients take of the module of which they take most."""
    specs = ([a.updates[module] for a in adapters] for module in modules)
    numbers = (sum(s.rank * (s.d_out + s.d_in) for s in of_module) for of_module in specs)
    width: int = getattr(torch, dtype).itemsize
    return width * max(numbers, default=0)


def _sent(
    parts: Iterable[Part], fetch: Callable[[Part], Iterable[Fetched[Update]]], lane: Lane
) -> Generator[_Sent[Part, Update], None, None]:
    """Runs in the thread that reads ahead."""
    with lane.within():
        for part in parts:
            for one in fetch(part):
                yield _Sent(part, one, lane.sent(_tensors(one)))


def _received(items: Iterator[_Sent[Part, Update]], lane: Lane) -> Iterator[Fetched[Update]]:
    """Runs in the thread that computes."""
    for item in items:
        lane.received(item.ticket, _tensors(item.fetched))
        yield item.fetched


def _tensors(fetched: Fetched[Update]) -> list[Tensor]:
    """All that the update, a record, holds."""
    if fetched.update is None:
        return []
    held = (getattr(fetched.update, f.name) for f in fields(fetched.update))  # type: ignore[arg-type]
    return [x for x in held if isinstance(x, Tensor)]


def _bytes(item: _Sent[Part, Update]) -> int:
    return sum(tensor.nbytes for tensor in _tensors(item.fetched))
