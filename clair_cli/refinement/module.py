"""Refined updates: the tensor work of  Delta~_k = (1 + g) M + F (Delta_k - M)  for one module.

Everything happens in orthonormal coordinates of the stacked factors. Averages are of products, never of
factors. What F keeps is chosen in `strength`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.linalg import eigh, standing_out
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration
from clair_cli.refinement.strength import Shrinkage, kept_share
from clair_cli.update import LowRankUpdate

SPECTRUM = 8
"""Leading shares of a module's deviations that are reported."""


@dataclass(frozen=True, slots=True, eq=False)
class RefinedModule:
    """One module of the clients after refinement.

    `updates` are the refined updates at the ranks asked for, None where the client's own is kept as it
    is; `common` is the mean. `subspace_rank` is the number of directions inside (their mean over the
    clients where each has its own), `spectrum` the leading shares (<= SPECTRUM) of the deviation energy
    per output direction. Per client: `squared` ||Delta_k||^2, `moved` ||Delta~_k - Delta_k||^2 before
    truncation, `lost` ||truncated - Delta~_k||^2, `deviation` ||Delta_k - M||^2 and `kept`, what F
    leaves of it. `amplitude` is the share of the members' deviations that F keeps, `common_squared` and
    `common_lost` belong to the mean.
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


@dataclass(frozen=True, slots=True, eq=False)
class _Aims:
    """`targets` before any cut, None where the client's own is kept; the rest as in RefinedModule."""

    targets: list[Tensor | None]
    kept: list[Tensor]
    energies: list[float]
    amplitude: float
    inside: float
    spectrum: NDArray[np.float64]


class ModuleRefiner:
    """One module of all clients that get something: coordinates and the mean once, then any shrinkage.

    `weights` (K,) sum to one and define the mean; a client of weight zero receives and gives nothing.
    `noise` are updates whose energies sum to the estimation error of all clients that define the mean.
    `sent` is what each client started from, None where that is nothing: Delta_k is then the change
    since, and what is written is what was sent and the refined change.
    """

    def __init__(
        self,
        updates: Sequence[LowRankUpdate],
        weights: Sequence[float],
        noise: Sequence[LowRankUpdate] = (),
        numbers: RefinementCalibration = REFINEMENT,
        sent: Sequence[LowRankUpdate | None] = (),
    ) -> None:
        began = {id(s): s for s in sent if s is not None}
        self.stack, self.numbers = _Coordinates([*updates, *began.values()], numbers), numbers
        self.weights, self.noise = weights, noise
        self.own_ranks = [u.rank for u in updates]
        cores = self.stack.cores()
        at = dict(zip(began, cores[len(updates) :], strict=True))
        nothing = torch.zeros_like(cores[0])
        self.sent = [at.get(id(s), nothing) for s in sent or updates]  # (p, q) each
        pairs = zip(cores, self.sent, strict=False)
        self.cores = [core - was for core, was in pairs] if began else cores
        self.mean = _weighted(weights, self.cores)  # (p, q)
        self.sent_mean = _weighted(weights, self.sent) if began else nothing  # (p, q)
        self.offs = [core - self.mean for core in self.cores]

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
        updates: list[LowRankUpdate | None] = []
        moved, lost = [], []
        clients = zip(self.cores, self.sent, aim.targets, ranks, self.own_ranks, strict=True)
        for core, was, target, rank, own in clients:
            if target is None and rank >= own:
                updates.append(None)
                moved.append(0.0)
                lost.append(0.0)
                continue
            target = core if target is None else target
            update, error = self.stack.truncate(was + target, rank, guide=was + core)
            updates.append(update)
            moved.append(float((target - core).square().sum()))
            lost.append(error)
        whole = self.sent_mean + self.mean
        common, common_lost = self.stack.truncate(whole, common_rank or max(ranks), whole)
        return RefinedModule(
            updates=tuple(updates),
            common=common,
            subspace_rank=aim.inside,
            spectrum=aim.spectrum,
            squared=np.array([float(c.square().sum()) for c in self.cores]),
            moved=np.array(moved),
            lost=np.array(lost),
            deviation=np.array(aim.energies),
            kept=np.array([float(k.square().sum()) for k in aim.kept]),
            amplitude=aim.amplitude,
            common_squared=float(self.mean.square().sum()),
            common_lost=common_lost,
        )

    def aims(
        self, how: Shrinkage, mix: Tensor | None = None, keeps: Sequence[float] | None = None
    ) -> _Aims:
        """What every client is to become before any cut; see `refined`."""
        shares, directions = self._directions("right" if how.side == "right" else "left")
        kept, inside = self._kept(how, shares, directions) if mix is None else self._mixed(mix)
        energies = [float(off.square().sum()) for off in self.offs]
        amplitude = self._amplitude(kept, energies)
        mean = self.mean * (1 + how.gain(1 - amplitude))
        share = keeps or [1.0] * len(kept)
        kept = [rest if s == 1 else rest * s for rest, s in zip(kept, share, strict=True)]
        nothing = how.inside == how.outside == 0.0
        targets = [
            None if (nothing and s == 1) or not energy else mean + rest
            for s, rest, energy in zip(share, kept, energies, strict=True)
        ]
        return _Aims(targets, kept, energies, amplitude, inside, shares[:SPECTRUM])

    def spectra(self, aim: _Aims) -> list[NDArray[np.float64]]:
        """Squared singular values of what every client is to become, with what was sent, descending."""
        clients = zip(self.sent, self.cores, aim.targets, strict=True)
        return [squared_spectrum(was + (c if t is None else t)) for was, c, t in clients]

    # --- F

    def _kept(
        self, how: Shrinkage, shares: NDArray[np.float64], directions: Tensor
    ) -> tuple[list[Tensor], float]:
        """F (Delta_k - M) of every client, and how many directions were inside."""
        if how.inside == how.outside and not how.by_direction:
            return [(1 - how.outside) * off for off in self.offs], 0.0
        if how.side == "own":
            return self._own(how)
        turned = [off.T for off in self.offs] if how.side == "right" else self.offs
        if how.by_direction:
            factors = self._by_noise(how.side, shares, directions)
            kept = [(directions * factors) @ (directions.T @ off) for off in turned]
            inside = int((factors > 0.5).sum())
        else:
            most = self.numbers.max_kept
            found = _standing_out(shares, self.stack, most)
            inside = min(found, most) if how.rank == "auto" else min(how.rank, len(shares))
            few = found <= most < len(shares)  # and some are left to be noise
            outside = how.outside if how.noise_like is None or not few else how.noise_like
            basis = directions[:, :inside]
            own = [basis @ (basis.T @ off) for off in turned]
            kept = [
                (1 - outside) * off + (outside - how.inside) * part
                for off, part in zip(turned, own, strict=True)
            ]
        return ([k.T for k in kept] if how.side == "right" else kept), inside

    def _own(self, how: Shrinkage) -> tuple[list[Tensor], float]:
        """Each client's strongest directions of deviation are its own."""
        kept, counts = [], []
        for off in self.offs:
            count = _participation(off) if how.rank == "auto" else how.rank
            u, s, v = _top_singular(off, count, off, self.numbers)
            kept.append((1 - how.outside) * off + (how.outside - how.inside) * (u * s) @ v.T)
            counts.append(count)
        return kept, float(np.mean(counts))

    def _mixed(self, mix: Tensor) -> tuple[list[Tensor], float]:
        """What several clients combine in: F mixes clients, all modules alike."""
        mix = mix.to(self.mean)
        kept = []
        for row in mix:
            kept.append(sum((m * o for m, o in zip(row, self.offs, strict=True)), 0 * self.mean))
        return kept, float((eigh((mix + mix.T) / 2)[0] > 0.5).sum())

    def _by_noise(self, side: str, shares: NDArray[np.float64], directions: Tensor) -> Tensor:
        """The share to keep of every direction (p,), from the replicates' energy in it."""
        base = self.stack.right if side == "right" else self.stack.left
        noise = torch.zeros(directions.shape[1], dtype=directions.dtype, device=directions.device)
        for update in self.noise:
            up, down = update.up, update.down * update.scale
            if side == "right":
                up, down = down.T, up.T
            noise += ((directions.T @ (base.T @ up)) @ down).square().sum(dim=1)
        count = sum(w > 0 for w in self.weights)
        pairs = zip(self.weights, self.offs, strict=True)
        total = sum(w * float(off.square().sum()) for w, off in pairs) * count / (1 - 1 / count)
        cost = self.numbers.difference_cost
        shared = zip(noise.cpu().tolist(), shares.tolist(), strict=True)
        kept = [kept_share(n / (s * total), cost) if s * total > 0 else 0.0 for n, s in shared]
        return directions.new_tensor(kept)

    def _amplitude(self, kept: Sequence[Tensor], energies: Sequence[float]) -> float:
        """<F off, off> over ||off||^2, over the clients that define the mean."""
        both = sum(
            w * float((k * o).sum()) for w, k, o in zip(self.weights, kept, self.offs, strict=True)
        )
        total = sum(w * e for w, e in zip(self.weights, energies, strict=True))
        return min(max(both / total, 0.0), 1.0) if total > 0 else 1.0

    def _directions(self, side: str) -> tuple[NDArray[np.float64], Tensor]:
        """Directions of the members' deviations: shares of energy, descending, and the basis."""
        size = self.mean.shape[1 if side == "right" else 0]
        cov = self.mean.new_zeros((size, size))
        for off, weight in zip(self.offs, self.weights, strict=True):
            if weight:
                cov += weight * (off.T @ off if side == "right" else off @ off.T)
        values, vectors = eigh(cov)
        energy = values.flip(0).clamp_min(0).cpu().numpy()
        total = float(energy.sum())
        return energy / total if total > 0 else energy, vectors.flip(1).to(cov.dtype)


def squared_spectrum(core: Tensor) -> NDArray[np.float64]:
    """Squared singular values, descending."""
    values: NDArray[np.float64] = torch.linalg.svdvals(core).square().cpu().double().numpy()
    return values


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


def _weighted(weights: Sequence[float], cores: Sequence[Tensor]) -> Tensor:
    """sum_k w_k C_k."""
    return sum(
        (w * c for w, c in zip(weights, cores, strict=True) if w), torch.zeros_like(cores[0])
    )


class _Coordinates:
    """Orthonormal bases of all columns and all rows, and every client's core (p, q) in them."""

    def __init__(self, updates: Sequence[LowRankUpdate], numbers: RefinementCalibration) -> None:
        self.numbers = numbers
        up = torch.cat([u.up for u in updates], dim=1)  # (d_out, n)
        down = torch.cat([u.down * u.scale for u in updates], dim=0)  # (n, d_in)
        self.left, left = torch.linalg.qr(up)  # (d_out, p), (p, n)
        self.right, right = torch.linalg.qr(down.T)  # (d_in, q), (q, n)
        sizes = [u.rank for u in updates]
        self.lefts, self.rights = left.split(sizes, dim=1), right.split(sizes, dim=1)

    def cores(self) -> list[Tensor]:
        """Delta_k in the common coordinates, (p, q) each."""
        return [b @ a.T for b, a in zip(self.lefts, self.rights, strict=True)]

    def truncate(self, core: Tensor, rank: int, guide: Tensor) -> tuple[LowRankUpdate, float]:
        """Best approximation of `core` (p, q) by `rank`, as factors, and the squared error.

        Small cores are decomposed exactly; large ones by subspace iteration, whose error is as
        reported, not as hoped for.
        """
        u, s, v = _top_singular(core, rank, guide, self.numbers)
        error = max(float(core.square().sum()) - float(s.square().sum()), 0.0)
        root = s.sqrt()
        return LowRankUpdate((self.left @ u) * root, root[:, None] * (self.right @ v).T), error


def _top_singular(
    core: Tensor, rank: int, guide: Tensor, numbers: RefinementCalibration
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets u (p, k), s (k,), v (q, k), k = min(rank, p, q)."""
    rank = min(rank, *core.shape)
    width = rank + numbers.svd_oversampling
    if min(core.shape) <= numbers.exact_svd * width:
        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank].T
    rows = torch.linspace(0, guide.shape[0] - 1, width, dtype=torch.long, device=core.device)
    basis = torch.linalg.qr((guide[rows] @ core.T).T)[0]  # (p, width)
    for _ in range(numbers.svd_sweeps):
        basis = torch.linalg.qr(core @ torch.linalg.qr(core.T @ basis)[0])[0]
    u, s, vt = torch.linalg.svd(basis.T @ core, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank].T


def _participation(off: Tensor) -> int:
    """How many directions carry a deviation: (sum s^2)^2 / sum s^4, rounded; 0 for zero."""
    energy = float(off.square().sum())
    small = off if off.shape[0] <= off.shape[1] else off.T
    fourth = float((small @ small.T).square().sum())
    return round(energy**2 / fourth) if fourth > 0 else 0


def _standing_out(shares: NDArray[np.float64], stack: _Coordinates, most: int) -> int:
    """How many of the `most` + 1 leading directions stand out of the bulk."""
    rows, columns = stack.left.shape[0], sum(b.shape[1] for b in stack.lefts)
    return standing_out(shares[: most + 1].tolist(), float(shares.sum()), rows, columns)
