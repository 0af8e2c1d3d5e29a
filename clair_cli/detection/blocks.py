"""Rows of large tables a few at a time: what is computed of them stays in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Found = TypeVar("Found")
BLOCK = 2**17
"""Numbers of a table that are worked on together."""
THREADS = 2
"""Threads that judge where no number is given; the verdicts are the same with any."""


def blocks(count: int, width: int | None = None) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers, by default of a table (count, count)."""
    step = max(BLOCK // max(width or count, 1), 1)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def each(parts: Iterable[Part], do: Callable[[Part], Found], threads: int | None) -> list[Found]:
    """What `do` makes of each part, in their order, by several threads where there are several."""
    some = list(parts)
    if len(some) < 2 or threads == 1:
        return [do(part) for part in some]
    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, THREADS)) as pool:
        return list(pool.map(do, some))
