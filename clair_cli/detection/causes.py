"""Why a client is far from the others: what it lacks, how noisy it is, and whom it shares more with.

With W the inner products of whole adapters and G the reference, m2 is the mean of W over pairs in G:
the energy of what they share, free of noise. Of client k, left out of its own reference:

    content   a_k = mean over j in G of W_kj / m2          how much of the shared is in it
    error     r_k = W_kk / m2 - a_k^2                       the energy of all else
    company   n_ij = (W_ij / m2 - a_i a_j) / sqrt(r_i r_j)  whether two share their rest
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection import residuals
from clair_cli.detection.agreement import Array, Mask, pairs_of
from clair_cli.detection.blocks import blocks
from clair_cli.detection.linkage import linked
from clair_cli.detection.references import References, Table
from clair_cli.detection.scales import median, robust_scale

ROUNDING = 1e-8
"""Error, in energies of what is shared, that is rounding: nobody has company in it."""
LEAST = 1e-6
"""Size below which an update is as good as zero, in usual sizes."""


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """`Causes` against B groups without the company, (B, K) each, and what that is made of.

    `part` and `length` are what a client has along the shared content and how long its rest is, in the
    unit of the inner products.
    """

    content: Array
    error: Array
    size: Array
    kept: Array
    part: Array
    length: Array


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


def parted(whole: Table, groups: References) -> tuple[Array, Array, Array] | None:
    """What the members share, (B, 1), and content and error (B, K) of each client in units of that, from
    inner products against several groups; None where their members share nothing."""
    sums = groups.sums(whole)
    own = whole.diagonal * groups.masks
    pairs = np.maximum(groups.counts * (groups.counts - 1.0), 1).astype(sums.dtype)
    shared = (((sums - whole.diagonal) * groups.masks).sum(axis=1) / pairs)[:, None]
    if not groups.agreed(shared > 0):
        return None
    content = (sums - own) * groups.each(sums.dtype) / shared
    error = whole.diagonal / shared - content**2
    return shared, content, np.where(error > ROUNDING, error, 0)


def in_usual(error: Array, groups: References) -> Array:
    """Errors (B, K) in units of the members' median, where that is not zero."""
    typical = groups.median(error)
    return np.asarray(error / np.where(typical > 0, typical, 1))


def shares(whole: Table, groups: References) -> Shares | None:
    """From inner products against several groups; None where their members share nothing."""
    norm = np.sqrt(whole.diagonal.clip(min=0))
    usual, found = groups.median(norm), parted(whole, groups)
    if found is None or not groups.agreed(usual > 0):
        return None
    shared, content, error = found
    kept = groups.weighted(whole, "cut", usual[:, 0], norm, _cut)
    middle = groups.median(kept)
    if not groups.agreed(middle > 0):
        return None
    root = np.sqrt(shared)
    return Shares(
        content,
        in_usual(error, groups),
        norm / usual,
        kept / middle,
        content * root,
        np.sqrt(error) * root,
    )


def _cut(norm: Array, usual: float) -> Array:
    """Factors (K,) that cut updates to the usual size."""
    return np.asarray(1 / np.maximum(np.minimum(norm, usual), LEAST * usual))


def causes(whole: Array | Table, group: Mask) -> Causes | None:
    """From inner products `whole` (K, K) against `group` (K,); None where its members share nothing."""
    table = whole if isinstance(whole, Table) else Table(whole)
    found = shares(table, References(group[None]))
    return None if found is None else with_company(found, table)


def with_company(found: Shares, whole: Table, apart: bool = True) -> Causes:
    """The causes of one group. Unless what its members share can be told `apart` from chance, nothing
    is taken away before rests are compared: it would be the chance itself, times that of another."""
    part, length = found.part[0], found.length[0]
    if not apart:
        part, length = np.zeros_like(part), np.sqrt(whole.diagonal.clip(min=0))
    company = residuals.cosines(whole.values, part, length)
    return Causes(found.content[0], found.error[0], found.size[0], found.kept[0], company)


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
    nearest, partner = _nearest(company, who)
    for merge in linked(company, who):
        inside, left = merge.members, len(who) - len(merge.members)
        if len(inside) >= left or left < 3:
            continue
        outside = able.copy()
        outside[inside] = False
        # two outside that are as alike have each a nearest as near: only those are looked at
        near = outside & (nearest >= merge.cosine + LEAST)
        if (near & outside[partner]).any() or _any_pair(company, near, merge.cosine + LEAST):
            continue
        found = _company(company, sorted(inside), np.flatnonzero(outside), least, apart)
        if found is not None and (best is None or found.score > best.score):
            best = found
    return best


def _any_pair(company: Array, who: Mask, least: float) -> bool:
    """Whether two of `who` (K,) have at least this entry."""
    near = np.flatnonzero(who)
    for rows in blocks(len(near)):
        pairs = company[np.ix_(near[rows], near)]
        pairs[np.arange(len(pairs)), np.arange(len(near))[rows]] = -np.inf
        if (pairs >= least).any():
            return True
    return False


def _nearest(company: Array, who: NDArray[np.intp]) -> tuple[Array, NDArray[np.intp]]:
    """Of each of `who` the largest entry with another of them, and whose that is, (K,)."""
    largest, partner = np.full(len(company), -np.inf), np.zeros(len(company), int)
    for rows in blocks(len(who), len(company)):
        near = company[who[rows]][:, who]
        near[np.arange(len(near)), np.arange(len(who))[rows]] = -np.inf
        places = near.argmax(axis=1)
        largest[who[rows]], partner[who[rows]] = near.max(axis=1), who[places]
    return largest, partner


def _company(
    company: Array, found: list[int], others: NDArray[np.intp], least: float, apart: float
) -> Company | None:
    """These members against all others, None where they are no more alike than those."""
    members = np.array(found)
    cosine = float(pairs_of(company, members).mean())
    if float(company[members].sum(axis=0, dtype=float)[others].max()) > apart * cosine * len(found):
        return None
    pairs = pairs_of(company, others)
    if cosine <= pairs.max():
        return None
    unit = max(robust_scale(pairs), least)
    score = (cosine - median(pairs)) / unit * math.sqrt(len(members) - 1)
    return Company(tuple(found), cosine, score)


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
    least = max(share * float(np.median(_nearest(kernel, who)[0][who])), least)
    groups: dict[int, list[int]] = {}  # by their first member
    for merge in linked(kernel, who):
        if merge.alike < least:
            break
        groups.pop(merge.second, None)
        groups[merge.first] = merge.members
    return sorted((tuple(sorted(g)) for g in groups.values()), key=lambda g: (-len(g), g))


def named(names: Sequence[str], members: Sequence[int], most: int = 5) -> str:
    """The first of the members by name, and how many more there are."""
    more = f" and {len(members) - most} more" if len(members) > most else ""
    return ", ".join(names[k] for k in members[:most]) + more
