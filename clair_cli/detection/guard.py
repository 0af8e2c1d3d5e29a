"""One client's failure is its own: it is watched while it is read, and left out where it breaks all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Generic, TypeVar

from clair_cli.errors import ClairError, Failed, contained, in_one_line
from clair_cli.formats.deadline import check_time, deadline
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS

Result = TypeVar("Result")

FIRST_TRIES = 32
"""Positions of which every two are once believed without a trial: a minority is not all of them."""


class Watch:
    """How long each of some clients has been read for, and how long it may.

    A client may take `seconds`, and twice what half of the clients have taken so far: where all are
    slow, none is at fault. `usual` is what half of all had taken when these were chosen among them.
    """

    def __init__(self, clients: Iterable[int], seconds: float) -> None:
        self.spent, self.seconds, self.least = dict.fromkeys(clients, 0.0), seconds, 0.0
        self.added: dict[int, float] = {}

    def of(self, clients: Iterable[int], usual: float) -> Watch:
        """What a job on these clients is to know, and what is `usual()` now. It adds to `added`."""
        part = Watch((), self.seconds)
        part.spent, part.least = {k: self.spent[k] for k in clients}, usual
        return part

    def add(self, added: Mapping[int, float]) -> None:
        """What a job has added."""
        for client, seconds in added.items():
            self.spent[client] += seconds

    def usual(self) -> float:
        """Seconds that half of the clients have taken so far."""
        return max(self.least, median(self.spent.values()))

    @contextmanager
    def reading(self, client: int, what: str, usual: float | None = None) -> Iterator[None]:
        """Reads something of the client at this position. Raises AdapterError, whatever goes wrong.

        `usual` is `usual()`, where the caller has asked for it lately. A client that has no time left
        is not read.
        """
        most = self.seconds + 2 * (self.usual() if usual is None else usual)
        began = time.monotonic()
        try:
            with contained(f"{what} cannot be read"), deadline(most - self.spent[client]):
                check_time()
                yield
        finally:
            taken = time.monotonic() - began
            self.spent[client] += taken
            self.added[client] = self.added.get(client, 0.0) + taken


def spared(
    compute: Callable[[Sequence[int]], Result], suspects: Sequence[int], what: str
) -> tuple[Result, dict[int, Reason]]:
    """compute(kept) of all positions in `suspects`, or without those that make it fail, and why.

    As `sifted`, where MIN_CLIENTS are needed.
    """
    result, errors = sifted(compute, suspects, MIN_CLIENTS)
    remedy = "retrain it, or leave this client out"
    failed = {k: f"{what} fails with it: {in_one_line(error)}" for k, error in errors.items()}
    return result, {k: Reason(Failed.code, f"{text}; {remedy}") for k, text in failed.items()}


def sifted(
    compute: Callable[[Sequence[int]], Result], suspects: Sequence[int], least: int
) -> tuple[Result, dict[int, Exception]]:
    """compute(kept) of all positions in `suspects`, or without those that make it fail, and how.

    They are found by halving, so that few trials suffice, the least suspect first. Raises what
    `compute` raises where fewer than `least` would be left, and at once where that is an error of
    clair's own.
    """
    trial = _Trial(compute, least)
    order = suspects[::-1]
    for first in range(0, min(len(order), FIRST_TRIES), 2):  # two are believed without a trial
        trial.begin()
        trial.admit([*order[first:], *order[:first]])
        if trial.result is not None:
            return trial.result, trial.failed
    assert trial.error is not None
    raise trial.error


class _Trial(Generic[Result]):
    """Positions with which `compute` goes well together, taken in one group after the other."""

    def __init__(self, compute: Callable[[Sequence[int]], Result], least: int) -> None:
        self.compute, self.least = compute, least
        self.error: Exception | None = None
        self.begin()

    def begin(self) -> None:
        """Nobody is in, nobody is out."""
        self.kept, self.failed = list[int](), dict[int, Exception]()
        self.result: Result | None = None

    def admit(self, group: Sequence[int]) -> None:
        """Take in all of the group, or of its halves, or call a single one the reason of a failure."""
        together = sorted([*self.kept, *group])
        if len(together) < self.least:
            self.kept = together
            return
        try:
            self.result, self.kept = self.compute(together), together
            return
        except ClairError:
            raise
        except Exception as error:
            self.error = self.error or error
            found = error
        if len(group) == 1:
            self.failed[group[0]] = found
            return
        half = len(group) // 2
        self.admit(group[:half])
        self.admit(group[half:])
