"""Rows of large tables a few at a time: what is computed of them stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 2**17
"""Numbers of a table that are worked on together."""


def blocks(count: int, width: int | None = None) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers, by default of a table (count, count)."""
    step = max(BLOCK // max(width or count, 1), 1)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
