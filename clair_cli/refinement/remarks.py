"""What a reader should know before the refined adapters are used, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.cohort import Adapter
from clair_cli.refined import Refinement
from clair_cli.refinement.whole import FullMatrices
from clair_cli.settings import Settings

MUCH = 0.5
"""Share of the change from which on the cut to the written rank is said to cost much of it."""


GUESSES = {
    "same": "one task, whose mean all get",
    "related": "related tasks, which keep half of their own",
    "own": "tasks of their own, which every client keeps",
}
"""What the clients' tasks were taken for."""


def warnings(
    done: Refinement,
    settings: Settings,
    relative: bool,
    alone: Sequence[str] = (),
    refused: str | None = None,
) -> list[str]:
    """What the knowledge, the replicates and the rank leave to be said.

    `relative`: the adapters are known only up to a part that all share. `alone` are the full matrices
    that every client keeps, `refused` is why there is no global adapter.
    """
    found = [refused] if refused else []
    if done.guessed and done.knowledge == "adapters alone" and done.tasks is not None:
        found.append(
            f"guessed from the adapters: {GUESSES[done.tasks]}; --tasks same, related or own says "
            "what you know"
        )
    if alone:
        found.append(
            f"{_few(alone)} began differently in every client, and their mean means nothing: every "
            "client keeps its own"
        )
    blind = done.knowledge == "adapters alone"
    if blind and done.averaged_away > 0 and done.expected is not None:
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
    if settings.replicates == "checkpoints" and not blind:
        found.append(
            "checkpoints of one run share their data, so the noise is larger than they show"
        )
    worst = max((c.truncation_error for c in done.clients), default=0.0)
    change = max((c.change for c in done.clients), default=0.0)
    if settings.rank not in ("exact", "auto") and not relative and worst > MUCH * change > 0:
        found.append(
            "the rank written cuts off much of the change; --rank exact, or a larger one, keeps it"
        )
    return found


def not_averaged(template: Adapter | None, full: FullMatrices) -> str | None:
    """Why the mean cannot be written with the config of `template`, if so: a full matrix of a single
    client would stand in it, or nobody's config and dtype hold it, who would be one."""
    if template is None:
        return "global/ is not written: the adapter of no client can hold the mean"
    own = [name for name in template.full if name not in full.names]
    if not own:
        return None
    return (
        f"global/ is not written: the mean of {_few(own)} means nothing, or not all clients have it, "
        "and one client's would stand for all; train with one seed for it, or without it"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + " ..." * (len(names) > 3)
