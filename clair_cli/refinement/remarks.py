"""What a reader should know before the refined adapters are used, in sentences."""

from __future__ import annotations

from clair_cli.report import Refinement
from clair_cli.settings import Settings

MUCH = 0.5
"""Share of the change from which on the cut to the written rank is said to cost much of it."""


def warnings(done: Refinement, settings: Settings, relative: bool) -> list[str]:
    """What the knowledge, the replicates and the rank leave to be said.

    `relative`: the adapters are known only up to a part that all share.
    """
    found = []
    alone = done.knowledge == "adapters alone"
    if alone and done.averaged_away > 0 and done.expected is not None:
        found.append(
            "adapters alone cannot tell noise from honest difference: refining pays where more than "
            f"{100 * done.expected.break_even:.0f} % of the differences are noise, and costs where "
            "less are; replicates tell (rep-* folders), and so does a choice on each client's own "
            "data (--path, then clair select)"
        )
    if done.expected is not None and done.expected.gain is not None and done.expected.gain < 0:
        found.append(
            "by the replicates, this strength takes away more honest difference than noise"
        )
    if settings.replicates == "checkpoints" and not alone:
        found.append(
            "checkpoints of one run share their data, so the noise is larger than they show"
        )
    worst = max((c.truncation_error for c in done.clients), default=0.0)
    change = max((c.change for c in done.clients), default=0.0)
    if settings.rank != "exact" and not relative and worst > MUCH * change > 0:
        found.append(
            "the rank written cuts off much of the change; --rank exact, or a larger one, keeps it"
        )
    return found
