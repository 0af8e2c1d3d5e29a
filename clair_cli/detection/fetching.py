"""The updates of the clients, one after the other: read when their turn comes, or ahead of it.

Where a device computes, a thread reads the next clients' updates and sends them there on a lane of
their own while the module at hand is compared. It goes over the same clients in the same order, under
the same watch, so that who fails, and why, does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor

from clair_cli.cohort import Adapter
from clair_cli.detection.lanes import LANES, Lane, Ticket
from clair_cli.formats.ahead import Ahead
from clair_cli.settings import DtypeName, EngineName

ROOM = 2**27
"""Bytes of updates that wait on the device for their turn, beside those of the module at hand, or fewer
where the largest module of all clients is smaller. More are of no use: they do not come any faster."""

Part = TypeVar("Part")
Key = TypeVar("Key")
Update = TypeVar("Update")


@dataclass(frozen=True, slots=True, eq=False)
class _Sent(Generic[Part, Key, Update]):
    """What was read ahead, of which part and client, or what was raised instead; and what says when it
    is on the device."""

    part: Part
    client: Key
    update: Update | None
    error: Exception | None
    ticket: Ticket


@contextmanager
def fetched_ahead(
    parts: Iterable[Part],
    clients: Callable[[Part], Iterable[Key]],
    reader: Callable[[Part], Callable[[Key], Update]],
    where: tuple[EngineName, str],
    room: Callable[[], int],
) -> Iterator[Iterator[tuple[Part, Callable[[Key], Update] | None]]]:
    """Every part, for the block of a `with`, with what gives each of its `clients`' updates, in their
    order: what `reader(part)` gives or raises, up to `room()` bytes ahead and no more than ROOM.

    Nothing is read ahead, and None given, but where the engine, the first of `where`, computes in this
    process, on a device that has lanes. A part must be done with before the next is taken; clients that
    are not asked for are skipped.
    """
    engine, device = where
    make = LANES.get(device) if engine == "local" else None
    if make is None:
        yield ((part, None) for part in parts)
        return
    lane = make()
    with Ahead(_sent(parts, clients, reader, lane), _bytes, min(room(), ROOM)) as items:
        of_parts = groupby(items, lambda item: item.part)
        yield ((part, partial(_received, of_part, lane)) for part, of_part in of_parts)


def largest(adapters: Sequence[Adapter], modules: Iterable[str], dtype: DtypeName) -> int:
    """Bytes that the factors of all clients take of the module of which they take most."""
    specs = ([a.updates[module] for a in adapters] for module in modules)
    numbers = (sum(s.rank * (s.d_out + s.d_in) for s in of_module) for of_module in specs)
    width: int = getattr(torch, dtype).itemsize
    return width * max(numbers, default=0)


def _sent(
    parts: Iterable[Part],
    clients: Callable[[Part], Iterable[Key]],
    reader: Callable[[Part], Callable[[Key], Update]],
    lane: Lane,
) -> Generator[_Sent[Part, Key, Update], None, None]:
    """Runs in the thread that reads ahead."""
    with lane.within():
        for part in parts:
            read = reader(part)
            for client in clients(part):
                try:
                    update = read(client)
                except Exception as error:
                    yield _Sent(part, client, None, error, None)
                else:
                    yield _Sent(part, client, update, None, lane.sent(_tensors(update)))


def _received(items: Iterator[_Sent[Part, Key, Update]], lane: Lane, client: Key) -> Update:
    """Runs in the thread that computes."""
    item = next(item for item in items if item.client == client)
    if item.error is not None:
        raise item.error
    assert item.update is not None
    lane.received(item.ticket, _tensors(item.update))
    return item.update


def _tensors(update: object) -> list[Tensor]:
    """All that an update, a record, holds."""
    held = (getattr(update, f.name) for f in fields(update))  # type: ignore[arg-type]
    return [x for x in held if isinstance(x, Tensor)]


def _bytes(item: _Sent[Part, Key, Update]) -> int:
    return 0 if item.update is None else sum(tensor.nbytes for tensor in _tensors(item.update))
