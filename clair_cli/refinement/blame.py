"""Whose failure it is when refining fails: one client's, who is then left out, or clair's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from clair_cli.cohort import Adapter
from clair_cli.detection.guard import sifted
from clair_cli.errors import CHANGED, AdapterError, ClairError, Unstorable, in_one_line

Result = TypeVar("Result")


class LeftOut(ClairError):
    """Clients with whom refining fails, and how: it begins again without them.

    `unfit` are those in whose form the mean cannot be written, which costs them nothing.
    """

    def __init__(
        self, failed: Mapping[str, Exception], unfit: Mapping[str, Exception] | None = None
    ) -> None:
        super().__init__(f"fails with {', '.join([*failed, *(unfit or {})])}")
        self.failed, self.unfit = dict(failed), dict(unfit or {})

    def __reduce__(self) -> tuple[type[LeftOut], tuple[object, ...]]:
        return LeftOut, (self.failed, self.unfit)


def is_of_client(error: Exception) -> bool:
    """Whether it is the client's failure that it was raised over.

    Not so where an input has changed, or where nothing can be written.
    """
    if isinstance(error, ClairError):
        return isinstance(error, AdapterError | Unstorable) and not isinstance(error, CHANGED)
    return not isinstance(error, OSError)


@contextmanager
def of_client(client: str) -> Iterator[None]:
    """Whatever fails within is this client's failure. Raises LeftOut, and what is nobody's."""
    try:
        yield
    except Exception as error:
        if not is_of_client(error):
            raise
        raise LeftOut({client: error}) from error


@contextmanager
def noted(failed: dict[str, Exception]) -> Iterator[None]:
    """Those left out within are added to `failed`, and the block ends."""
    try:
        yield
    except LeftOut as error:
        failed |= error.failed | failed


def of_any(
    compute: Callable[[Sequence[int]], Result],
    clients: Sequence[Adapter],
    suspects: Sequence[int],
    all_of_them: bool,
) -> Result:
    """compute(suspects), positions in `clients`. Raises LeftOut of those with whom that fails.

    What fails with each of them alone is clair's own failure, and raised as it is, but of a few that
    are not `all_of_them`.
    """
    try:
        result, failed = sifted(compute, suspects, 1)
    except ClairError:
        raise
    except Exception as error:
        if all_of_them:
            raise
        raise LeftOut({clients[k].client: error for k in suspects}) from error
    if failed:
        raise LeftOut({clients[k].client: error for k, error in failed.items()})
    return result


def how(error: Exception) -> str:
    """What the failure was, in one line."""
    return str(error) if isinstance(error, ClairError) else in_one_line(error)
