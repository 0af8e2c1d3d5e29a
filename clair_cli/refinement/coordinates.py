"""Coordinates in which the updates of one module are averaged and cut: small matrices instead of large.

Of few columns in all, orthonormal bases of all of them. Of many, those of the clients' mean and of their
leading deviations, found once by a randomised range finder (Halko, Martinsson & Tropp 2011), and beside
them each client's own columns: what one client costs does not depend on how many there are. What the
bases miss of the mean is known by its action on random vectors, which says how far a client is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.linalg import eigh
from clair_cli.refinement.calibration import RefinementCalibration
from clair_cli.refinement.passes import (
    Client,
    Draw,
    deviations,
    gathered,
    orthonormal,
    times,
    turned,
)
from clair_cli.update import LowRankUpdate, combined

PROBES = 8
"""Random vectors per side by which the error of a mean is estimated: within a third or so, as it is
spread over many directions."""
FEW = 4
"""Times the directions that a mean is compressed to: of fewer columns nothing is won by compressing."""
SAMPLE = 8
"""Clients by which the size of the mean's bases is chosen."""
NEGLIGIBLE = 1e-5
"""Of a factor's norm: what of it lies outside of a basis by less is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side of a client's update: x (p + e) are coordinates in `basis` (d, p) and e directions of its
    own `columns` (d, r) outside of it, of which there are none where the basis holds all.

    `coords` (p + e, r) are those of what the columns stand for, `inside` (p, r) those of the columns
    themselves in the basis, and `white` (r, e) makes directions of what it leaves of them. `missed`
    (p + e, s) is what the mean's error makes of random vectors.
    """

    basis: Tensor
    columns: Tensor
    coords: Tensor
    inside: Tensor
    white: Tensor
    missed: Tensor

    @property
    def size(self) -> int:
        """Coordinates that are the basis's, p."""
        return self.basis.shape[1]

    def lift(self, x: Tensor) -> Tensor:
        """Vectors (k, d) of coordinates (p + e, k), in the dtype of the basis."""
        if not self.white.shape[1]:
            return x.T.to(self.basis) @ self.basis.T
        own = self.white @ x[self.size :]
        inside = (x[: self.size] - self.inside @ own).T.to(self.basis)
        return torch.addmm(inside @ self.basis.T, own.T.to(self.basis), self.columns.T)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One client in its coordinates: Delta_k is `left.coords` times `right.coords`'.

    The mean is `common`. What the client itself adds to it outside of the bases is `apart`, and `rest`
    is the energy of what these miss of it. `rank` is that of the client's update as it was read.
    `sent` (p, q) is what the client started from, None where that is nothing: Delta_k is what it changed
    since.
    """

    left: Side
    right: Side
    common: Tensor
    apart: Tensor
    rest: float
    rank: int
    sent: Tensor | None = None

    @property
    def core(self) -> Tensor:
        """Delta_k, (p, q) in float64."""
        return self.left.coords @ self.right.coords.T

    @property
    def mean(self) -> Tensor:
        """M, (p, q) in float64."""
        if not self.apart.numel():
            return self.common
        (p, q), (e, f) = self.common.shape, self.apart.shape
        mean = self.common.new_zeros(p + e, q + f)
        mean[:p, :q], mean[p:, q:] = self.common, self.apart
        return mean

    def beside(self, count: int) -> Frame:
        """The same where the last `count` columns are what was sent, taken off."""
        left, right = (side.coords[:, -count:] for side in (self.left, self.right))
        return replace(self, rank=self.rank - count, sent=-left @ right.T)

    def written(self, change: Tensor) -> Tensor:
        """What is written of a change (p, q): what was sent, and the change."""
        return change if self.sent is None else self.sent + change

    def missed(self, left: Tensor, right: Tensor) -> float:
        """To first order, by how much an update with these singular vectors (p, k) and (q, k) is off
        because of the mean's error: ||left' E||^2 + ||E right||^2."""
        found = (left.T @ self.left.missed).square().sum()
        found = found + (right.T @ self.right.missed).square().sum()
        return float(found) / PROBES


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """The mean as left (d_out, p) `mean` (p, q) right', what it misses by `rest` in energy, and the
    clients; `columns` is their number in all, `dimensions` how many of these are independent. `written`
    is the mean with what was sent on average in the same form, None where nothing was."""

    left: Tensor
    right: Tensor
    mean: Tensor
    rest: float
    frames: Sequence[Frame]
    columns: int
    dimensions: int
    written: tuple[Tensor, Tensor, Tensor] | None = None


def coordinates(
    updates: Sequence[LowRankUpdate],
    weights: Sequence[float],
    numbers: RefinementCalibration,
    exact: bool = False,
    sent: Sequence[LowRankUpdate | None] = (),
) -> Coordinates:
    """Of the clients' updates and their mean; exact where asked for, or where columns are few. Where
    something was `sent`, updates count as what they changed since."""
    count = min(sum(u.rank for u in updates), len(updates[0].up), updates[0].down.shape[1])
    found, sent = None, sent or [None] * len(updates)
    if not exact and count > FEW * numbers.mean_rank:
        pairs = zip(updates, sent, strict=True)
        changes = [u if s is None else combined([u, s], [1.0, -1.0]) for u, s in pairs]
        found = _compressed(changes, weights, numbers)
    return _whole(updates, weights, sent) if found is None else _beside(found, sent, weights)


def _beside(
    space: Coordinates, sent: Sequence[LowRankUpdate | None], weights: Sequence[float]
) -> Coordinates:
    """The same with what was sent, whose columns are the last of each client's, less than nothing."""
    began = {id(s): s for s in sent if s is not None}
    if not began:
        return space
    pairs = zip(space.frames, sent, strict=True)
    frames = [f if s is None else f.beside(s.rank) for f, s in pairs]
    counts = dict.fromkeys(began, 0.0)
    for weight, one in zip(weights, sent, strict=True):
        if one is not None:
            counts[id(one)] += weight
    downs = [(s.down * (s.scale * counts[key])).T for key, s in began.items()]
    left, lefts = torch.linalg.qr(torch.cat([space.left, *(s.up for s in began.values())], dim=1))
    right, rights = torch.linalg.qr(torch.cat([space.right, *downs], dim=1))
    (p, q), lefts, rights = space.mean.shape, lefts.double(), rights.double()
    mean = lefts[:, :p] @ space.mean @ rights[:, :q].T + lefts[:, p:] @ rights[:, q:].T
    return replace(space, frames=frames, written=(left, mean, right))


def _whole(
    updates: Sequence[LowRankUpdate],
    weights: Sequence[float],
    sent: Sequence[LowRankUpdate | None],
) -> Coordinates:
    """Bases of all columns."""
    began = {id(s): s for s in sent if s is not None}
    every = [*updates, *began.values()]
    left, lefts = torch.linalg.qr(torch.cat([u.up for u in every], dim=1))
    right, rights = torch.linalg.qr(torch.cat([u.down * u.scale for u in every]).T)
    sizes, empty = [u.rank for u in every], left.new_zeros(0, 0, dtype=torch.float64)
    parts = [
        (b.double(), a.double())
        for b, a in zip(lefts.split(sizes, dim=1), rights.split(sizes, dim=1), strict=True)
    ]
    own, at = parts[: len(updates)], dict(zip(began, parts[len(updates) :], strict=True))
    changes = [
        pair if s is None else _minus(pair, at[id(s)]) for pair, s in zip(own, sent, strict=True)
    ]
    cores = {key: b @ a.T for key, (b, a) in at.items()}
    mean = _weighted(weights, [b @ a.T for b, a in changes])

    def _plain(basis: Tensor, coords: Tensor) -> Side:
        return Side(basis, basis[:, :0], coords, coords, empty, empty)

    frames = [
        Frame(_plain(left, b), _plain(right, a), mean, empty, 0.0, u.rank, cores.get(id(s)))
        for (b, a), u, s in zip(changes, updates, sent, strict=True)
    ]
    nothing = torch.zeros_like(mean)
    of_sent = _weighted(weights, [cores.get(id(s), nothing) for s in sent])
    written = (left, of_sent + mean, right) if began else None
    columns = sum(sizes[: len(updates)])
    return Coordinates(left, right, mean, 0.0, frames, columns, left.shape[1], written)


def _minus(own: tuple[Tensor, Tensor], sent: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Coordinates of both sides of B A - B_0 A_0: [B, -B_0] and [A', A_0']."""
    return torch.cat([own[0], -sent[0]], dim=1), torch.cat([own[1], sent[1]], dim=1)


def _weighted(weights: Sequence[float], cores: Sequence[Tensor]) -> Tensor:
    """sum_k w_k C_k."""
    total = torch.zeros_like(cores[0])
    for weight, core in zip(weights, cores, strict=True):
        total = total + weight * core if weight else total
    return total


# --- the mean of many


def _compressed(
    updates: Sequence[LowRankUpdate], weights: Sequence[float], numbers: RefinementCalibration
) -> Coordinates | None:
    """Bases of the mean, as large as a sample of the clients says that they have to be.

    None where they would be about as large as those of all columns, if these are no more than
    `whole_columns`; of more the error is what it is, and is told.
    """
    clients = [Client(u.up, u.down, u.scale, w) for u, w in zip(updates, weights, strict=True)]
    giving = [c for c in clients if c.weight]
    columns, d_out, d_in = (
        sum(u.rank for u in updates),
        len(clients[0].up),
        clients[0].down.shape[1],
    )
    dimensions = min(columns, d_out, d_in)
    few = dimensions <= numbers.whole_columns
    most = dimensions // 2 if few else numbers.whole_columns // 4
    size, sample = numbers.mean_rank, clients[:: -(-len(clients) // SAMPLE)]
    draw = Draw(giving[0].up)
    mean = _Mean.of(giving, gathered(giving, size), draw)
    while True:
        tried = {id(client): mean.frame(client) for client in sample}
        fine = _off(tried.values()) <= numbers.mean_error
        if fine or size >= most:
            break
        size = min(2 * size, most)
        more = draw(d_in, size - mean.right.shape[1])
        mean = _Mean.of(giving, torch.cat([mean.right, more], dim=1), draw)
    if few and not fine:
        return None
    frames = [tried.get(id(client)) or mean.frame(client) for client in clients]
    left, right, rest = mean.left, mean.right, mean.rest
    return Coordinates(left, right, mean.core, rest, frames, columns, min(columns, d_out))


@dataclass(frozen=True, slots=True, eq=False)
class _Mean:
    """M = left core right' + E, and E of the energy `rest` on random vectors.

    `probes` hold, for either side, what E makes of the other side's random vectors, and this side's own;
    `at_bases` are coordinates of these.
    """

    left: Tensor
    right: Tensor
    core: Tensor
    rest: float
    probes: tuple[Tensor, Tensor]
    at_bases: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, giving: Sequence[Client], start: Tensor, draw: Draw) -> _Mean:
        """From the images of `start` (d_in, k) on; E has nothing on the left basis."""
        d_out, d_in = len(giving[0].up), len(start)
        draws = draw(d_in, PROBES), draw(d_out, PROBES)
        image = times(giving, torch.cat([orthonormal(start), draws[0]], dim=1))
        image, seen = image[:, :-PROBES], image[:, -PROBES:]
        left = orthonormal(torch.cat([image, deviations(giving, draw)], dim=1))
        back = turned(giving, torch.cat([left, draws[1]], dim=1))
        right, core = torch.linalg.qr(back[:, :-PROBES])
        missed = (
            seen - left @ (core.T @ (right.T @ draws[0])),
            back[:, -PROBES:] - right @ (core @ (left.T @ draws[1])),
        )
        rest = sum(float(m.square().sum()) for m in missed) / (2 * PROBES)
        probes = torch.cat([missed[0], draws[1]], dim=1), torch.cat([missed[1], draws[0]], dim=1)
        at_bases = left.T @ probes[0], right.T @ probes[1]
        return cls(left, right, core.T.double(), rest, probes, at_bases)

    def frame(self, client: Client) -> Frame:
        """The client beside the mean."""
        left, own_left, seen = self._side(client.up, 1.0, 0)
        right, own_right, found = self._side(client.down.T, client.scale, 1)
        own = client.weight * own_left @ own_right.T  # of the mean, outside of both bases
        left.missed[left.size :] -= own @ found
        right.missed[right.size :] -= own.T @ seen
        captured = float(own.square().sum())
        rest = max(self.rest - captured, 0.0)
        return Frame(left, right, self.core, own, rest, client.up.shape[1])

    def _side(self, columns: Tensor, scale: float, which: int) -> tuple[Side, Tensor, Tensor]:
        """A side of a client, whose columns count by `scale`, what they have outside of the basis, and,
        outside of it, the random vectors that the other side's were drawn for."""
        basis = (self.left, self.right)[which]
        inside = basis.T @ columns  # (p, r)
        # as rows (r, d): as columns it takes twice as long
        beyond = torch.addmm(columns.T, inside.T, basis.T, alpha=-1)
        gram = (beyond @ beyond.T).double()
        values, vectors = eigh(gram)
        real = values > NEGLIGIBLE**2 * (inside.square().sum() + gram.trace())
        white = vectors[:, real] * values[real].rsqrt()
        seen = white.T @ (beyond @ self.probes[which]).double()
        missed = torch.cat([self.at_bases[which][:, :PROBES].double(), seen[:, :PROBES]])
        inside, outside = inside.double(), scale * (white.T @ gram)
        coords = torch.cat([scale * inside, outside])
        side = Side(basis, columns, coords, inside, white, missed)
        return side, outside, seen[:, PROBES:]


def _off(frames: Iterable[Frame]) -> float:
    """How far clients are off by the error of the mean, if they kept their own directions: the most that
    any is, relative to its norm."""
    largest = 0.0
    for frame in frames:
        left, right = (torch.linalg.qr(s.coords)[0] for s in (frame.left, frame.right))
        size = float(frame.core.square().sum())
        if size > 0:
            largest = max(largest, (frame.missed(left, right) / size) ** 0.5)
    return largest
