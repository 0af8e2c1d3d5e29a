"""A cohort as tables of numbers: all that distances and verdicts rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clair_cli.detection.agreement import Array, Mask

if TYPE_CHECKING:
    from clair_cli.cohort import Cohort
    from clair_cli.detection.stacks import ModuleStack


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What is known of K clients in M modules, natural order of both.

    `inner`, `overlap` (M, K, K) as in `agreement`, `d_out`, `d_in` (M,), `members` (K,) the
    clients the decomposition left without S, `digests` K content hashes.
    """

    clients: tuple[str, ...]
    modules: tuple[str, ...]
    inner: Array
    overlap: Array
    d_out: Array
    d_in: Array
    members: Mask
    digests: tuple[str, ...]


def tabulated(cohort: Cohort, stacks: Sequence[ModuleStack], members: Mask) -> Tables:
    """The tables of a cohort from its stacks; `members` (K,) as in `Tables`."""
    from clair_cli.detection.stacks import tables

    inner, overlap, d_out, d_in = tables(stacks)
    return Tables(
        clients=tuple(a.client for a in cohort.clients),
        modules=cohort.modules,
        inner=inner,
        overlap=overlap,
        d_out=d_out,
        d_in=d_in,
        members=members,
        digests=tuple(a.digest for a in cohort.clients),
    )
