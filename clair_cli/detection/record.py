"""What one pass over a cohort found: handed on to the report and to refinement, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clair_cli.cohort import Cohort
from clair_cli.errors import TOO_FEW, NotFromSent
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS

if TYPE_CHECKING:
    from clair_cli.detection.solver import Decomposition
    from clair_cli.detection.stacks import ModuleStack
    from clair_cli.detection.verdicts import Judgement


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the numbers were computed: the device, and the threads of its linear algebra."""

    device: str = "none"
    threads: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """A judged cohort, or with no `judgement` one that was too small to judge.

    `stacks` are its modules in the order of `cohort.modules`. `decomposition` is that of the
    consensus, None without one; `solved` is the solver's own, which ended as it says.
    """

    cohort: Cohort
    stacks: tuple[ModuleStack, ...] = ()
    solved: Decomposition | None = None
    judgement: Judgement | None = None
    decomposition: Decomposition | None = None
    machine: Machine = Machine()

    @property
    def absolute(self) -> tuple[ModuleStack, ...]:
        """The modules whose updates mean something by themselves, if there are any; else all."""
        first = self.cohort.clients[0].updates
        return tuple(s for s in self.stacks if first[s.module].absolute) or self.stacks

    @property
    def counts_as(self) -> Mapping[str, str]:
        """Every judged client -> the one that it counts as: another one where it has copies."""
        names = [a.client for a in self.cohort.clients]
        judged = self.judgement
        if judged is None or judged.originals is None:
            return dict(zip(names, names, strict=True))
        return {name: names[k] for name, k in zip(names, judged.originals, strict=True)}

    @property
    def only_copied(self) -> frozenset[str]:
        """The clients of whom nothing is odd but that they have copies."""
        judged = self.judgement
        if judged is None or judged.copied is None:
            return frozenset()
        pairs = zip(self.cohort.clients, judged.copied, strict=True)
        return frozenset(a.client for a, copied in pairs if copied)


def too_few(cohort: Cohort) -> Reason | None:
    """Why nobody of the cohort can be judged, if so."""
    count = len(cohort.clients)
    if empty := next((r for r in cohort.findings if r.code == TOO_FEW), None):
        return empty
    strangers = sum(b.reason.code == NotFromSent.code for b in cohort.broken)
    if strangers > count:
        text = f"{strangers} clients were not trained from what --since names, and {count} were"
        return Reason("CLR308", f"{text}; give the adapter that these clients were sent")
    if count < MIN_CLIENTS:
        text = f"{count} usable {'client' if count == 1 else 'clients'}, at least 3 are needed"
        return Reason(TOO_FEW, f"{text} to tell who is the odd one out")
    if not cohort.modules:
        text = "the clients have no module in common, or all updates in those are zero"
        return Reason("CLR304", f"{text}; nothing is comparable")
    return None
