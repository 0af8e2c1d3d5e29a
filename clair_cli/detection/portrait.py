"""Who agrees with whom, and how the clients' energy spreads: tables small enough for a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array
from clair_cli.detection.blocks import blocks
from clair_cli.detection.linkage import linked
from clair_cli.detection.record import Detection
from clair_cli.detection.spectrum import leading
from clair_cli.report import Agreement, Spectra

MOST = 300
"""Clients up to which the table of all pairs is in the report: it grows with their square."""
DENSE = 1000
"""Clients up to which all eigenvalues are computed. Inner products and cosines have no negative ones, so
beyond it their sum is the trace."""
MODES = 24
"""Leading shares of a spectrum that are reported."""
PLACES = 4
"""Digits behind the point of a place on the map; the rest is noise of the eigenvectors."""


def portrait(found: Detection) -> tuple[Agreement | None, Spectra | None]:
    """Both tables of a judged cohort, None where no number was compared."""
    judged = found.judgement
    if judged is None or judged.alike is None or not found.stacks:
        return None, None
    names = tuple(a.client for a in found.cohort.clients)
    agrees = agreement_of(names, judged.alike, "direction" if judged.directed else "outputs")
    members = judged.consensus if judged.consensus.sum() > 1 else np.ones(len(names), bool)
    whole = np.zeros((len(names), len(names)))
    for stack in found.absolute:
        whole += agreement.levelled(stack.inner.numpy()[None], members)[0]
    return agrees, spectra(whole[members][:, members])


def agreement_of(names: tuple[str, ...], alike: Array, measure: str) -> Agreement:
    """The record of a table of likeness (K, K) whose diagonal is 1."""
    table = np.clip((alike + alike.T) / 2, -1, 1)
    np.fill_diagonal(table, 1.0)
    places, kept = scaled(table)
    many = len(names) > MOST
    count = 1 if many else len(names)
    rows = tuple(tuple(map(int, np.rint(100 * table[k, :k]))) for k in range(1, count))
    return Agreement(
        measure=measure,  # type: ignore[arg-type]
        clients=names,
        order=() if many else tuple(ordered(table)),
        percent=rows,
        left_out=f"{len(names)} clients; pairs are listed up to {MOST}" if many else None,
        places=tuple((float(x), float(y)) for x, y in places),
        stress=stress(table, places),
        kept=kept,
    )


def scaled(table: Array) -> tuple[Array, float]:
    """Places (K, 2) by classical scaling of the distances sqrt(2 - 2 s), and the share that they keep.

    That is the principal coordinates of Gower (1966); the share is of the positive eigenvalues. Of
    the two signs of an axis the one is taken in which its largest entry is positive. Of more than DENSE
    clients only the two axes are computed, and the share is of the sum of all eigenvalues.
    """
    count = len(table)
    if count > DENSE:
        values, vectors = leading(table, 2, centred=True)
        total = float(table.diagonal().sum() - table.sum(dtype=float) / count)
    else:
        centre = np.eye(count) - 1 / count
        values, vectors = np.linalg.eigh(centre @ table @ centre)
        total = float(values.clip(min=0).sum())
    lead = np.argsort(-values, kind="stable")[:2]
    axes = vectors[:, lead] * np.sqrt(values[lead].clip(min=0))
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    axes = np.round(axes, PLACES)
    largest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
    kept = float(values[lead].clip(min=0).sum()) / total if total > 0 else 0.0
    return axes * np.where(largest < 0, -1.0, 1.0) + 0.0, kept


def stress(table: Array, places: Array) -> float:
    """Kruskal's (1964) first stress of the map: 0 shows every distance as it is."""
    missed = energy = 0.0
    for rows in blocks(len(table)):
        true = np.sqrt((2 - 2 * table[rows]).clip(min=0))
        shown = np.sqrt(((places[rows, None] - places[None]) ** 2).sum(axis=2))
        energy += float((true**2).sum(dtype=float))
        missed += float(((true - shown) ** 2).sum())
    return float(np.sqrt(missed / energy)) if energy > 0 else 0.0


def ordered(table: Array) -> list[int]:
    """Positions of all clients such that who is alike stands together: leaves of average linkage."""
    rows = {k: [k] for k in range(len(table))}  # by the first of each cluster
    for merge in linked(table, np.arange(len(table))):
        rows[merge.first] = _joined(rows[merge.first], rows.pop(merge.second), table)
    return rows[0]


def _joined(a: Sequence[int], b: Sequence[int], table: Array) -> list[int]:
    """Both groups in a row, turned so that the two ends that meet are the most alike."""
    ways = [(x, y) for x in (list(a), list(a)[::-1]) for y in (list(b), list(b)[::-1])]
    x, y = max(ways, key=lambda way: table[way[0][-1], way[1][0]])
    return x + y


def spectra(whole: Array) -> Spectra:
    """Shares of energy per mode of the clients, of their updates and of what differs from their mean.

    `whole` (K, K) holds the inner products of the members' whole adapters.
    """
    return Spectra(_shares(whole, False), _shares(whole, True)[: len(whole) - 1])


def _shares(whole: Array, centred: bool) -> tuple[float, ...]:
    """Leading eigenvalues over the sum of the positive ones; of more than DENSE clients, of all."""
    count = len(whole)
    if count > DENSE:
        values = leading(whole, MODES, centred)[0].clip(min=0)
        total = float(np.trace(whole)) - (float(whole.sum()) / count if centred else 0.0)
    else:
        centre = np.eye(count) - 1 / count if centred else np.eye(count)
        values = np.linalg.eigvalsh(centre @ whole @ centre)[::-1].clip(min=0)
        total = float(values.sum())
    return tuple(float(v / total) for v in values[:MODES]) if total > 0 else ()
