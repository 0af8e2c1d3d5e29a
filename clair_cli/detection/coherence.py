"""Where a consensus is sought from: the clients of a kernel (K, K) that agree most with each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.blocks import BLOCK
from clair_cli.detection.spectrum import leading

EVERY = 256
"""Clients up to which groups are grown from each of them; beyond, from SEEDS of them."""
SEEDS = 32
DENSE = 300
"""Clients up to which all eigenvalues are computed where two are needed."""


def coherent(kernel: Array, size: int) -> Mask:
    """A subset of `size` clients that agree most with each other, (K,) mask.

    Grown from every seed by adding whoever the group agrees with most; the group whose weakest member
    has most support wins, so that a tight minority cannot win by filling up with strangers.
    """
    return _grown(kernel, size, _seeds(kernel, size))


def _seeds(kernel: Array, size: int) -> NDArray[np.intp]:
    """Every client; of more than EVERY those at equal steps in the order of the support they could have.

    A majority of the clients has at least one of every three neighbours in any such order, whatever the
    others are. Grown from any of them, a group takes the same best supported members and differs in the
    last few. The order of the clients does not matter.
    """
    count = len(kernel)
    if count <= EVERY:
        return np.arange(count)
    best = np.array([np.partition(row, count - size)[count - size :].sum() for row in kernel])
    return np.sort(np.argsort(best, kind="stable")[np.linspace(0, count - 1, SEEDS).astype(int)])


def _grown(kernel: Array, size: int, seeds: NDArray[np.intp]) -> Mask:
    groups = np.zeros((len(seeds), len(kernel)), bool)
    places = np.arange(len(seeds))
    groups[places, seeds] = True
    total = kernel[seeds].copy()  # [seed, k]: what k has in common with the group so far
    left = total.copy()  # the same, without members
    left[groups] = -np.inf
    for _ in range(size - 1):
        chosen = left.argmax(axis=1)
        groups[places, chosen] = True
        more = kernel[chosen]
        total += more
        left += more
        left[places, chosen] = -np.inf
    return np.asarray(groups[int(_weakest(kernel, groups, total).argmax())])


def _weakest(kernel: Array, groups: Mask, total: Array) -> Array:
    """The least support of a member of each group, (B,)."""
    found: Array = np.where(groups, total - kernel.diagonal(), np.inf).min(axis=1)
    return found


def coherent_without(kernel: Array, size: int) -> tuple[Mask, Mask]:
    """`coherent` of all K clients, and [j] that of all but j: (K,), (K, K); up to EVERY clients.

    From a seed the same clients are added whether j is there or not until j would be. So each path is
    grown once, and from where it took j it goes on without. That is not done where the seed itself
    would be a weaker member than the best group without j has: with all its best others, at most.
    """
    count = len(kernel)
    order, groups, weakest = _paths(kernel, size)
    best = _Best(count)
    best.offer(np.where(groups.T, -np.inf, weakest), groups)
    hopes = kernel - np.diag(np.full(count, np.inf))
    most = np.partition(hopes, count - size + 1, axis=1)[:, count - size + 1 :].sum(axis=1)
    most += 1e-9 * np.abs(kernel).max() * size  # rounding
    able = np.array([(most[s] >= best.weakest[order[s]]).any() for s in range(count)])
    step = max(2 * BLOCK // (size * count), 1)
    seeds = np.flatnonzero(able)
    for first in range(0, len(seeds), step):
        _branch(kernel, order, seeds[first : first + step], most, best)
    return groups[int(weakest.argmax())], best.groups


def _paths(kernel: Array, size: int) -> tuple[NDArray[np.intp], Mask, Array]:
    """From every seed whom it adds in turn (K, size - 1), its group (K, K), and the weakest support."""
    places = np.arange(len(kernel))
    groups, total = np.eye(len(kernel), dtype=bool), kernel.copy()
    order = np.zeros((len(kernel), size - 1), int)
    for step in range(size - 1):
        order[:, step] = chosen = np.where(groups, -np.inf, total).argmax(axis=1)
        groups[places, chosen] = True
        total += kernel[chosen]
    return order, groups, _weakest(kernel, groups, total)


class _Best:
    """The best group without each client so far: that of the first seed, of equals."""

    def __init__(self, count: int) -> None:
        self.weakest, self.seed = np.full(count, -np.inf), np.full(count, count)
        self.groups = np.zeros((count, count), bool)

    def offer(self, weakest: Array, groups: Mask) -> None:
        """Those of all seeds; `weakest` (K, seeds) is -inf where a seed's group has the client in it."""
        self.seed = weakest.argmax(axis=1)
        self.weakest = weakest.max(axis=1)
        self.groups = groups[self.seed].copy()

    def offer_one(self, j: int, weakest: float, seed: int, group: Mask) -> None:
        """One more without client j."""
        if (weakest, -seed) > (self.weakest[j], -self.seed[j]):
            self.weakest[j], self.seed[j], self.groups[j] = weakest, seed, group


def _branch(
    kernel: Array, order: NDArray[np.intp], seeds: NDArray[np.intp], most: Array, best: _Best
) -> None:
    """Every path of these seeds again, and at each step one more without whom it adds there."""
    count, length, n = len(kernel), order.shape[1], len(seeds)
    total, groups = kernel[seeds].copy(), np.eye(count, dtype=bool)[seeds]
    sums, left = np.empty((n * length, count)), np.empty((n * length, count))
    of, without = np.zeros(n * length, int), np.zeros(n * length, int)
    used = 0
    for step in range(length):
        chosen = order[seeds, step]
        new = np.flatnonzero(most[seeds] >= best.weakest[chosen])
        place = slice(used, used + len(new))
        of[place], without[place] = seeds[new], chosen[new]
        sums[place] = total[new]
        left[place] = np.where(groups[new], -np.inf, total[new])
        used += len(new)
        now = np.arange(used)
        left[now[place], without[place]] = -np.inf
        taken = left[:used].argmax(axis=1)
        more = kernel[taken]
        sums[:used] += more
        left[:used] += more
        left[now, taken] = -np.inf
        groups[np.arange(n), chosen] = True
        total += kernel[chosen]
    members = np.isneginf(left[:used])
    members[np.arange(used), without[:used]] = False
    weakest = _weakest(kernel, members, sums[:used])
    for row in np.lexsort((of[:used], -weakest, without[:used])):
        j = int(without[row])
        if weakest[row] >= best.weakest[j]:
            best.offer_one(j, float(weakest[row]), int(of[row]), members[row])


def split(kernel: Array) -> tuple[Mask, float]:
    """The larger of the two groups that the top eigenvector of the centred kernel tells apart.

    Returns a mask (K,) and the ratio of the two largest eigenvalues: 1.3 and more for a real split,
    near 1 for an invented one.
    """
    count = len(kernel)
    values, vector = _top_two(kernel)
    side = vector > 0
    larger = side if 2 * side.sum() > count else ~side
    if 2 * larger.sum() == count:  # a tie goes to the group that agrees more with itself
        larger = max(side, ~side, key=lambda g: _inside(kernel, g))
    ratio = values[-1] / max(values[-2], 1e-12 * abs(values[-1])) if count > 2 else 1.0
    return larger, float(ratio)


def _inside(kernel: Array, group: Mask) -> float:
    """Mean over all clients of their mean value with the members of `group` other than themselves."""
    own = kernel.diagonal() * group
    return float(((kernel @ group.astype(float) - own) / np.maximum(group.sum() - group, 1)).mean())


def _top_two(kernel: Array) -> tuple[Array, Array]:
    """The two largest eigenvalues of the centred kernel, ascending, and the vector of the largest.

    Of many clients they are sought in a small space (`spectrum`).
    """
    count = len(kernel)
    if count <= DENSE:
        centre = np.eye(count) - 1 / count
        values, vectors = np.linalg.eigh(centre @ kernel @ centre)
        return values, vectors[:, -1]
    values, vectors = leading(kernel, 2, centred=True)
    return values[::-1], vectors[:, 0]
