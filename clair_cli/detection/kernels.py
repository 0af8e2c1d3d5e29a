"""The tables of one cohort, compared: who is like whom, and what each client has of what they share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from clair_cli.detection import agreement, residuals
from clair_cli.detection.agreement import Array, Mask
from clair_cli.detection.alone import Who, alone
from clair_cli.detection.blocks import blocks, each
from clair_cli.detection.calibration import DetectionCalibration
from clair_cli.detection.causes import Causes, Shares, shares, with_company
from clair_cli.detection.copies import copies
from clair_cli.detection.heads import Heads
from clair_cli.detection.references import Apart, Fixed, Measuring, References, Table, measured
from clair_cli.detection.residuals import inverse
from clair_cli.detection.scales import median, robust_scale
from clair_cli.detection.tables import Tables
from clair_cli.settings import MIN_CLIENTS

SINGLE = 500
"""Clients above which kernels are kept in float32; what is computed of a row is float64."""


class Kernels(Measuring):
    """Comparisons of the clients of one cohort that no distance has been taken from yet.

    `kernel` (K, K) is the agreement, mean over modules; `direction` the cosines of `whole`, the inner
    products of whole adapters with every module in units of its usual norm; `told` are those of the
    modules whose updates mean something by themselves, None without any; `outputs` the inner products
    of the parts of D D' without trace: alike where outputs change alike. `chances` are the deviations of
    the cosines of strangers: with D_j turned by a random rotation Q of its input, the mean of
    <D_i, D_j Q>^2 over Q is ||D_i' D_j||_F^2 / d_in (Haar measure).
    """

    def __init__(
        self, tables: Tables, numbers: DetectionCalibration, threads: int | None = None
    ) -> None:
        self.tables, self.numbers, self.threads = tables, numbers, threads
        self.inner = Table(tables.inner)
        self.ranks = agreement.effective_ranks(tables.inner, tables.overlap)
        energy = np.einsum("mkk->mk", tables.inner).astype(float)
        self.norms = np.sqrt(energy.clip(min=0))
        self.zero = ~(self.norms > 0).any(axis=0)
        self.copies = copies(tables.inner, tables.digests, numbers)
        self.originals = self.copies.originals
        self.distinct = ~self.zero & self.copies.first
        self._fill(self._units())
        self.rows = None if tables.rows is None else Table(tables.rows)
        self.heads = Heads(tables, numbers, self.distinct)
        self.usual_norms = [Fixed(norm) for norm in self.norms]
        self.narrow = Fixed(np.log(np.maximum(self.ranks, 1e-3)).mean(axis=0))
        self.widths = None if tables.ranks is None else Fixed(tables.ranks)
        self.left = None if tables.unexplained is None else Fixed(tables.unexplained)

    def _fill(self, unit: Array) -> None:
        """All kernels, some rows of all modules at a time."""
        t, count = self.tables, len(self.zero)
        kept: Any = np.float32 if count > SINGLE else np.float64
        tells = np.ones(len(unit), bool) if t.absolute is None else t.absolute
        agree = np.empty((len(unit), count, count), kept)
        kernel, direction, whole, chance, outputs = (
            np.zeros((count, count), kept) for _ in range(5)
        )
        told = whole if tells.all() else np.zeros((count, count), kept)
        energy = self.norms**2
        fourth = inverse(np.sqrt(np.einsum("mkk->mk", t.overlap).astype(float).clip(min=0)))
        root = np.sqrt(self.ranks)
        size = inverse(np.sqrt(((self.norms / unit[:, None]) ** 2).sum(axis=0)))

        def fill(rows: slice) -> None:
            near, part, own, spread, out = (
                np.zeros((rows.stop - rows.start, count)) for _ in range(5)
            )
            for m, u in enumerate(unit):
                inner, overlap = (x[m, rows].astype(float) for x in (t.inner, t.overlap))
                raw = overlap * (fourth[m, rows, None] * fourth[m])
                agree[m, rows] = one = agreement.beyond_chance(
                    raw, root[m, rows, None] * root[m] / t.d_out[m]
                )
                near += one
                inner /= u**2
                part += inner
                overlap /= u**4
                spread += overlap / t.d_in[m]
                if tells[m]:
                    own += inner
                    trace = energy[m] / u**2
                    out += overlap - trace[rows, None] * trace / t.d_out[m]
            kernel[rows] = near / len(unit)
            whole[rows], outputs[rows] = part, out
            told[rows] = own
            both = size[rows, None] * size
            direction[rows] = part
            chance[rows] = np.sqrt(spread) * both

        each(blocks(count), fill, self.threads)
        self.wholes = Table(whole)
        one = inverse(np.sqrt(self.wholes.diagonal.astype(float).clip(min=0)))
        for rows in blocks(count):
            direction[rows] *= one[rows, None] * one
        self.agree, self.agreement = Table(agree), Table(kernel)
        self.cosines, self.chances, self.outputs = map(Table, (direction, chance, outputs))
        self.told = None
        if tells.any():
            self.told = self.wholes if told is whole else Table(told)

    def _units(self) -> Array:
        """The usual norm of each module, (M,); that of the largest where most clients have none."""
        usual, largest = np.median(self.norms[:, self.copies.first], axis=1), self.norms.max(axis=1)
        return np.where(usual > 0, usual, np.where(largest > 0, largest, 1.0))

    @property
    def kernel(self) -> Array:
        """Output-side agreement (K, K), mean over the modules."""
        return self.agreement.values

    @property
    def direction(self) -> Array:
        """Cosines of whole adapters, (K, K)."""
        return self.cosines.values

    @cached_property
    def likeness(self) -> Array:
        """Agreement and, where cosines are more than chance, direction: (K, K), each in its own unit."""
        who, tiny = np.flatnonzero(self.distinct), np.finfo(float).tiny

        def sums(rows: slice) -> tuple[float, float, float]:
            near, cosine, chance = (
                t.values[who[rows]][:, who].astype(float)
                for t in (self.agreement, self.cosines, self.chances)
            )
            places = np.arange(len(near)), np.arange(len(who))[rows]
            for table in (near, cosine):
                table[places] = 0
            clear = ((cosine / np.maximum(chance, tiny)) ** 2).sum()
            return clear, near.clip(min=0).sum(), cosine.clip(min=0).sum()

        parts = each(blocks(len(who), len(self.distinct)), sums, self.threads)
        pairs = len(who) * (len(who) - 1)
        if pairs == 0:
            return self.kernel
        clear, *usual = np.sum(parts, axis=0) / pairs
        found = self.kernel
        if usual[0] > 0:
            found = found / usual[0].astype(found.dtype)
        if clear > self.numbers.clear_of_chance**2:
            other = self.direction
            found = found + (other / usual[1].astype(other.dtype) if usual[1] > 0 else other)
        return found

    # --- one group alone, or several

    @measured
    def shares(self, groups: References) -> Shares | None:
        """What each client has of what the members share; None where they share nothing.

        Updates known up to a common part do not tell, and are left out.
        """
        return None if self.told is None else shares(self.told, groups)

    def causes(self, group: Mask) -> Causes | None:
        """`shares` against one group, and who has company in the rest."""
        groups = self.single(group)
        if "causes" not in groups.remembered:
            found = self.shares(groups)
            known = None
            if found is not None and self.told is not None:
                known = with_company(found, self.told, self.clear(groups))
            groups.remembered["causes"] = known
        answer: Causes | None = groups.remembered["causes"]
        return answer

    def output_causes(self, group: Mask) -> Causes | None:
        """`causes` of the outputs that the updates change, whatever they make of the inputs."""
        found = None if self.told is None else shares(self.outputs, self.single(group))
        return None if found is None else with_company(found, self.outputs)

    @measured
    def kept(self, groups: References) -> Array | None:
        """Share of the common content in each client, None where cosines are mere chance.

        A head that learned the others' task speaks for a client whose other modules do not.
        """
        why = self.shares(groups) if self.clear(groups) else None
        if why is None:
            return None
        head = self.heads.kept(groups)
        if head is None:
            return why.kept
        return np.fmax(why.kept, head - self.numbers.head_excuse)

    @measured
    def stragglers(self, groups: References) -> Mask:
        """Who is no member, has some of the common content, and is alone with its rest."""
        n, why, kept = self.numbers, self.shares(groups), self.kept(groups)
        if why is None or kept is None or self.told is None:
            return np.zeros(groups.masks.shape, bool)
        outside = self.distinct & ~groups.masks
        some = outside & (kept > 1 - n.limit * n.content_floor) & (kept < 1 + n.content_floor)
        return alone(self.told, groups, why, some, self.distinct, n.alone)

    def following(self, groups: References, b: int) -> int:
        """How many of the stragglers of group b follow its members.

        Those who share more with each other than with the members are a side of their own, with whoever
        outside has as much of what they share as one of them. It does not follow if it is no smaller
        than the members.
        """
        who, why = np.flatnonzero(self.stragglers(groups)[b]), self.shares(groups)
        if why is None or self.told is None or len(who) < 2:
            return len(who)
        part = why.part[b, who].astype(float)
        common = part * (part.sum() - part) / (len(who) - 1)
        apart = who[self._shared(who, who) > 2 * common]
        if len(apart) < 2:
            return len(who)
        outside = np.flatnonzero(self.distinct & ~groups.masks[b])
        least = self._shared(apart, apart).min()
        side = (self._shared(outside, apart) >= least).sum()
        return len(who) - len(apart) * int(side >= groups.counts[b])

    def _shared(self, one: Who, others: Who) -> Array:
        """Mean inner product of each client with the `others` but itself, all by position."""
        assert self.told is not None
        other = one[:, None] != others
        inner = self.told.values[np.ix_(one, others)].astype(float)
        return np.asarray((inner * other).sum(axis=1) / other.sum(axis=1))

    @measured
    def narrowness(self, groups: References) -> Array:
        """Log of the members' median effective rank over each client's, mean over modules."""
        return self.kind(groups.median(self.narrow) - self.narrow.values)

    @measured
    def of_usual_rank(self, groups: References) -> Mask:
        """Whose updates have the rank of the members': another leaves out, or adds, the same for all who
        have it."""
        if self.widths is None:
            return np.ones(groups.masks.shape, bool)
        usual, which = np.unique(groups.median(self.widths)[:, 0], return_inverse=True)
        found: Mask = np.isclose(self.widths.values, usual[:, None], rtol=0.1)[which]
        return found

    def kind(self, values: Array) -> Array:
        """The values in the precision of the kernels."""
        return np.asarray(values, self.kernel.dtype)

    def alike(self, group: Mask) -> Array:
        """How alike two clients are whatever their size, (K, K), 1 as two typical members are."""
        kernel = self.direction if self.clear(group) else self.kernel
        usual = median(agreement.pairs(kernel, group))
        return np.asarray(kernel / np.asarray(usual, kernel.dtype)) if usual > 0 else kernel

    def comparable(self, group: Mask) -> tuple[Array, bool]:
        """Cosines of whole adapters (K, K) where they tell anything of `group`, else the agreement of
        what two change; and whether it is the former."""
        clear = group.sum() > 1 and self.clear(group)
        return (self.direction if clear else self.kernel), bool(clear)

    @measured
    def elsewhere(self, groups: References) -> Mask:
        """Who began from other rows than members who began alike: no cosine tells of them."""
        if self.rows is None:
            return np.zeros(groups.masks.shape, bool)
        same, own = self.numbers.same_rows, groups.support(self.rows)
        low, high = groups.pair_median(self.rows, diagonal=False)
        found = (own <= same * high) & (high > same)
        certain = found == ((own <= same * low) & (low > same))
        for b in np.flatnonzero(~certain.all(axis=1)):
            usual = groups.exact_pair_median(self.rows, int(b), diagonal=False)
            found[b] = (own[b] <= same * usual) & (usual > same)
        return found

    @measured
    def _clear(self, groups: References) -> Mask:
        """Whether the members' cosines are more than those of strangers, (B,)."""
        usual = groups.median(self.aligned(groups))[:, 0]
        low, high = (
            self.numbers.clear_of_chance * x
            for x in groups.pair_median(self.chances, diagonal=True)
        )
        found = usual >= high
        for b in np.flatnonzero(found != (usual >= low)):
            chance = groups.exact_pair_median(self.chances, int(b), diagonal=True)
            found[b] = usual[b] >= self.numbers.clear_of_chance * chance
        return found

    def clear(self, group: Mask | References) -> bool:
        """Whether the members' cosines are more than those of strangers, of all groups alike."""
        groups = group if isinstance(group, References) else self.single(group)
        return groups.agreed(self._clear(groups))

    @measured
    def aligned(self, groups: References) -> Array:
        """Mean cosine of each client with the members."""
        return groups.support(self.cosines)

    @measured
    def agreed(self, groups: References) -> Array:
        """Mean agreement of each client with the members."""
        return groups.support(self.agreement)

    @measured
    def in_modules(self, groups: References) -> tuple[Array, Array]:
        """`per_module` of the agreement."""
        return self.per_module(groups.support(self.agree), groups)

    @measured
    def cut_in_modules(self, groups: References) -> tuple[Array, Array]:
        """`per_module` of inner products of updates cut to their module's usual norm, in its unit."""
        usual = np.stack([groups.median(norm)[:, 0] for norm in self.usual_norms])
        return self.per_module(groups.weighted(self.inner, "cut", usual, self.norms, _cut), groups)

    @measured
    def cosines_in_modules(self, groups: References) -> tuple[Array, Array]:
        """`per_module` of the cosines."""
        none = np.zeros((len(self.norms), len(groups.masks)))
        return self.per_module(
            groups.weighted(self.inner, "one", none, self.norms, lambda norm, _: inverse(norm)),
            groups,
        )

    def per_module(self, values: Array, groups: References) -> tuple[Array, Array]:
        """Support `values` relative to the usual in each module, (M, B, K), and that usual, (M, B).

        Where the usual is not positive the support itself stands.
        """
        usual = groups.median(values)
        return values / np.where(usual > 0, usual, 1), usual[..., 0]

    def live(self, usual: Array) -> Mask:
        """Modules (M,) in which the members agree at least half as much as they typically do."""
        live = usual > np.maximum(self.numbers.live_agreement * np.median(usual, axis=0), 0.0)
        found: Mask = live[:, 0]
        if not (live == live[:, :1]).all():
            raise Apart
        return found

    def along(self, groups: References) -> Array | None:
        """The part of each client along the members' mean, (B, K); None where that mean is nothing."""
        towards = groups.sums(self.wholes) / self.kind(groups.counts)[:, None]
        energy = (towards * groups.masks).sum(axis=1, keepdims=True)
        energy /= self.kind(groups.counts)[:, None]
        return towards / np.sqrt(energy) if groups.agreed(energy > 0) else None

    def deviations(self, members: Mask) -> Array | None:
        """Cosines (K, K) of the updates without their part along the mean of `members`, 3 at least."""
        if members.sum() < MIN_CLIENTS:
            return None
        part = self.along(References(members[None]))
        if part is None:
            return None
        length = residuals.lengths(self.wholes.diagonal, part[0])
        return residuals.cosines(self.wholes.values, part[0], length)

    def kinds(self, group: Mask) -> float:
        """Spread of the cosines of the members' deviations: large where honest clients come in kinds."""
        cosine = self.deviations(group)
        return 0.0 if cosine is None else robust_scale(agreement.pairs(cosine, group))


def _cut(norm: Array, usual: float) -> Array:
    """Factors (K,) that cut updates to the usual norm, in its unit; 0 of what is zero."""
    return inverse(np.minimum(norm, usual))
