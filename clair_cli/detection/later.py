"""Whether adapters look like those of a later round, which are mostly what the server sent to all.

In a later round every adapter is the one that was sent and a change; even who was trained on something
else agrees with everybody. In a first round no client agrees with the others but by its task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clair_cli.cohort import Cohort
from clair_cli.detection.agreement import Array, cosines
from clair_cli.detection.calibration import DetectionCalibration
from clair_cli.detection.stacks import ModuleStack, tables
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS

SAME = 1 - 1e-6
"""Cosine of copies, up to the rounding of float32."""


def later_round(
    cohort: Cohort, stacks: Sequence[ModuleStack], numbers: DetectionCalibration
) -> Reason | None:
    """That the clients agree far beyond what separate trainings do; None where they do not, or where
    updates mean nothing by themselves. Changes that agree so hold what was sent later than `since`."""
    if len(cohort.clients) < MIN_CLIENTS:
        return None
    first = cohort.clients[0].updates
    told = [s for s in stacks if first[s.module].absolute and first[s.module].rule != "matrix"]
    if not told:
        return None
    found = likeness(tables(told)[0])
    if not found >= numbers.round_likeness:
        return None
    if any(a.since is not None for a in cohort.clients):
        text = (
            f"the changes of two clients have a cosine of {found:.2f}, as if they shared what was sent "
            "after --since: is it an earlier round's adapter? Contamination hides behind that"
        )
    else:
        text = (
            f"two clients have a cosine of {found:.2f}, as adapters of a later round do, which are "
            "mostly what the server sent: if they are, give it with --since, or contamination hides "
            "behind it"
        )
    return Reason("CLR307", text, found, numbers.round_likeness)


def likeness(inner: Array) -> float:
    """The usual cosine of two whole adapters, median of each client's median, from inner products
    (modules, K, K) in which every module counts alike. Copies, and clients of zeros, do not count."""
    norms = np.sqrt(np.einsum("mkk->mk", inner).clip(min=0))
    usual = np.median(norms, axis=1)
    unit = np.where(usual > 0, usual, norms.max(axis=1))
    unit = np.where(unit > 0, unit, 1.0)[:, None, None]
    cosine = cosines((inner / unit**2).sum(axis=0)[None])[0]
    there = norms.max(axis=0) > 0
    counts = (cosine < SAME) & there & there[:, None]
    np.fill_diagonal(counts, False)
    medians = [np.median(row[who]) for row, who in zip(cosine, counts, strict=True) if who.any()]
    return float(np.median(medians)) if medians else 0.0
