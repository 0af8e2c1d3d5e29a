"""The plain ways, cubic and worse, to what `clair_cli.detection` computes in steps of K^2."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from clair_cli.detection.agreement import Array, Mask, support
from clair_cli.detection.causes import Company
from clair_cli.detection.consensus import Consensus
from clair_cli.detection.scales import TENTH, robust_scale


def lower_scale(values: Array) -> float:
    """Standard deviation by the lower tenth."""
    return float(np.median(values) - np.quantile(values, 0.1)) / TENTH


def coherent(kernel: Array, size: int) -> Mask:
    """Grown from every client, nothing left out."""
    seeds = np.arange(len(kernel))
    groups = np.eye(len(kernel), dtype=bool)
    total = kernel.copy()
    for _ in range(size - 1):
        chosen = np.where(groups, -np.inf, total).argmax(axis=1)
        groups[seeds, chosen] = True
        total += kernel[chosen]
    weakest = np.where(groups, total - kernel.diagonal(), np.inf).min(axis=1)
    return np.asarray(groups[int(weakest.argmax())])


def settle(consensus: Consensus, present: Mask) -> tuple[Mask, bool]:
    """The consensus among those present, and whether there is one."""
    numbers, count = consensus.numbers, int(present.sum())
    if count < 3:
        return present, False
    need = count // 2 + 1
    among = np.flatnonzero(present & consensus.tables.members)
    if len(among) < need:
        among = np.flatnonzero(present)
    group = np.zeros(len(present), bool)
    kernel = consensus.distances.likeness[np.ix_(among, among)]
    group[among[coherent(kernel, need)]] = True
    for step in range(numbers.growing_rounds + count):
        evidence = consensus.distances.decisive(group, settled=False)
        after = (consensus.worst(evidence) < numbers.inside) & present
        if step >= numbers.growing_rounds:
            after &= group
        same, group = bool((after == group).all()), after
        if same or group.sum() < 3:
            break
    return group, consensus.unidentified(group, count) is None


def same_without(consensus: Consensus, out: Mask) -> Mask:
    """Everything anew without each client."""
    same = np.ones((len(out), len(out)), bool)
    for j in np.flatnonzero(consensus.distinct):
        present = consensus.distinct.copy()
        present[j] = False
        group, identified = settle(consensus, present)
        again = ~out
        if identified:
            least = np.where(out, consensus.numbers.inside, consensus.numbers.limit)
            again = consensus.worst(consensus.distances.decisive(group)) >= least
        same[j] = (again == out) | consensus.zero | (consensus.distances.originals == j)
    return same


def split(kernel: Array) -> tuple[Mask, float]:
    """By all eigenvectors of the centred kernel."""
    count = len(kernel)
    centre = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centre @ kernel @ centre)
    side = vectors[:, -1] > 0
    larger = side if 2 * side.sum() > count else ~side
    if 2 * larger.sum() == count:
        larger = max(side, ~side, key=lambda g: support(kernel, g).mean())
    return larger, float(values[-1] / max(values[-2], 1e-12 * abs(values[-1])))


def linked(kernel: Array, who: Array) -> Iterator[tuple[float, list[int], list[list[int]]]]:
    """Average linkage: how alike two clusters are, what they become, all that are left."""
    clusters: list[list[int]] = [[int(k)] for k in who]
    sums = kernel[np.ix_(who, who)].astype(float)
    sizes = np.ones(len(who))
    np.fill_diagonal(sums, -np.inf)
    while len(clusters) > 1:
        means = sums / np.outer(sizes, sizes)
        i, j = sorted(divmod(int(means.argmax()), len(clusters)))
        alike = float(means[i, j])
        clusters[i] = sorted(clusters[i] + clusters.pop(j))
        sums[i] += np.where(np.isfinite(sums[j]), sums[j], 0)
        sums[:, i] = sums[i]
        sums[i, i] = -np.inf
        sizes[i] += sizes[j]
        sums = np.delete(np.delete(sums, j, 0), j, 1)
        sizes = np.delete(sizes, j)
        yield alike, clusters[i], clusters.copy()


def addition(company: Array, able: Mask, least: float, apart: float) -> Company | None:
    """Every cluster against all pairs of all others."""
    who, best = np.flatnonzero(able), None
    for _, found, _ in linked(company, who):
        members = np.array(found)
        others = np.setdiff1d(who, members)
        if len(members) >= len(others) or len(others) < 3:
            continue
        pairs = company[np.ix_(others, others)][np.triu_indices(len(others), 1)]
        inside = company[np.ix_(members, members)][np.triu_indices(len(members), 1)]
        cosine = float(inside.mean())
        nearest = float(company[np.ix_(others, members)].mean(axis=1).max())
        if cosine <= pairs.max() or nearest > apart * cosine:
            continue
        score = (cosine - float(np.median(pairs))) / max(robust_scale(pairs), least)
        score *= math.sqrt(len(members) - 1)
        if best is None or score > best.score:
            best = Company(tuple(found), cosine, score)
    return best
