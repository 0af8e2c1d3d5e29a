"""Refined updates: the tensor work of  Delta~_k = (1 + g) M + F (Delta_k - M)  for one module.

Everything happens in the small matrices of `coordinates`. Averages are of products, never of factors.
What F keeps is chosen in `strength`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.linalg import eigh, finite, standing_out
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration
from clair_cli.refinement.coordinates import Frame, coordinates
from clair_cli.refinement.kept import Kept, along, kept_alike
from clair_cli.refinement.spectra import participation, squared_spectrum, top_singular
from clair_cli.refinement.strength import Shrinkage, kept_share
from clair_cli.update import LowRankUpdate

SPECTRUM = 8
"""Leading shares of a module's deviations that are reported."""
ROUNDING = 32
"""Machine precisions: a client nearer to the mean than so many of its norms is the mean."""


Spectrum = tuple[NDArray[np.float64], float]
"""Squared singular values of what is to be written, descending, and the energy that a cut is measured
by: that of the change, since a cut that is small beside what was sent may be all of it."""


@dataclass(frozen=True, slots=True, eq=False)
class RefinedModule:
    """One module of the clients after refinement.

    `updates` are the refined updates at the ranks asked for, None where the client's own is kept as it
    is; `common` is the mean. `subspace_rank` is the number of directions inside (their mean over the
    clients where each has its own), `spectrum` the leading shares (<= SPECTRUM) of the deviation energy
    per output direction. Per client: `squared` ||Delta_k||^2, `moved` ||Delta~_k - Delta_k||^2 before
    truncation, `lost` ||truncated - Delta~_k||^2, `deviation` ||Delta_k - M||^2 and `kept`, what F
    leaves of it. `amplitude` is the share of the members' deviations that F keeps, `common_squared` and
    `common_lost` belong to the mean. `mean_error` is how far the refined update of any client is off
    because the mean was compressed, relative to its norm and to first order; 0 where it was not.
    """

    updates: tuple[LowRankUpdate | None, ...]
    common: LowRankUpdate
    subspace_rank: int | float
    spectrum: NDArray[np.float64]
    squared: NDArray[np.float64]
    moved: NDArray[np.float64]
    lost: NDArray[np.float64]
    deviation: NDArray[np.float64]
    kept: NDArray[np.float64]
    amplitude: float
    common_squared: float
    common_lost: float
    mean_error: float


@dataclass(frozen=True, slots=True, eq=False)
class _Aims:
    """What every client is to become before any cut: (1 + `gain`) M and what is `kept` of its deviation,
    or, where that is None, its own update. `shares` are of what F leaves; the rest as in RefinedModule.
    """

    kept: list[Kept]
    gain: float
    own: list[bool]
    energies: list[float]
    left: list[float]
    amplitude: float
    inside: float
    spectrum: NDArray[np.float64]

    @property
    def alike(self) -> bool:
        """Whether nobody keeps anything of its deviation."""
        return not any(one.all_of or one.up.numel() for one in self.kept)


class ModuleRefiner:
    """One module of all clients that get something: coordinates and the mean once, then any shrinkage.

    `weights` (K,) sum to one and define the mean; a client of weight zero receives and gives nothing.
    `noise` are updates whose energies sum to the estimation error of all clients that define the mean.
    Many clients are refined by coordinates of the mean, unless `exact`, with sides own and left alone.
    `sent` is what each client started from, None where that is nothing: Delta_k is then the change
    since, and what is written is what was sent and the refined change.
    """

    def __init__(
        self,
        updates: Sequence[LowRankUpdate],
        weights: Sequence[float],
        noise: Sequence[LowRankUpdate] = (),
        numbers: RefinementCalibration = REFINEMENT,
        exact: bool = False,
        sent: Sequence[LowRankUpdate | None] = (),
    ) -> None:
        self.numbers, self.weights, self.noise = numbers, weights, noise
        self.space = coordinates(updates, weights, numbers, exact, sent)
        self.frames = self.space.frames
        self.squared = [float(f.core.square().sum()) for f in self.frames]
        tiny = (ROUNDING * torch.finfo(updates[0].up.dtype).eps) ** 2
        self.energies = [
            0.0 if (energy := self._energy(f)) <= tiny * size else energy
            for f, size in zip(self.frames, self.squared, strict=True)
        ]

    @staticmethod
    def _energy(frame: Frame) -> float:
        """||Delta_k - M||^2."""
        return float((frame.core - frame.mean).square().sum()) + frame.rest

    @property
    def finite(self) -> bool:
        """Whether the mean is."""
        return finite(self.space.mean)

    def refined(
        self,
        how: Shrinkage,
        ranks: Sequence[int],
        common_rank: int | None = None,
        mix: Tensor | None = None,
        keeps: Sequence[float] | None = None,
    ) -> RefinedModule:
        """All clients under `how`, written at `ranks`; the mean at `common_rank` (default: largest).

        `mix` (K, K) is F for the side "client"; client k keeps the share `keeps`[k] of what F leaves.
        """
        aim = self.aims(how, mix, keeps)
        alike = aim.alike and self.space.written is None
        cut = self._cut_alike(aim) if alike else partial(self._cut, aim)
        cuts = [cut(k, rank) for k, rank in enumerate(ranks)]
        common, common_lost = self.cut_mean(common_rank or max(ranks))
        return RefinedModule(
            updates=tuple(c.update for c in cuts),
            common=common,
            subspace_rank=aim.inside,
            spectrum=aim.spectrum,
            squared=np.array(self.squared),
            moved=np.array([c.moved for c in cuts]),
            lost=np.array([c.lost for c in cuts]),
            deviation=np.array(self.energies),
            kept=np.array(aim.left),
            amplitude=aim.amplitude,
            common_squared=float(self.space.mean.square().sum()) + self.space.rest,
            common_lost=common_lost,
            mean_error=max(c.error for c in cuts),
        )

    def _cut(self, aim: _Aims, k: int, rank: int) -> _Cut:
        """Client k at this rank."""
        frame = self.frames[k]
        if aim.own[k] and rank >= frame.rank:
            return _Cut(None, 0.0, 0.0, 0.0)
        core = frame.core
        target, rest = (core, 0.0) if aim.own[k] else self._target(aim, k)
        whole = frame.written(target)
        u, s, v = top_singular(whole, rank, frame.written(core), self.numbers)
        size, root = float(whole.square().sum()), s.sqrt()
        update = LowRankUpdate(frame.left.lift(u * root).T, frame.right.lift(v * root))
        error = rest * frame.missed(u, v) ** 0.5 if rest and frame.rest else 0.0
        return _Cut(
            update,
            moved=float((target - core).square().sum()) + rest**2 * frame.rest,
            lost=max(size - float(s.square().sum()), 0.0) + rest**2 * frame.rest,
            error=error / size**0.5 if size > 0 else 0.0,
        )

    def _cut_alike(self, aim: _Aims) -> Callable[[int, int], _Cut]:
        """As `_cut`, where every client becomes the mean: cut once for every rank."""
        share = 1 + aim.gain
        cut = lru_cache(maxsize=None)(partial(self.cut_mean, share=share))

        def of(k: int, rank: int) -> _Cut:
            if aim.own[k]:
                return self._cut(aim, k, rank)
            frame, (update, lost) = self.frames[k], cut(rank)
            moved = float((share * frame.mean - frame.core).square().sum())
            return _Cut(update, moved + share**2 * frame.rest, lost, 0.0)

        return of

    def _target(self, aim: _Aims, k: int) -> tuple[Tensor, float]:
        """What client k is to become, in coordinates, and how much of the mean's error is in it."""
        frame, kept = self.frames[k], aim.kept[k]
        mean = frame.mean
        target = (1 + aim.gain) * mean + kept.core(frame.core - mean)
        return target, 1 + aim.gain - kept.all_of

    def cut_mean(self, rank: int, share: float = 1.0) -> tuple[LowRankUpdate, float]:
        """So much of the mean, and what was sent, at this rank, and the squared error."""
        left, mean, right = self._written
        u, s, v = top_singular(share * mean, rank, mean, self.numbers)
        size, root = share**2 * float(mean.square().sum()), s.sqrt()
        error = max(size - float(s.square().sum()), 0.0)
        update = LowRankUpdate(left @ (u * root).to(left), (v * root).T.to(right) @ right.T)
        return update, error + share**2 * self.space.rest

    @property
    def _written(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean, with what was sent, as left core right'."""
        return self.space.written or (self.space.left, self.space.mean, self.space.right)

    def aims(
        self, how: Shrinkage, mix: Tensor | None = None, keeps: Sequence[float] | None = None
    ) -> _Aims:
        """What every client is to become before any cut; see `refined`."""
        shares, directions = self._directions("right" if how.side == "right" else "left")
        kept, inside = self._kept(how, shares, directions) if mix is None else self._mixed(mix)
        amplitude = self._amplitude(kept)
        share = keeps or [1.0] * len(kept)
        kept = [one if s == 1 else one.times(s) for one, s in zip(kept, share, strict=True)]
        nothing = how.inside == how.outside == 0.0
        return _Aims(
            kept=kept,
            gain=how.gain(1 - amplitude),
            own=[(nothing and s == 1) or not e for s, e in zip(share, self.energies, strict=True)],
            energies=self.energies,
            left=[self._left(f, one) for f, one in zip(self.frames, kept, strict=True)],
            amplitude=amplitude,
            inside=inside,
            spectrum=shares[:SPECTRUM],
        )

    @staticmethod
    def _left(frame: Frame, kept: Kept) -> float:
        """||F (Delta_k - M)||^2."""
        rest = kept.core(frame.core - frame.mean)
        return float(rest.square().sum()) + kept.all_of**2 * frame.rest

    def spectra(self, aim: _Aims) -> list[Spectrum]:
        """Of what every client is to become; see Spectrum."""
        found = []
        for k, frame in enumerate(self.frames):
            change = frame.core if aim.own[k] else self._target(aim, k)[0]
            found.append((squared_spectrum(frame.written(change)), float(change.square().sum())))
        return found

    def mean_spectrum(self) -> Spectrum:
        """Of the mean; what its coordinates miss counts as alike, and none above the least found."""
        found, rest = squared_spectrum(self._written[1]), self.space.rest
        energy = float(self.space.mean.square().sum()) + rest
        if not rest:
            return found, energy
        most = self.space.dimensions - len(found)
        count = min(max(round(rest / max(float(found[-1]), 1e-300)), 1), max(most, 1))
        return np.concatenate([found, np.full(count, rest / count)]), energy

    # --- F

    def _kept(
        self, how: Shrinkage, shares: NDArray[np.float64], directions: Tensor
    ) -> tuple[list[Kept], float]:
        """F (Delta_k - M) of every client, and how many directions were inside."""
        if how.inside == how.outside and not how.by_direction:
            return [kept_alike(f, 1 - how.outside) for f in self.frames], 0.0
        if how.side == "own":
            return self._own(how)
        if how.by_direction:
            factors = self._by_noise(how.side, shares, directions)
            inside = int((factors > 0.5).sum())
            return [along(f, how.side, directions, factors, 0.0) for f in self.frames], inside
        most = self.numbers.max_kept
        found = self._standing_out(shares, most)
        inside = min(found, most) if how.rank == "auto" else min(how.rank, len(shares))
        few = found <= most < len(shares)  # and some are left to be noise
        outside = how.outside if how.noise_like is None or not few else how.noise_like
        basis = directions[:, :inside]
        more = basis.new_full((inside,), outside - how.inside)
        return [along(f, how.side, basis, more, 1 - outside) for f in self.frames], inside

    def _own(self, how: Shrinkage) -> tuple[list[Kept], float]:
        """Each client's strongest directions of deviation are its own."""
        kept, counts = [], []
        for frame, energy in zip(self.frames, self.energies, strict=True):
            off = frame.core - frame.mean
            count = participation(off, energy) if how.rank == "auto" else how.rank
            u, s, v = top_singular(off, count, off, self.numbers)
            kept.append(Kept(1 - how.outside, (how.outside - how.inside) * u * s, v))
            counts.append(count)
        return kept, float(np.mean(counts))

    def _mixed(self, mix: Tensor) -> tuple[list[Kept], float]:
        """What several clients combine in: F mixes clients, all modules alike."""
        mix, mean = mix.to(self.space.mean), self.space.mean
        eye = torch.eye(mean.shape[1]).to(mean)
        kept = []
        for row in mix:
            total = -float(row.sum()) * mean
            for share, frame in zip(row.tolist(), self.frames, strict=True):
                total.addmm_(frame.left.coords, frame.right.coords.T, alpha=share)
            kept.append(Kept(0.0, total, eye))
        return kept, float((eigh((mix + mix.T) / 2)[0] > 0.5).sum())

    def _by_noise(self, side: str, shares: NDArray[np.float64], directions: Tensor) -> Tensor:
        """The share to keep of every direction (p,), from the replicates' energy in it."""
        base = self.space.right if side == "right" else self.space.left
        noise = directions.new_zeros(directions.shape[1])
        for update in self.noise:
            up, down = update.up, update.down * update.scale
            if side == "right":
                up, down = down.T, up.T
            seen = directions.T @ (base.T @ up).double()
            noise += (seen @ down.double()).square().sum(dim=1)
        count = sum(w > 0 for w in self.weights)
        pairs = zip(self.weights, self.energies, strict=True)
        total = sum(w * energy for w, energy in pairs) * count / (1 - 1 / count)
        cost = self.numbers.difference_cost
        shared = zip(noise.cpu().tolist(), shares.tolist(), strict=True)
        kept = [kept_share(n / (s * total), cost) if s * total > 0 else 0.0 for n, s in shared]
        return directions.new_tensor(kept)

    def _amplitude(self, kept: Sequence[Kept]) -> float:
        """<F off, off> over ||off||^2, over the clients that define the mean."""
        both = total = 0.0
        for w, one, frame, energy in zip(
            self.weights, kept, self.frames, self.energies, strict=True
        ):
            if w:
                off = frame.core - frame.mean
                left = float((one.core(off) * off).sum()) + one.all_of * frame.rest
                both, total = both + w * left, total + w * energy
        return min(max(both / total, 0.0), 1.0) if total > 0 else 1.0

    def _directions(self, side: str) -> tuple[NDArray[np.float64], Tensor]:
        """Directions of the members' deviations: shares of energy, descending, and the basis."""
        mean = self.space.mean.T if side == "right" else self.space.mean
        cov = -mean @ mean.T
        for frame, weight in zip(self.frames, self.weights, strict=True):
            if weight:
                one, other = (
                    (frame.left, frame.right) if side == "left" else (frame.right, frame.left)
                )
                inside = one.coords[: len(cov)]
                cov += weight * inside @ (other.coords.T @ other.coords) @ inside.T
        values, vectors = eigh((cov + cov.T) / 2)
        energy = values.flip(0).clamp_min(0).cpu().numpy()
        total = sum(w * e for w, e in zip(self.weights, self.energies, strict=True))
        return energy / total if total > 0 else 0 * energy, vectors.flip(1)

    def _standing_out(self, shares: NDArray[np.float64], most: int) -> int:
        """How many of the `most` + 1 leading directions stand out of the bulk."""
        rows, columns = self.space.dimensions, self.space.columns
        return standing_out(shares[: most + 1].tolist(), float(shares.sum()), rows, columns)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """One client's update at its rank, None where its own is kept; `error` is that of the mean in it."""

    update: LowRankUpdate | None
    moved: float
    lost: float
    error: float


def refine_module(
    updates: Sequence[LowRankUpdate],
    weights: Sequence[float],
    ranks: Sequence[int],
    subspace_rank: int | Literal["auto"] = "auto",
    strength: float = 1.0,
    common_rank: int | None = None,
) -> RefinedModule:
    """Delta_k - t (I - U U')(Delta_k - M) for one module, U the leading output directions.

    `weights` sum to one and define the mean; `ranks` are the ranks to write, per client;
    `common_rank` is that of the mean (default: the largest of `ranks`).
    """
    how = Shrinkage("left", subspace_rank, 0.0, strength)
    return ModuleRefiner(updates, weights).refined(how, ranks, common_rank)
