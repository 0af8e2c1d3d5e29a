"""One client's failure is its own: it is watched while it is read, and left out where it breaks all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TypeVar

from clair_cli.errors import ClairError, Failed, contained, in_one_line
from clair_cli.formats.deadline import deadline
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS

Result = TypeVar("Result")


class Watch:
    """How long each of the clients has been read for, and how long it may.

    A client may take `seconds`, and twice what half of the clients have taken so far: where all are
    slow, none is at fault.
    """

    def __init__(self, clients: int, seconds: float) -> None:
        self.spent, self.seconds = [0.0] * clients, seconds

    @contextmanager
    def reading(self, client: int, what: str) -> Iterator[None]:
        """Reads something of the client at this position. Raises AdapterError, whatever goes wrong."""
        most = self.seconds + 2 * median(self.spent)
        began = time.monotonic()
        try:
            with contained(f"{what} cannot be read"), deadline(most - self.spent[client]):
                yield
        finally:
            self.spent[client] += time.monotonic() - began


def spared(
    compute: Callable[[Sequence[int]], Result], suspects: Sequence[int], what: str
) -> tuple[Result, dict[int, Reason]]:
    """compute(kept) of all positions in `suspects`, or without the few that make it fail, and why.

    A client is to blame if without it alone all goes well; where no single one is, the first suspect is
    left out, and so on. Raises what `compute` raises where fewer than MIN_CLIENTS are left, and at
    once where that is an error of clair's own.
    """
    kept, failed = sorted(suspects), dict[int, Reason]()
    while True:
        try:
            return compute(kept), failed
        except ClairError:
            raise
        except Exception as error:
            if len(kept) <= MIN_CLIENTS:
                raise
            text = (
                f"{what} fails with it: {in_one_line(error)}; retrain it, or leave this client out"
            )
        ordered = [k for k in suspects if k in kept]
        guilty = next((k for k in ordered if _computes(compute, kept, k)), ordered[0])
        failed[guilty] = Reason(Failed.code, text)
        kept.remove(guilty)


def _computes(compute: Callable[[Sequence[int]], object], kept: Sequence[int], out: int) -> bool:
    try:
        compute([k for k in kept if k != out])
    except ClairError:
        raise
    except Exception:
        return False
    return True
