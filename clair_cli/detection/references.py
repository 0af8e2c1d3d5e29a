"""Several groups at once that all clients are measured against: what each verdict rests on.

Most of them are one group without one client. So sums over the members are those of one `base`, less
the columns of the few that a group lacks and more those that it has besides: K steps, and not K^2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from threading import RLock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.agreement import Array, Mask, pairs
from clair_cli.detection.scales import MAD, TENTH, median, ordered, small_sample

Answer = TypeVar("Answer")
FEW, SHARE = 4, 32
"""Clients by which a group may differ from the base before its sums are taken anew: as many as the
larger of FEW and one in SHARE."""
BASES = 3
"""Bases that a table remembers its sums of."""
WIDE, SEVERAL, NEXT = 64, 4, 8
"""Clients and groups from which on order statistics look at NEXT clients, and at one in 4 WIDE, to both
sides."""
EXCHANGES = 64
"""Exchanges of whole rows up to which they are faster than partial sorting of each column."""


class Apart(Exception):
    """The law takes another way for some of these groups than for others: they are measured apart."""


class Known:
    """What remembers what was made of it against the last few bases; by one thread at a time."""

    _lock = RLock()

    def __init__(self, values: Array) -> None:
        self.values = values
        self._known: list[tuple[Mask, dict[Any, Any]]] = []

    def known(self, base: Mask, key: Any, made: Callable[[], Any]) -> Any:
        """What was made for this base and key, or is now: the last few bases are remembered."""
        with self._lock:
            found = next((k for b, k in self._known if np.array_equal(b, base)), None)
            if found is None:
                found = {}
                self._known = [*self._known[1 - BASES :], (base.copy(), found)]
            if key not in found:
                found[key] = made()
            return found[key]


class Fixed(Known):
    """Values (K,) of the clients that are the same against every group."""


class Table(Known):
    """A symmetric table (K, K) of the clients, or one for each module (M, K, K)."""

    def __init__(self, values: Array) -> None:
        super().__init__(values)
        self.diagonal = np.einsum("...kk->...k", values).copy()


class Measuring:
    """Whatever answers questions about groups: the last group asked about alone is remembered."""

    _single: tuple[Mask, References] | None = None

    def single(self, group: Mask) -> References:
        """One group (K,) as references."""
        if self._single is None or not np.array_equal(self._single[0], group):
            self._single = group.copy(), References(group[None].copy())
        return self._single[1]


def measured(
    method: Callable[[Any, References], Answer],
) -> Callable[[Any, Mask | References], Answer]:
    """A method of several groups, (B, ...), which may be asked about one group (K,) alone, too.

    The answer on the same groups is given from memory.
    """
    name = method.__qualname__

    @wraps(method)
    def asked(self: Any, group: Mask | References) -> Answer:
        groups = group if isinstance(group, References) else self.single(group)
        if name not in groups.remembered:
            groups.remembered[name] = method(self, groups)
        answer: Answer = groups.remembered[name]
        one = groups is not group and isinstance(answer, np.ndarray)
        return answer[0] if one else answer  # type: ignore[index]

    return asked


class References:
    """Groups `masks` (B, K) that differ by little from `base` (K,), by default from their majority."""

    def __init__(self, masks: Mask, base: Mask | None = None) -> None:
        self.masks = masks
        self.base = 2 * masks.sum(axis=0) > len(masks) if base is None else base
        self.counts = masks.sum(axis=1)
        self.remembered: dict[str, Any] = {}

    def agreed(self, holds: Mask) -> bool:
        """Whether a condition (B,) holds, for all groups alike; raises Apart."""
        if holds.all() or not holds.any():
            return bool(holds.flat[0])
        raise Apart

    def each(self, kind: Any) -> Array:
        """One over how many members a client has besides itself, at least 1, (B, K)."""
        key = f"each {kind}"
        if key not in self.remembered:
            others = np.maximum(self.counts[:, None] - self.masks.astype(float), 1)
            self.remembered[key] = (1 / others).astype(kind)
        found: Array = self.remembered[key]
        return found

    @cached_property
    def changes(self) -> list[tuple[Any, Any, Array]] | None:
        """Rows, columns and signs (n, 1): by whom groups differ from the base, once per group in each.

        None where that is more than a few for one of them.
        """
        rows, columns = np.nonzero(self.masks ^ self.base)
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # in its own group
        if len(rows) and place.max() >= max(FEW, self.masks.shape[1] // SHARE):
            return None
        signs = np.where(self.masks[rows, columns], 1.0, -1.0)[:, None]
        found = []
        for p in range(int(place.max()) + 1 if len(rows) else 0):
            now = place == p
            found.append((rows[now], columns[now], signs[now]))
        return found

    # --- sums over the members

    def sums(self, table: Table) -> Array:
        """Of each client with all members, itself among them: (..., B, K)."""
        values, kind = table.values, table.values.dtype
        if self.changes is None:
            return np.asarray(self.masks.astype(kind) @ values)
        sums = table.known(self.base, "sums", lambda: values @ self.base.astype(kind))
        found = np.repeat(sums[..., None, :], len(self.masks), axis=-2)
        for rows, columns, signs in self.changes:
            if len(rows) == len(self.masks):
                found += signs.astype(kind) * values[..., columns, :]
            else:
                found[..., rows, :] += signs.astype(kind) * values[..., columns, :]
        return found

    def support(self, table: Table) -> Array:
        """Mean of each client with the members other than itself, (..., B, K)."""
        found = self.sums(table)
        found -= table.diagonal[..., None, :] * self.masks
        found *= self.each(found.dtype)
        return found

    def weighted(
        self,
        table: Table,
        name: str,
        units: Array,
        norms: Array,
        weight: Callable[[Array, float], Array],
    ) -> Array:
        """`support` of the table whose rows and columns have the weights (K,) that `weight` makes of
        the clients' norms and of each group's unit: (..., B, K).

        `units` (..., B), of which few are different where groups are alike, and `norms` (..., K) are
        those of each module where the table is a stack. `name` is that of the weight.
        """
        kind = table.values.dtype
        found = np.empty((*table.values.shape[:-2], *self.masks.shape), kind)
        for m in np.ndindex(table.values.shape[:-2]):
            values, diagonal = table.values[m], table.diagonal[m]
            different, which = np.unique(units[m], return_inverse=True)
            weights = np.array([weight(norms[m], float(u)) for u in different]).astype(kind)
            mine = weights[which]
            if self.changes is None:
                sums = np.asarray((self.masks * mine) @ values)
            else:
                sums = np.array(
                    [
                        table.known(self.base, (name, m, float(u)), self._product(values, w))
                        for u, w in zip(different, weights, strict=True)
                    ]
                )[which]
                for rows, columns, signs in self.changes:
                    factors = signs.astype(kind) * mine[rows, columns][:, None]
                    if len(rows) == len(sums):
                        sums += factors * values[columns]
                    else:
                        sums[rows] += factors * values[columns]
            sums -= diagonal * mine * self.masks
            sums *= mine
            np.multiply(sums, self.each(kind), out=found[m])
        return found

    def _product(self, values: Array, weights: Array) -> Callable[[], Array]:
        """The sums of the base's members with these weights, when they are asked for."""
        return lambda: values @ (self.base * weights)

    # --- order statistics of the members

    def median(self, values: Array | Fixed) -> Array:
        """Median over the members of values (K,) or (..., B, K): (..., B, 1)."""
        if not isinstance(values, Fixed):
            return self._by_count(values, _median)
        if self.lacking is None:
            return self._by_count(values.values, _median)
        order, place = values.known(self.base, "order", lambda: _sorted(values.values, self.base))
        gap = place[self.lacking] + np.where(self.counts == len(order), len(order), 0)
        low, high = (self.counts - 1) // 2, self.counts // 2
        low, high = (order[x + (x >= gap)] for x in (low, high))  # those behind the gap move up
        return np.asarray((low + high) / 2)[:, None]

    @cached_property
    def lacking(self) -> NDArray[np.intp] | None:
        """Whom each group lacks of the base, client 0 where nobody; None where they differ otherwise."""
        if self.changes is None or len(self.changes) > 1 or (self.masks & ~self.base).any():
            return None
        found = np.zeros(len(self.masks), int)
        for rows, columns, _ in self.changes:
            found[rows] = columns
        return None if not self.base.any() else found

    def scale(self, values: Array, median: Array | None = None) -> Array:
        """Robust standard deviation over the members, as `scales.robust_scale`: (..., B, 1)."""
        middle = self.median(values) if median is None else median
        factors = np.array([MAD * small_sample(int(n)) for n in self.counts])[:, None]
        found = self.median(np.abs(values - middle))
        return np.asarray(factors.astype(found.dtype) * found)

    def lower_scale(self, values: Array) -> Array:
        """Standard deviation by the lower tenth of the members, where unevenness of honest clients lies:
        (B, 1)."""
        return np.asarray((self.median(values) - self._by_count(values, _tenth)) / TENTH)

    def _by_count(self, values: Array, of: Callable[[Array, int], Array]) -> Array:
        """`of` the sorted-enough members: strangers are put last, groups of one size together."""
        filled = np.where(self.masks, values, values.dtype.type(np.inf))
        first = int(self.counts[0])
        if (self.counts == first).all():
            return of(filled, first)[..., None]
        found = np.empty(filled.shape[:-1], filled.dtype)
        for count in np.unique(self.counts):
            rows = self.counts == count
            found[..., rows] = of(filled[..., rows, :], int(count))
        return found[..., None]

    # --- medians over pairs

    def pair_median(self, table: Table, diagonal: bool) -> tuple[float, float]:
        """Bounds of the median over pairs of members, or over all entries with the diagonal.

        A group that lacks r of the base's n members lacks at most 2 r n of its entries, and one that
        has a besides has at most 2 a (n + a) more: so far the middle moves at most.
        """
        changed = self.masks ^ self.base
        most = (int((changed & s).sum(axis=1).max()) for s in (self.base, ~self.base))
        # powers of two: few different bounds are remembered
        lost, more = (1 << (x - 1).bit_length() if x else 0 for x in most)
        key = "pairs", diagonal, lost, more

        def made() -> tuple[float, float]:
            known = _entries(table.values, self.base, diagonal)
            entries = 2 if diagonal else 1
            less = entries * lost * int(self.base.sum())
            added = entries * more * int(self.base.sum() + more)
            low = (len(known) - less - 1) // 2 - added
            high = (len(known) + added) // 2 + less
            last = len(known) - 1
            if last < 0:
                return -np.inf, np.inf
            least, most = ordered(known, max(low, 0), min(high, last)).tolist()
            return least if low >= 0 else -np.inf, most if high <= last else np.inf

        found: tuple[float, float] = table.known(self.base, key, made)
        return found

    def exact_pair_median(self, table: Table, row: int, diagonal: bool) -> float:
        """The median itself, of one group."""
        return median(_entries(table.values, self.masks[row], diagonal))


def _sorted(values: Array, base: Mask) -> tuple[Array, NDArray[np.intp]]:
    """The base's values in order, and where in it each client of the base (K,) is."""
    members = np.flatnonzero(base)
    order = members[np.argsort(values[members], kind="stable")]
    place = np.zeros(len(base), int)
    place[order] = np.arange(len(order))
    return values[order], place


def _entries(values: Array, members: Mask, diagonal: bool) -> Array:
    return values[np.ix_(members, members)].ravel() if diagonal else pairs(values, members)


def _median(filled: Array, count: int) -> Array:
    """Of the `count` least entries of the last axis."""
    lower, upper = _rows_ordered(filled, (count - 1) // 2, count // 2)
    return np.asarray((lower + upper) / 2) if count % 2 == 0 else upper


def _tenth(filled: Array, count: int) -> Array:
    """Lower tenth of the `count` least entries of the last axis, between two of them as np.quantile."""
    place = 0.1 * (count - 1)
    below = int(place)
    lower, upper = _rows_ordered(filled, below, min(below + 1, count - 1))
    return np.asarray(lower + (upper - lower) * (place - below))


def _rows_ordered(filled: Array, low: int, high: int) -> tuple[Array, Array]:
    """The entries (...) at places `low` and `high`, the same or the next, of the sorted last axis.

    Against groups that are nearly the same, values are nearly the same. So where the first row has its
    entries around these places, the others mostly have theirs, and only those few are sorted.
    """
    count, width = filled.shape[-2:]
    if width < WIDE or count < SEVERAL:
        filled.partition(high, axis=-1)
        upper = filled[..., high]
        return (filled[..., :high].max(axis=-1) if high > low else upper), upper
    lower, upper = (np.empty(filled.shape[:-1], filled.dtype) for _ in range(2))
    for m in np.ndindex(filled.shape[:-2]):
        rows, margin = filled[m], width // (4 * WIDE) + NEXT
        ends = max(low - margin, 0), min(high + margin, width - 1)
        around = np.partition(rows[0], ends)[list(ends)]
        before = (rows < around[0]).sum(axis=1)
        inside = (rows >= around[0]) & (rows <= around[1])
        found = inside.sum(axis=1)
        few = np.full((count, found.max()), np.inf, filled.dtype)
        few[np.arange(found.max()) < found[:, None]] = rows[inside]
        few.sort(axis=1)
        sure = (before <= low) & (high < before + found)
        for out, place in ((lower, low), (upper, high)):
            out[m][sure] = few[sure, place - before[sure]]
        if not sure.all():
            rest = np.partition(rows[~sure], (low, high), axis=1)
            lower[m][~sure], upper[m][~sure] = rest[:, low], rest[:, high]
    return lower, upper


def mean_of_least(values: Array, count: int) -> Array:
    """Mean of the `count` least along the first axis, (...).

    Of few rows they are brought to the front one after the other, each by exchange with its neighbour.
    """
    if count < len(values) and count * len(values) > EXCHANGES:
        values = np.partition(values, count - 1, axis=0)
    elif count < len(values):
        values = values.copy()
        for first in range(count):
            for m in range(len(values) - 1, first, -1):
                lower = np.minimum(values[m - 1], values[m])
                np.maximum(values[m - 1], values[m], out=values[m])
                values[m - 1] = lower
    return np.asarray(values[:count].mean(axis=0))
