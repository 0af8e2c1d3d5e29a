"""Why a client is far from the others: what it lacks, how noisy it is, and whom it shares more with.

With W the inner products of whole adapters and G the reference, m2 is the mean of W over pairs in G:
the energy of what they share, free of noise. Of client k, left out of its own reference:

    content   a_k = mean over j in G of W_kj / m2          how much of the shared is in it
    error     r_k = W_kk / m2 - a_k^2                       the energy of all else
    company   n_ij = (W_ij / m2 - a_i a_j) / sqrt(r_i r_j)  whether two share their rest
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.scales import robust_scale

ROUNDING = 1e-8
"""Error, in energies of what is shared, that is rounding: nobody has company in it."""
LEAST = 1e-6
"""Size below which an update is as good as zero, in usual sizes."""


@dataclass(frozen=True, slots=True, eq=False)
class Causes:
    """Per client (K,): `content`, `error` in units of the members' median, `size` of the whole.

    `kept` is the content of an update cut to the usual size where it is larger, relative to the
    members' median: 1 is all, however much noise there is on top. `company` (K, K) as above.
    """

    content: Array
    error: Array
    size: Array
    kept: Array
    company: Array


def causes(whole: Array, group: Mask) -> Causes | None:
    """From inner products `whole` (K, K) against `group` (K,); None where its members share nothing."""
    norm = np.sqrt(whole.diagonal().clip(min=0))
    usual = float(np.median(norm[group]))
    shared = float(agreement.pairs(whole, group).mean()) if group.sum() > 1 else 0.0
    if shared <= 0 or usual <= 0:
        return None
    content = agreement.support(whole, group) / shared
    rest = whole / shared - np.outer(content, content)
    error = rest.diagonal().clip(min=0)
    error = np.where(error > ROUNDING, error, 0.0)
    length = np.sqrt(error[:, None] * error)
    company = np.divide(rest, length, out=np.zeros_like(rest), where=length > 0)
    cut = np.maximum(np.minimum(norm, usual), LEAST * usual)
    kept = agreement.support(whole / np.outer(cut, cut), group)
    middle = float(np.median(kept[group]))
    if middle <= 0:
        return None
    typical = float(np.median(error[group]))
    return Causes(
        content,
        error / typical if typical > 0 else error,
        norm / usual,
        kept / middle,
        company.clip(-1, 1),
    )


@dataclass(frozen=True, slots=True)
class Company:
    """Clients (positions) whose rests are alike: their mean cosine, and how far that is from usual."""

    members: tuple[int, ...]
    cosine: float
    score: float


def addition(company: Array, able: Mask, least: float, apart: float) -> Company | None:
    """The clients that share a rest most strikingly; None where nobody does.

    Of the clusters of average linkage over the clients `able` (K,), each smaller than what it leaves,
    more alike than any two of those, and to none of them more than the share `apart` of that, the
    score is (mean inside - median of the others' pairs) / max(their scale, `least`) * sqrt(n - 1).
    """
    who = np.flatnonzero(able)
    best = None
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
        unit = max(robust_scale(pairs), least)
        score = (cosine - float(np.median(pairs))) / unit * math.sqrt(len(members) - 1)
        if best is None or score > best.score:
            best = Company(tuple(found), cosine, score)
    return best


def linked(
    kernel: Array, who: NDArray[np.intp]
) -> Iterator[tuple[float, list[int], list[list[int]]]]:
    """Average linkage over `who`: how alike two clusters are, what they become, all that are left."""
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


def sides(
    kernel: Array, present: Mask, share: float, least: float = -math.inf
) -> list[tuple[int, ...]]:
    """The groups that clients `present` (K,) form, largest first, singles left out.

    Average linkage over `kernel` (K, K) goes on while two clusters agree at least `share` as well as a
    client typically does with whoever is nearest to it, and at least `least`.
    """
    who = np.flatnonzero(present)
    if len(who) < 2:
        return []
    near = kernel[np.ix_(who, who)].astype(float)
    np.fill_diagonal(near, -np.inf)
    least = max(share * float(np.median(near.max(axis=1))), least)
    groups: list[list[int]] = []
    for alike, _, clusters in linked(kernel, who):
        if alike < least:
            break
        groups = clusters
    return sorted((tuple(g) for g in groups if len(g) > 1), key=lambda g: (-len(g), g))


def named(names: Sequence[str], members: Sequence[int], most: int = 5) -> str:
    """The first of the members by name, and how many more there are."""
    more = f" and {len(members) - most} more" if len(members) > most else ""
    return ", ".join(names[k] for k in members[:most]) + more
