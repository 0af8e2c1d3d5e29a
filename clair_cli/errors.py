"""Every error clair raises on purpose, each with its exit code or its reason code.

An error carries one message that says what, where, what was expected and what to do, in one line, so
that it survives pickling between processes unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TOO_FEW = "CLR301"
"""The code of a folder with too few clients, or none."""


class ClairError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns for it."""

    exit_code = 70

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])


class UsageError(ClairError):
    """A bad option or path; nothing was written."""

    exit_code = 2


class SettingError(UsageError):
    """A setting that holds what it must not; the message begins with its name and a colon."""


class NoVerdict(ClairError):
    """The clients cannot be judged: too few, nothing comparable, not identifiable."""

    exit_code = 3


class OutputError(ClairError):
    """The result was computed but could not be written."""

    exit_code = 4


class Unstorable(OutputError):
    """One client's adapter cannot hold what is to be written, as by its dtype: it alone gets none."""


class AdapterError(ClairError):
    """One adapter cannot be used: its client is `broken`, the others are still judged."""

    exit_code = 1
    code = "CLR101"


class Unreadable(AdapterError):
    """The operating system refused, or there is nothing to read."""

    code = "CLR101"


class Malformed(AdapterError):
    """The bytes are not a well-formed safetensors file."""

    code = "CLR102"


class NonFinite(AdapterError):
    """NaN, Inf, or numbers whose products overflow."""

    code = "CLR103"


class ShapeMismatch(AdapterError):
    """Shapes or ranks contradict each other or the config."""

    code = "CLR104"


class ConfigInvalid(AdapterError):
    """adapter_config.json is missing, malformed, or lacks what the scale needs."""

    code = "CLR105"


class OtherBase(AdapterError):
    """Made from another base model than the one it is compared with."""

    code = "CLR106"


class Unsupported(AdapterError):
    """A kind of adapter clair does not read, named, with the remedy."""

    code = "CLR108"


class PickleFound(AdapterError):
    """Only a pickle file is there; clair never opens one."""

    code = "CLR109"


class UnsafePath(AdapterError):
    """A special file, an escaping link, or a name that cannot be used safely."""

    code = "CLR110"


class LimitExceeded(AdapterError):
    """Larger than a limit that protects this process."""

    code = "CLR111"


class ChangedWhileRead(AdapterError):
    """The file is no longer the one that was opened first."""

    code = "CLR112"


class NoAdapter(AdapterError):
    """A folder without any file that could be an adapter: no client, and nothing broken."""

    code = "CLR117"


class NotFromSent(AdapterError):
    """It was trained from something else than the server sent: what it changed is not known."""

    code = "CLR123"


class Failed(AdapterError):
    """Reading it, or computing with it, failed in a way that no check foresaw."""

    code = "CLR120"


class SketchUnusable(AdapterError):
    """A sketch of another kind than it is compared with, or whose numbers contradict each other."""

    code = "CLR124"


CHANGED = (Unreadable, UnsafePath, ChangedWhileRead)
"""What an input raises that was read before, and is no longer what it was."""


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Whatever fails within is one client's failure: Failed, but for errors that clair raises itself."""
    try:
        yield
    except ClairError:
        raise
    except Exception as error:
        raise Failed(
            f"{what}: {in_one_line(error)}; retrain it, or leave this client out"
        ) from None


def in_one_line(error: BaseException) -> str:
    """The kind of the error and the begin of what it says."""
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
