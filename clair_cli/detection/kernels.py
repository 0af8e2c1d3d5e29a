"""The tables of one cohort, compared: who is like whom, and what each client has of what they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.calibration import DetectionCalibration
from clair_cli.detection.causes import Causes, causes
from clair_cli.detection.copies import copies
from clair_cli.detection.heads import Heads
from clair_cli.detection.scales import robust_scale
from clair_cli.detection.tables import Tables
from clair_cli.settings import MIN_CLIENTS

Answer = TypeVar("Answer")


def remembered(method: Callable[[Any, Mask], Answer]) -> Callable[[Any, Mask], Answer]:
    """The method of a group (K,), asked about the same group again answered from memory."""
    name = f"_last_{method.__name__}"

    @wraps(method)
    def asked(self: Any, group: Mask) -> Answer:
        known: tuple[Mask, Answer] | None = self.__dict__.get(name)
        if known is None or not np.array_equal(known[0], group):
            known = self.__dict__[name] = (group.copy(), method(self, group))
        return known[1]

    return asked


class Kernels:
    """Comparisons of the clients of one cohort that no distance has been taken from yet."""

    def __init__(self, tables: Tables, numbers: DetectionCalibration) -> None:
        self.tables, self.numbers = tables, numbers
        self.agree = agreement.agreement(tables.inner, tables.overlap, tables.d_out)
        self.cosine = agreement.cosines(tables.inner)
        self.ranks = agreement.effective_ranks(tables.inner, tables.overlap)
        self.norms = np.sqrt(np.einsum("mkk->mk", tables.inner).clip(min=0))
        self.copies = copies(tables.inner, tables.digests, numbers)
        self.originals = self.copies.originals
        unit = self._units()
        self.whole = np.asarray((tables.inner / unit**2).sum(axis=0))
        """Inner products of the whole adapters, (K, K), every module in units of its usual norm."""
        tells = tables.absolute if tables.absolute is not None else np.ones(len(unit), bool)
        self.told = (tables.inner / unit**2)[tells].sum(axis=0) if tells.any() else None
        self.outputs = np.asarray((_traceless(tables) / unit**4)[tells].sum(axis=0))
        """Inner products (K, K) of the parts of D D' without trace: alike where outputs change alike."""
        self.direction = np.asarray(agreement.cosines(self.whole[None])[0])
        self.chance = agreement.chance_cosines(
            tables.overlap / unit**4, self.norms / unit[:, 0], tables.d_in
        )
        self.zero = ~(self.norms > 0).any(axis=0)
        self.kernel = self.agree.mean(axis=0)
        self.distinct = ~self.zero & self.copies.first
        self.likeness = self._likeness()
        self.heads = Heads.of(tables, numbers)

    def _units(self) -> Array:
        """The usual norm of each module, (M, 1, 1); that of the largest where most clients have none."""
        usual, largest = np.median(self.norms[:, self.copies.first], axis=1), self.norms.max(axis=1)
        return np.where(usual > 0, usual, np.where(largest > 0, largest, 1.0))[:, None, None]

    def _likeness(self) -> Array:
        """Agreement and, where cosines are more than chance, direction: (K, K), each in its own unit."""
        chance = np.maximum(agreement.pairs(self.chance, self.distinct), np.finfo(float).tiny)
        beyond = (agreement.pairs(self.direction, self.distinct) / chance) ** 2
        alike = self._usual(self.kernel)
        clear = beyond.size and beyond.mean() > self.numbers.clear_of_chance**2
        return alike + self._usual(self.direction) if clear else alike

    def _usual(self, kernel: Array) -> Array:
        """A kernel (K, K) in units of its mean over pairs of distinct clients."""
        own = agreement.pairs(kernel, self.distinct).clip(min=0)
        unit = float(own.mean()) if own.size else 0.0
        return kernel / unit if unit > 0 else kernel

    @remembered
    def causes(self, group: Mask) -> Causes | None:
        """What each client lacks and adds against `group`; None where its members share nothing.

        Updates known up to a common part do not tell, and are left out.
        """
        return None if self.told is None else causes(self.told, group)

    @remembered
    def output_causes(self, group: Mask) -> Causes | None:
        """`causes` of the outputs that the updates change, whatever they make of the inputs."""
        return None if self.told is None else causes(self.outputs, group)

    @remembered
    def kept(self, group: Mask) -> Array | None:
        """Share of the common content in each client, (K,), None where cosines are mere chance.

        A head that learned the others' task speaks for a client whose other modules do not.
        """
        why = self.causes(group) if self.clear(group) else None
        if why is None:
            return None
        head = self.heads.kept(group)
        if head is None:
            return why.kept
        return np.fmax(why.kept, head - self.numbers.head_excuse)

    @remembered
    def stragglers(self, group: Mask) -> Mask:
        """Who is no member, has some of the common content, and is alone with its rest, (K,)."""
        n, why, kept = self.numbers, self.causes(group), self.kept(group)
        if why is None or kept is None:
            return np.zeros(len(group), bool)
        outside = self.distinct & ~group
        some = outside & (kept > 1 - n.limit * n.content_floor) & (kept < 1 + n.content_floor)
        company = np.where(np.eye(len(group), dtype=bool) | ~outside, -1.0, why.company)
        alone: Mask = some & (company.max(axis=1) < n.alone)
        return alone

    def narrowness(self, group: Mask) -> Array:
        """Log of the members' median effective rank over each client's, mean over modules, (K,)."""
        log = np.log(np.maximum(self.ranks, 1e-3)).mean(axis=0)
        return np.asarray(np.median(log[group]) - log)

    def of_usual_rank(self, group: Mask) -> Mask:
        """Whose updates have the rank of the members', (K,): another leaves out, or adds, the same for
        all who have it."""
        ranks = self.tables.ranks
        if ranks is None:
            return np.ones(len(group), bool)
        found: Mask = np.isclose(ranks, np.median(ranks[group]), rtol=0.1)
        return found

    def alike(self, group: Mask) -> Array:
        """How alike two clients are whatever their size, (K, K), 1 as two typical members are."""
        kernel = self.direction if self.clear(group) else self.kernel
        usual = float(np.median(agreement.pairs(kernel, group)))
        return np.asarray(kernel / usual) if usual > 0 else kernel

    def comparable(self, group: Mask) -> tuple[Array, bool]:
        """Cosines of whole adapters (K, K) where they tell anything of `group`, else the agreement of
        what two change; and whether it is the former."""
        clear = group.sum() > 1 and self.clear(group)
        return (self.direction if clear else self.kernel), bool(clear)

    @remembered
    def elsewhere(self, group: Mask) -> Mask:
        """Who began from other rows than members who began alike, (K,): no cosine tells of them."""
        rows = self.tables.rows
        if rows is None:
            return np.zeros(len(group), bool)
        usual = float(np.median(agreement.pairs(rows, group)))
        least = self.numbers.same_rows * usual
        found: Mask = agreement.support(rows, group) <= least
        return found & (usual > self.numbers.same_rows)

    @remembered
    def clear(self, group: Mask) -> bool:
        """Whether the members' cosines are more than those of strangers."""
        values = agreement.support(self.direction, group)
        chance = float(np.median(self.chance[np.ix_(group, group)]))
        return float(np.median(values[group])) >= self.numbers.clear_of_chance * chance

    @remembered
    def cut(self, group: Mask) -> Array:
        """`inner` with every update cut to the usual norm of its module, in its unit, (M, K, K)."""
        usual = np.median(self.norms[:, group], axis=1)[:, None]
        cut = np.minimum(self.norms, usual)
        sides = cut[:, :, None] * cut[:, None, :]
        inner = self.tables.inner
        return np.asarray(np.divide(inner, sides, out=np.zeros_like(inner), where=sides > 0))

    def per_module(self, kernels: Array, group: Mask) -> tuple[Array, Array]:
        """Support relative to the usual in each module, (M, K), and that usual, (M,).

        Where the usual is not positive the support itself stands.
        """
        values = agreement.rows_support(kernels, group)
        usual = np.median(values[:, group], axis=1)
        return values / np.where(usual > 0, usual, 1.0)[:, None], usual

    def live(self, usual: Array) -> Mask:
        """Modules in which the members agree at least half as much as they typically do."""
        live: Mask = usual > max(self.numbers.live_agreement * float(np.median(usual)), 0.0)
        return live

    def deviations(self, members: Mask) -> Array | None:
        """Cosines (K, K) of the updates without their part along the mean of `members`, 3 at least."""
        if members.sum() < MIN_CLIENTS:
            return None
        towards = self.whole[:, members].mean(axis=1)
        energy = float(towards[members].mean())
        if energy <= 0:
            return None
        left = self.whole - np.outer(towards, towards) / energy
        return np.asarray(agreement.cosines(left[None])[0])

    def kinds(self, group: Mask) -> float:
        """Spread of the cosines of the members' deviations: large where honest clients come in kinds."""
        cosine = self.deviations(group)
        return 0.0 if cosine is None else robust_scale(agreement.pairs(cosine, group))


def _traceless(tables: Tables) -> Array:
    """<P_i, P_j> of P = D D' - tr(D D') / d_out, (M, K, K): 0 for strangers of random directions."""
    energy = np.einsum("mkk->mk", tables.inner)
    chance = energy[:, :, None] * energy[:, None, :] / tables.d_out[:, None, None]
    return np.asarray(tables.overlap - chance)
