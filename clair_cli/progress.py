"""How long work says how far it is, to whoever asks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is; 0: not known."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing, for whoever does not ask how far it is."""
