"""Reading ahead: what an iterator gives is made in a thread of its own while what it gave is used."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Generic, TypeVar

from clair_cli.formats.deadline import Stopped, deadline

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """The items of `source`, in order, for the block of a `with`.

    The next item is begun while none waits to be taken, or fewer than `room` bytes, as `size` counts
    them, so that no more than `room` and one item do. What `source` raises is raised where its item
    would have come. At the end of the block `source` is stopped wherever it reads, and waited for.
    """

    def __init__(
        self, source: Generator[Item, None, None], size: Callable[[Item], int], room: int
    ) -> None:
        self._source, self._size, self._room = source, size, room
        self._items: deque[tuple[int, Item]] = deque()
        self._waiting, self._done = 0, False
        self._error: BaseException | None = None
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="reading ahead", daemon=True)

    def __enter__(self) -> Ahead[Item]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._done)
            if self._items:
                size, item = self._items.popleft()
                self._waiting -= size
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _run(self) -> None:
        try:
            with deadline(math.inf, self._stop), closing(self._source):
                while self._has_room():
                    self._give(next(self._source))
        except (StopIteration, Stopped):
            pass
        except BaseException as error:  # raised again where its item would have come
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits for it; False once nobody takes anything any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._items or self._waiting < self._room or self._stop.is_set()
            )
        return not self._stop.is_set()

    def _give(self, item: Item) -> None:
        size = self._size(item)
        with self._changed:
            self._items.append((size, item))
            self._waiting += size
            self._changed.notify_all()
