"""What classifiers' heads have learned, where all began as one: the mean of the rows tells the start.

The gradient of a softmax sums to nothing over the labels, so training moves the mean of a head's rows
little. Optimizers that scale every entry by itself move it along few directions, in which clients with
other labels differ most. What the means have in common beside these is where they began. Heads begin
with entries drawn alike, so they had as much in every other direction of the labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.detection.full import FullTables
from clair_cli.detection.residuals import inverse
from clair_cli.detection.scales import median, quantile

DIRECTIONS, ROUNDING = 2, 1e-9
"""In which the mean rows moved most, left out; energy of one, of all, that is rounding."""
UNSURE = 0.5
"""Of the start's energy: how well it is known, and so the least that a head is taken to have learned."""
MANY, SWEEPS = 512, 30
"""Clients from which on these directions are found by subspace iteration, and its steps."""


def learned(
    full: FullTables, f: int, distinct: Mask, numbers: DetectionCalibration = DETECTION
) -> Array:
    """Inner products (K, K) of matrix f without the start that the clients share, where it is told.

    The start has, in the mean of the rows, the energy that two clients share there, by the lower
    quartile of those most alike: who moved least tells most of it. In the C - 1 other directions it has
    as much each. Of a pair as much is taken off as its mean rows are alike.
    """
    inner, head = full.inner[f], full.heads.get(f)
    who = np.flatnonzero(full.present[f] & distinct)
    if head is None or len(who) <= 2 * DIRECTIONS:
        return np.asarray(inner)
    mean = head.sums / head.labels
    rest = inner - mean
    core = _most_alike(mean, who)
    still = _without_moved(mean[np.ix_(core, core)]) / (1 - DIRECTIONS / head.width)
    shared = quantile(agreement.pairs_of(still, np.arange(len(core))), 0.25)
    alike = shared >= numbers.head_start_alike * quantile(still.diagonal(), 0.25) > 0
    start = (head.labels - 1) * shared
    common = quantile(agreement.pairs_of(rest, who), 0.75)
    if not alike or start >= numbers.head_start_most * common:
        return np.asarray(inner)
    part = start * (mean / shared).clip(0, 1)
    found = rest - part
    least = UNSURE * part.diagonal()  # of a head that hardly moved
    np.fill_diagonal(found, np.maximum(found.diagonal(), least))
    return np.asarray(found)


def _most_alike(table: Array, who: NDArray[np.intp]) -> NDArray[np.intp]:
    """More than half of the clients `who`: those whose usual cosine with the others is largest."""
    one = inverse(np.sqrt(table.diagonal().clip(min=0)))
    usual = [median((table[k] * one)[who[who != k]]) * one[k] for k in who]
    return np.sort(who[np.argsort(usual, kind="stable")[::-1][: len(who) // 2 + 1]])


def _without_moved(table: Array) -> Array:
    """Inner products (K, K) without the directions in which the clients differ most."""
    centred = _centred(_centred(table).T)
    if len(table) < MANY:
        values, vectors = np.linalg.eigh(centred)
    else:
        basis = centred[:, np.argsort(centred.diagonal())[-DIRECTIONS:]]
        for _ in range(SWEEPS):
            basis = np.linalg.qr(centred @ basis)[0]
        values, turn = np.linalg.eigh(basis.T @ centred @ basis)
        vectors = basis @ turn
    kept = np.flatnonzero(values > ROUNDING * max(float(np.trace(table)), 0.0))[-DIRECTIONS:]
    along = table @ vectors[:, kept] / np.sqrt(values[kept])  # of each client along the directions
    return np.asarray(table - along @ along.T)


def _centred(rows: Array) -> Array:
    return np.asarray(rows - rows.mean(axis=0))
