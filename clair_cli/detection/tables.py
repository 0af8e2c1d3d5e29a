"""A cohort as tables of numbers: all that distances and verdicts rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clair_cli.detection.agreement import Array, Mask

if TYPE_CHECKING:
    from clair_cli.cohort import Adapter, Cohort
    from clair_cli.detection.full import FullTables
    from clair_cli.detection.solver import Decomposition
    from clair_cli.detection.stacks import ModuleStack


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What is known of K clients in M modules, natural order of both.

    `inner`, `overlap` (M, K, K) as in `agreement`, `d_out`, `d_in` (M,), `members` (K,) the
    clients the decomposition left without S, `digests` K content hashes, `full` the matrices that were
    trained whole. `rows` (K, K) are the mean squared cosines of the clients' row spaces, `ranks` (K,)
    the mean ranks of their updates. `absolute` (M,) are the modules whose updates mean something by
    themselves; None: all. `unexplained` (K,) is the energy outside of M and U, in usual energies.
    """

    clients: tuple[str, ...]
    modules: tuple[str, ...]
    inner: Array
    overlap: Array
    d_out: Array
    d_in: Array
    members: Mask
    digests: tuple[str, ...]
    full: FullTables | None = None
    rows: Array | None = None
    ranks: Array | None = None
    absolute: Mask | None = None
    unexplained: Array | None = None


def tabulated(
    cohort: Cohort,
    stacks: Sequence[ModuleStack],
    solved: Decomposition,
    full: FullTables | None = None,
) -> Tables:
    """The tables of a cohort from its stacks and what the solver made of them; `full` as in `Tables`."""
    from clair_cli.detection.stacks import tables

    inner, overlap, d_out, d_in = tables(stacks)
    return Tables(
        clients=tuple(a.client for a in cohort.clients),
        modules=cohort.modules,
        inner=inner,
        overlap=overlap,
        d_out=d_out,
        d_in=d_in,
        members=solved.members,
        digests=tuple(a.digest for a in cohort.clients),
        full=full,
        rows=np.mean([s.rows.numpy() for s in stacks], axis=0) if stacks else None,
        absolute=np.array([cohort.clients[0].updates[m].absolute for m in cohort.modules]),
        ranks=np.array([_rank(a, cohort.modules) for a in cohort.clients]),
        unexplained=solved.unexplained(),
    )


def _rank(adapter: Adapter, modules: Sequence[str]) -> float:
    return float(np.mean([adapter.updates[m].rank for m in modules])) if modules else 0.0
