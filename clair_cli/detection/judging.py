"""The clients judged together, without those with whom that cannot be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clair_cli.cohort import Cohort
from clair_cli.detection.copies import copies
from clair_cli.detection.full import FullTables
from clair_cli.detection.guard import spared
from clair_cli.detection.record import Detection, Machine
from clair_cli.detection.solver import decompose, settled
from clair_cli.detection.stacks import ModuleStack
from clair_cli.detection.tables import tabulated
from clair_cli.detection.verdicts import judge
from clair_cli.progress import Progress, silent
from clair_cli.settings import MIN_CLIENTS, Settings


def judged(
    cohort: Cohort,
    stacks: tuple[ModuleStack, ...],
    full: FullTables,
    settings: Settings,
    machine: Machine,
    on_progress: Progress = silent,
) -> Detection:
    """Decompose the stacks and judge all; without those who make that fail, and are broken."""
    compute = partial(_judged, cohort, stacks, full, settings, machine, on_progress)
    detection, failed = spared(compute, _outermost(stacks), "the joint decomposition")
    return replace(detection, cohort=cohort.without(failed)) if failed else detection


def _judged(
    cohort: Cohort,
    stacks: tuple[ModuleStack, ...],
    full: FullTables,
    settings: Settings,
    machine: Machine,
    on_progress: Progress,
    kept: Sequence[int],
) -> Detection:
    """Those at the positions `kept`."""
    if len(kept) < len(cohort.clients):
        cohort = replace(cohort, clients=tuple(cohort.clients[k] for k in kept))
        stacks, full = tuple(s.select(kept) for s in stacks), full.select(kept)
    originals = _originals(cohort, stacks, settings)
    counted = np.unique(originals)
    alone = [s.select(counted.tolist()) for s in stacks] if len(counted) < len(kept) else stacks
    found = decompose(alone, settings.detection, settings.seed, on_progress)
    solved = found.of_all(originals)
    judgement = judge(tabulated(cohort, stacks, solved, full), settings)
    on_progress("judging", 1, 1)
    decomposition = None
    if judgement.identified:
        after = settled(found, alone, judgement.consensus[counted], settings)
        decomposition = solved if after is found else after.of_all(originals)
        on_progress("decomposing", 1, 1)
    return Detection(cohort, stacks, solved, judgement, decomposition, machine)


def _originals(
    cohort: Cohort, stacks: Sequence[ModuleStack], settings: Settings
) -> NDArray[np.intp]:
    """Whom each client counts as in the decomposition, (K,): itself, where too few would be left."""
    inner = [s.inner.numpy() for s in stacks]
    found = copies(inner, [a.digest for a in cohort.clients], settings.detection)
    enough = found.first.sum() >= MIN_CLIENTS
    return found.originals if enough else np.arange(len(found.originals))


def _outermost(stacks: Sequence[ModuleStack]) -> list[int]:
    """All positions, those whose norms are furthest from the usual ones in any module first."""
    sizes = np.stack([s.energies.numpy() for s in stacks]).clip(min=np.finfo(float).tiny)
    with np.errstate(all="ignore"):
        far = np.abs(np.log(sizes) - np.median(np.log(sizes), axis=1, keepdims=True)).max(axis=0)
    return list(np.argsort(-np.nan_to_num(far, nan=np.inf), kind="stable"))
