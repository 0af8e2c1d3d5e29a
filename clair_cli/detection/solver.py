"""The solver: [Delta_1 .. Delta_K] = M + U C + S with S block-sparse over clients, on factors only.

Iteratively reweighted least squares on  sum_k ( sum_m ||(I - U_m U_m') (Y_k^m - M^m)||_F^2 )^(1/2),
the l2,1 loss of robust subspace recovery (Lerman & Maunu 2018, "fast median subspace"), with one
weight per client over all modules: a block of S is a client's whole adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Mask
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.detection.coherence import coherent, split
from clair_cli.detection.stacks import ModuleStack, tables
from clair_cli.linalg import dominant, standing_out
from clair_cli.progress import Progress, silent
from clair_cli.settings import Settings

Status = Literal["converged", "iteration limit", "fitted"]
"""How a decomposition came about; fitted: its members were given, and nothing was iterated."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedSubspace:
    """U of one module: U = B V, with B the stacked columns of `ModuleStack`.

    `vectors` V (n, s) with V' B'B V = I, or in a sketch U (p, s) itself; `energies` (K, s) are
    ||u' (Y_k - M)||^2 on the CPU in float64; `spectrum` are the leading eigenvalues of the weighted
    deviations, `total` their sum.
    """

    vectors: Tensor
    energies: Tensor
    spectrum: Tensor
    total: float
    sketched: bool = False

    @property
    def rank(self) -> int:
        """How many directions are shared, s."""
        return self.vectors.shape[1]

    def of_all(self, counted: Mask, place: NDArray[np.intp]) -> SharedSubspace:
        """The same in the columns of all K clients, of whom it rests on the `counted` (K,).

        `place` (K,) is where among these each client's energies are.
        """
        energies = self.energies[torch.from_numpy(place)]
        if self.sketched:
            return replace(self, energies=energies)
        columns = counted.repeat(len(self.vectors) // int(counted.sum()))
        vectors = self.vectors.new_zeros(len(columns), self.rank)
        vectors[torch.from_numpy(columns).to(vectors.device)] = self.vectors
        return replace(self, vectors=vectors, energies=energies)


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """The stacked updates split into a common part, shared directions and contamination: M + U C + S.

    `weights` (K,) sum to one: M is the weighted mean of the updates; they are equal on `members`, the
    clients with S_k = 0, and zero elsewhere. `subspaces` has U per module. `residuals` (modules, K)
    are ||(I - U U')(Y_k - M)||_F and `norms` (modules, K) are ||Y_k||_F, for Y the updates in units
    of the module's median norm, capped. `gap` is the last relative change of the objective. `counted`
    (K,) are the clients that it rests on: all but copies.
    """

    modules: tuple[str, ...]
    weights: NDArray[np.float64]
    members: Mask
    subspaces: tuple[SharedSubspace, ...]
    residuals: NDArray[np.float64]
    norms: NDArray[np.float64]
    objective: float
    status: Status
    iterations: int
    gap: float
    start: str
    counted: Mask

    def relative_residuals(self) -> NDArray[np.float64]:
        """Residual over norm, (modules, K): 0 is fully explained, 0 too where the update is zero."""
        return np.divide(
            self.residuals, self.norms, out=np.zeros_like(self.norms), where=self.norms > 0
        )

    def unexplained(self) -> NDArray[np.float64]:
        """Energy of each client that M and U leave, (K,), in energies of a usual update."""
        usual = float(np.median((self.norms[:, self.counted] ** 2).sum(axis=0)))
        lost = (self.residuals**2).sum(axis=0)
        return np.asarray(lost / usual if usual > 0 else lost)

    def explained(self) -> NDArray[np.float64]:
        """Share of the members' energy that M and U explain, (modules,)."""
        lost = (self.residuals[:, self.members] ** 2).sum(axis=1)
        energy = (self.norms[:, self.members] ** 2).sum(axis=1)
        ratio = np.divide(lost, energy, out=np.ones_like(lost), where=energy > 0)
        return np.asarray((1 - ratio).clip(0, 1))

    def of_all(self, originals: NDArray[np.intp]) -> Decomposition:
        """From the decomposition of the originals alone that of all K clients: copies change nothing.

        `originals` (K,) are the positions of whom each client counts as. Of a copy it says what it
        says of the original.
        """
        who, place = np.unique(originals, return_inverse=True)
        counted = np.isin(np.arange(len(originals)), who)
        weights, members = np.zeros(len(originals)), counted.copy()
        weights[who], members[who] = self.weights, self.members
        return replace(
            self,
            weights=weights,
            members=members,
            subspaces=tuple(space.of_all(counted, place) for space in self.subspaces),
            residuals=self.residuals[:, place],
            norms=self.norms[:, place],
            counted=counted,
        )


def decompose(
    stacks: Sequence[ModuleStack],
    numbers: DetectionCalibration = DETECTION,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Decomposition:
    """Split the stacked updates of K >= 3 clients into M, U and S; see `Decomposition`.

    Several starts are tried for a few steps, and the one with the best objective is finished.
    `on_progress` hears of every iteration.
    """
    if not stacks or stacks[0].clients < 3:
        raise ValueError("decompose needs at least 3 clients and one module")
    problem = _Problem(_level(stacks, numbers.norm_cap), numbers, seed, on_progress)
    starts = {mask.tobytes(): (name, mask) for name, mask in _starts(problem.stacks).items()}
    runs = [_Run(problem, name, mask) for name, mask in starts.values()]
    for run in runs:  # a few steps tell the starts apart; most of them fall into one valley
        for _ in range(min(numbers.trial_steps, numbers.max_iterations)):
            run.step()
    best = min(runs, key=lambda r: r.objective)
    while best.gap > numbers.tolerance and best.iterations < numbers.max_iterations:
        best.step()
    return best.result()


def settled(
    solved: Decomposition, stacks: Sequence[ModuleStack], members: Mask, settings: Settings
) -> Decomposition:
    """`solved` itself where its members are the given ones (K,), else M and U fitted to those."""
    if (members == solved.members).all():
        return solved
    return refit(stacks, members, settings.detection, settings.seed)


def refit(
    stacks: Sequence[ModuleStack],
    members: Mask,
    numbers: DetectionCalibration = DETECTION,
    seed: int = 0,
) -> Decomposition:
    """M and U of the given members (K,), equally weighted: what the decomposition is once S is known."""
    problem = _Problem(_level(stacks, numbers.norm_cap), numbers, seed, silent)
    return _Run(problem, "given members", members).refit(members)


def _level(stacks: Sequence[ModuleStack], cap: float) -> list[ModuleStack]:
    """Scale every module to median client norm 1 and cap clients at `cap` times the median."""
    medians = [float(np.median(np.sqrt(s.energies.numpy().clip(min=0)))) for s in stacks]
    units = [1 / m if m > 0 else 0.0 for m in medians]
    norms = np.sqrt(sum(s.energies.numpy() * u**2 for s, u in zip(stacks, units, strict=True)))
    middle = float(np.median(norms))
    most = max(cap * middle, np.finfo(float).tiny)
    caps = most / np.maximum(norms, most)
    return [s.scaled(torch.from_numpy(caps * u)) for s, u in zip(stacks, units, strict=True)]


def _starts(stacks: Sequence[ModuleStack]) -> dict[str, Mask]:
    """Groups to start from: the agreement split, the most coherent majority, everybody."""
    inner, overlap, d_out, _ = tables(stacks)
    kernel = agreement.agreement(inner, overlap, d_out).mean(axis=0)
    count = len(kernel)
    return {
        "agreement": split(kernel)[0],
        "coherent majority": coherent(kernel, count // 2 + 1),
        "all": np.ones(count, bool),
    }


class _Problem:
    """The levelled stacks with what all starts share."""

    def __init__(
        self,
        stacks: list[ModuleStack],
        numbers: DetectionCalibration,
        seed: int,
        on_progress: Progress,
    ) -> None:
        self.stacks, self.numbers, self.on_progress = stacks, numbers, on_progress
        self.steps = 0
        draw = torch.Generator().manual_seed(seed)
        width = numbers.max_shared_rank + numbers.solver_oversampling
        self.bases = [
            torch.randn(len(s.left), min(width, len(s.left)), generator=draw).to(s.left)
            for s in stacks
        ]
        self.inner = sum(s.inner for s in stacks)
        eps = torch.finfo(stacks[0].left.dtype).eps
        scale = float(torch.as_tensor(self.inner).diagonal().median())
        # squared residuals are differences of sums over all columns: below this they are rounding
        columns = sum(s.clients * s.width for s in stacks)
        self.floor = float(np.sqrt(eps * columns * max(scale, np.finfo(float).tiny)))

    def residuals(
        self, spaces: Sequence[SharedSubspace], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        rows = []
        for stack, space in zip(self.stacks, spaces, strict=True):
            deviation = deviations(stack.inner.numpy(), weights)
            rows.append((deviation - space.energies.numpy().sum(axis=1)).clip(min=0))
        return np.asarray(np.sqrt(np.stack(rows)))


class _Run:
    """IRLS from one start; `step` goes one iteration, `result` refits exactly."""

    def __init__(self, problem: _Problem, name: str, start: Mask) -> None:
        self.problem, self.numbers, self.name = problem, problem.numbers, name
        self.weights = start / start.sum()
        self.bases = list(problem.bases)
        self.spaces: list[SharedSubspace] | None = None
        self.lengths = np.ones(len(start))
        self.objective, self.gap, self.iterations = np.inf, np.inf, 0

    def step(self) -> None:
        """Fit M and U under the weights, measure every client's distance, weigh by its inverse."""
        self.iterations += 1
        # the last step's directions are a warm start: one sweep keeps up with the weights
        sweeps = self.numbers.first_sweeps if self.iterations == 1 else 1
        _, self.lengths = self._fit(self.weights, sweeps)
        before, self.objective = self.objective, float(self.lengths.sum())
        self.gap = abs(before - self.objective) / self.objective
        rounding = len(self.lengths) * self.numbers.member_rounding * self.problem.floor
        if max(before, self.objective) <= rounding:  # what is left changes with the processor
            self.gap = 0.0
        self.weights = (1 / self.lengths) / (1 / self.lengths).sum()
        self.problem.steps += 1
        self.problem.on_progress("decomposing", self.problem.steps, 0)

    def result(self) -> Decomposition:
        """Settle who has S_k = 0, and refit on them."""
        ended = self.gap <= self.numbers.tolerance
        for _ in range(self.numbers.settling_rounds):
            members = self._support()
            found = self.refit(members, "converged" if ended else "iteration limit")
            if (members == self._support()).all():
                break
        return found

    def _support(self) -> Mask:
        """Clients with S_k = 0: not much further out than the nearer half, never a minority."""
        nearer = np.sort(self.lengths)[: len(self.lengths) // 2 + 1]
        usual = self.numbers.member_distance * float(np.median(nearer))
        rounding = self.numbers.member_rounding * self.problem.floor
        return np.asarray(self.lengths <= max(usual, rounding, float(nearer[-1])))

    def refit(self, members: Mask, status: Status = "fitted") -> Decomposition:
        """Equal weights on the clients with S_k = 0 make M and U exact where the data are."""
        weights = members / members.sum()
        self.spaces = None
        spaces, self.lengths = self._fit(weights, sweeps=self.numbers.refit_sweeps)
        return Decomposition(
            modules=tuple(s.module for s in self.problem.stacks),
            weights=weights,
            members=members,
            subspaces=tuple(spaces),
            residuals=self.problem.residuals(spaces, weights),
            norms=np.sqrt(np.stack([s.energies.numpy() for s in self.problem.stacks]).clip(min=0)),
            objective=float(self.lengths.sum()),
            status=status,
            iterations=self.iterations,
            gap=float(self.gap),
            start=self.name,
            counted=np.ones(len(members), bool),
        )

    def _fit(
        self, weights: NDArray[np.float64], sweeps: int
    ) -> tuple[list[SharedSubspace], NDArray[np.float64]]:
        """U of every module under the weights, and the clients' distances (K,).

        The directions are chosen anew for the first steps only and followed from then on: near the
        limit one that comes and goes would keep the objective from settling.
        """
        spaces = []
        for i, stack in enumerate(self.problem.stacks):
            before = None if self.spaces is None else self.spaces[i].vectors
            space, self.bases[i] = shared_subspace(
                stack, weights, self.bases[i], sweeps, self.numbers, before
            )
            spaces.append(space)
        if self.iterations >= self.numbers.trial_steps:
            self.spaces = spaces
        squares = (self.problem.residuals(spaces, weights) ** 2).sum(axis=0)
        return spaces, np.sqrt(squares).clip(min=self.problem.floor)


def deviations(inner: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """||Y_k - M||^2 (K,) for M = sum_k w_k Y_k, from the inner products (K, K)."""
    towards = inner @ weights
    return np.asarray(inner.diagonal() - 2 * towards + weights @ towards)


def shared_subspace(
    stack: ModuleStack,
    weights: NDArray[np.float64],
    start: Tensor,
    sweeps: int,
    numbers: DetectionCalibration,
    before: Tensor | None = None,
) -> tuple[SharedSubspace, Tensor]:
    """Left directions of the weighted deviations that the majority shares, and a warm start.

    With weights summing to one, sum_k w_k (Y_k - M)(Y_k - M)' = B H B', H = A A' o (diag(w) - w w').
    A direction counts as shared when the participation ratio of its client energies is at least
    `numbers.breadth` and it stands out of the noise; given the directions
    `before`, those nearest to them are taken.
    """
    column = stack.spread(torch.from_numpy(weights))

    def inner(x: Tensor) -> Tensor:
        return column * (stack.block_dot(x) - stack.right_dot(column * x))

    def covariance(u: Tensor) -> Tensor:
        return stack.left @ inner(stack.left.T @ u)

    # in a sketch the directions themselves are as small as the coefficients are otherwise
    metric, operator = (_same, covariance) if stack.sketched else (stack.left_dot, inner)
    tolerance = torch.finfo(start.dtype).eps ** 0.5
    values, vectors, dual = dominant(metric, operator, start, sweeps, tolerance)
    towards = stack.left.T @ dual if stack.sketched else dual  # (n, k): B'u
    energies = _energies(stack, towards, column)  # (K, k)
    total = float(weights @ deviations(stack.inner.numpy(), weights))
    breadths = _breadth(energies, weights)
    most = min(numbers.max_shared_rank, (stack.clients - 1) // 2)
    if before is None:
        keep = (breadths >= numbers.breadth) & _above_noise(values, total, stack, weights)
        rank = min(int(keep.sum()), most)
        order = np.where(keep, np.inf, breadths)  # those that qualify, strongest first
    else:
        rank = before.shape[1]
        order = (before.T @ dual).square().sum(dim=0).cpu().double().numpy()
    chosen = torch.from_numpy(np.sort(np.argsort(-order, kind="stable")[:rank]))
    space = SharedSubspace(
        vectors[:, chosen.to(vectors.device)],
        energies[:, chosen],
        values.cpu().double(),
        total,
        stack.sketched,
    )
    return space, _restart(vectors, start)


def _same(x: Tensor) -> Tensor:
    return x


def _restart(vectors: Tensor, start: Tensor) -> Tensor:
    """A warm start of the old width: what was found, and old columns where directions were dropped."""
    missing = start.shape[1] - vectors.shape[1]
    return torch.cat([vectors, start[:, :missing]], dim=1) if missing > 0 else vectors


def _energies(stack: ModuleStack, dual: Tensor, column: Tensor) -> Tensor:
    """||u' (Y_k - M)||^2 (K, k), float64 on the CPU, for directions with dual coordinates B'u (n, k)."""
    per_client = (stack.clients, stack.width, dual.shape[1])
    own = (dual * stack.block_dot(dual)).reshape(per_client).sum(dim=1).cpu().double()
    mean = stack.right_dot(column * dual)  # (n, k): A M' u
    towards = (dual * mean).reshape(per_client).sum(dim=1).cpu().double()
    weights = column.reshape(stack.clients, stack.width)[:, :1].cpu().double()
    return (own - 2 * towards + (weights * towards).sum(dim=0)).clamp_min(0)


def _breadth(energies: Tensor, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Participation ratio (k,) in (0, 1] of the client energies, counted with the clients' weights."""
    e = energies.numpy()
    square = (weights[:, None] * e**2).sum(axis=0)
    ratio = np.divide((weights @ e) ** 2, square, out=np.zeros(e.shape[1]), where=square > 0)
    return np.asarray(ratio)


def _above_noise(
    values: Tensor, total: float, stack: ModuleStack, weights: NDArray[np.float64]
) -> Mask:
    """Which of the leading directions stand out of noise and rounding errors, (k,)."""
    columns = round(stack.width / float((weights**2).sum()))  # of as many clients as carry weight
    found = values.cpu().double().numpy()
    above = np.arange(len(found)) < standing_out(found.tolist(), total, stack.shape[0], columns)
    rounding = max(total, 0.0) * float(torch.finfo(values.dtype).eps) * columns
    return np.asarray(above & (found > rounding))
