"""What each client changed since the adapter that it was sent, in factors: nothing is dense.

B_k A_k - B_0 A_0 = [B_k, -B_0] [A_k; A_0], scales included, whatever rank and format each has. From here
on every table and every norm is one of changes. In float32 the Gram matrices of a change a thousandth as
large as the adapter would be rounding errors, so changes are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clair_cli import formats
from clair_cli.cohort import Adapter
from clair_cli.detection.kept import Beside
from clair_cli.errors import AdapterError, NotFromSent, NoVerdict
from clair_cli.linalg import shortened
from clair_cli.report import Reason
from clair_cli.settings import DtypeName
from clair_cli.update import LowRankUpdate, combined, energy

ROUNDING = 2.0**-46
"""Energy of a change, of those of what was sent and came back, that storing in float32 alone may make:
its machine precision, squared. Who gives back what it was sent has changed nothing."""


class SentReader:
    """Reads one module of what clients were sent; what several were sent, once."""

    def __init__(self, module: str, dtype: DtypeName, device: str) -> None:
        self.module, self.dtype, self.device = module, dtype, device
        self.held: dict[int, LowRankUpdate] = {}

    def read(self, adapter: Adapter) -> LowRankUpdate | None:
        """The update that the client was sent; None where that is nothing. Raises NoVerdict."""
        since = adapter.since
        if since is None or self.module not in since.updates:
            return None
        if id(since) not in self.held:
            try:
                found = formats.read_update(since, self.module, self.dtype, self.device)
            except AdapterError as error:  # it was read a moment ago, so it has changed since
                raise NoVerdict(f"--since: {error}; run again") from error
            self.held[id(since)] = found
        return self.held[id(since)]


def change(update: LowRankUpdate, sent: LowRankUpdate | None) -> LowRankUpdate:
    """The update minus what was sent, (d_out, d_in), of rank r + r_0 or the least side at most; zero
    where it is no more than rounding."""
    if sent is None:
        return update
    both = combined([update, sent], [1.0, -1.0])
    if energy(both) <= ROUNDING * (energy(update) + energy(sent)):
        return both.zeroed()
    if both.rank <= min(len(both.up), both.down.shape[1]):
        return both
    return LowRankUpdate(*shortened(both.up, both.down), both.scale)


def without_sent(block: Tensor, adapter: Adapter, name: str, begin: int, end: int) -> Tensor:
    """Elements [begin, end) of a full matrix minus those that were sent, if it was, in this shape.

    Raises NoVerdict.
    """
    since = adapter.since
    if since is None or since.shape_of(name) != adapter.shape_of(name):
        return block
    try:
        sent = formats.read_full_elements(since, name, begin, end, "float64", str(block.device))
    except AdapterError as error:
        raise NoVerdict(f"--since: {error}; run again") from error
    return block - sent.reshape(block.shape)


class Held:
    """How much of what each of some clients was sent is in it, summed over modules."""

    def __init__(self) -> None:
        self.shared, self.sent = dict[int, float](), dict[int, float]()

    def add(self, k: int, beside: Beside) -> None:
        """What was found of one module of client k."""
        self.shared[k] = self.shared.get(k, 0.0) + (beside.shared or 0.0)
        self.sent[k] = self.sent.get(k, 0.0) + (beside.sent or 0.0)

    def share(self, k: int) -> float:
        """<Delta, sent> / ||sent||^2: 1 where all of it is there, 0 where nothing; 1 of nothing."""
        return self.shared[k] / self.sent[k] if self.sent.get(k, 0.0) > 0 else 1.0

    def strangers(self, kept: Sequence[int], least: float) -> dict[int, Reason]:
        """Of the clients at the positions `kept`, those that hold less than `least` of it, and why."""
        said = {k: self.share(k) for k in kept}
        return {
            k: Reason(
                NotFromSent.code,
                f"holds {100 * share:.0f} % of what it was sent, so it was trained from something "
                "else; train it from what was sent, or leave this client out",
                share,
                least,
            )
            for k, share in said.items()
            if not share >= least
        }
