"""The solver: [Delta_1 .. Delta_K] = M + U C + S with S block-sparse over clients, on factors only.

Iteratively reweighted least squares on  sum_k ( sum_m ||(I - U_m U_m') (Y_k^m - M^m)||_F^2 )^(1/2),
the l2,1 loss of robust subspace recovery (Lerman & Maunu 2018, "fast median subspace"), with one
weight per client over all modules: a block of S is a client's whole adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.detection import agreement
from clair_cli.detection.stacks import ModuleStack
from clair_cli.linalg import dominant, standing_out
from clair_cli.settings import Settings

Mask = NDArray[np.bool_]
CAP = 3.0
"""Clients larger than this many median norms are scaled down to it before the estimate."""
TRIAL_STEPS = 4
"""Iterations after which the starts are compared and the ranks of U are settled."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedSubspace:
    """U of one module: U = B V, with B the stacked columns of `ModuleStack`.

    `vectors` V (n, s) with V' B'B V = I; `energies` (K, s) are ||u' (Y_k - M)||^2 on the CPU in
    float64; `spectrum` are the leading eigenvalues of the weighted deviations, `total` their sum.
    """

    vectors: Tensor
    energies: Tensor
    spectrum: Tensor
    total: float

    @property
    def rank(self) -> int:
        """s."""
        return self.vectors.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """M + U C + S.

    `weights` (K,) sum to one: M is the weighted mean of the updates; they are equal on `members`, the
    clients with S_k = 0, and zero elsewhere. `subspaces` has U per module. `residuals` (modules, K)
    are ||(I - U U')(Y_k - M)||_F and `norms` (modules, K) are ||Y_k||_F, for Y the updates in units
    of the module's median norm, capped. `gap` is the last relative change of the objective.
    """

    modules: tuple[str, ...]
    weights: NDArray[np.float64]
    members: Mask
    subspaces: tuple[SharedSubspace, ...]
    residuals: NDArray[np.float64]
    norms: NDArray[np.float64]
    objective: float
    status: Literal["converged", "iteration limit"]
    iterations: int
    gap: float
    start: str

    def relative_residuals(self) -> NDArray[np.float64]:
        """Residual over norm, (modules, K): 0 is fully explained, 0 too where the update is zero."""
        return np.divide(
            self.residuals, self.norms, out=np.zeros_like(self.norms), where=self.norms > 0
        )

    def explained(self) -> NDArray[np.float64]:
        """Share of the members' energy that M and U explain, (modules,)."""
        lost = (self.residuals[:, self.members] ** 2).sum(axis=1)
        energy = (self.norms[:, self.members] ** 2).sum(axis=1)
        ratio = np.divide(lost, energy, out=np.ones_like(lost), where=energy > 0)
        return np.asarray((1 - ratio).clip(0, 1))


def tables(stacks: Sequence[ModuleStack]) -> tuple[NDArray[np.float64], ...]:
    """inner and overlap (modules, K, K), d_out and d_in (modules,) of all stacks, in numpy."""
    inner = np.stack([s.inner.numpy() for s in stacks])
    overlap = np.stack([s.overlap.numpy() for s in stacks])
    shapes = np.array([s.shape for s in stacks], dtype=float)
    return inner, overlap, shapes[:, 0], shapes[:, 1]


def decompose(
    stacks: Sequence[ModuleStack],
    settings: Settings | None = None,
    on_step: Callable[[], None] | None = None,
) -> Decomposition:
    """Split the stacked updates of K >= 3 clients into M, U and S; see `Decomposition`.

    Several starts are tried for a few steps, and the one with the best objective is finished.
    `on_step` is called after each iteration.
    """
    settings = settings or Settings()
    if not stacks or stacks[0].clients < 3:
        raise ValueError("decompose needs at least 3 clients and one module")
    problem = _Problem(_level(stacks), settings, on_step or (lambda: None))
    starts = {mask.tobytes(): (name, mask) for name, mask in _starts(problem.stacks).items()}
    runs = [_Run(problem, name, mask) for name, mask in starts.values()]
    for run in runs:  # a few steps tell the starts apart; most of them fall into one valley
        for _ in range(min(TRIAL_STEPS, settings.max_iterations)):
            run.step()
    best = min(runs, key=lambda r: r.objective)
    while best.gap > settings.tolerance and best.iterations < settings.max_iterations:
        best.step()
    return best.result()


def refit(
    stacks: Sequence[ModuleStack], members: Mask, settings: Settings | None = None
) -> Decomposition:
    """M and U of the given members (K,), equally weighted: what the decomposition is once S is known."""
    problem = _Problem(_level(stacks), settings or Settings(), lambda: None)
    return _Run(problem, "given members", members).refit(members)


def _level(stacks: Sequence[ModuleStack]) -> list[ModuleStack]:
    """Scale every module to median client norm 1 and cap clients at CAP times the median."""
    medians = [float(np.median(np.sqrt(s.energies.numpy().clip(min=0)))) for s in stacks]
    units = [1 / m if m > 0 else 0.0 for m in medians]
    norms = np.sqrt(sum(s.energies.numpy() * u**2 for s, u in zip(stacks, units, strict=True)))
    middle = float(np.median(norms))
    most = max(CAP * middle, np.finfo(float).tiny)
    caps = most / np.maximum(norms, most)
    return [s.scaled(torch.from_numpy(caps * u)) for s, u in zip(stacks, units, strict=True)]


def _starts(stacks: Sequence[ModuleStack]) -> dict[str, Mask]:
    """Groups to start from: the agreement split, the most coherent majority, everybody."""
    inner, overlap, d_out, _ = tables(stacks)
    kernel = agreement.agreement(inner, overlap, d_out).mean(axis=0)
    count = len(kernel)
    return {
        "agreement": agreement.split(kernel)[0],
        "coherent majority": agreement.coherent(kernel, count // 2 + 1),
        "all": np.ones(count, bool),
    }


class _Problem:
    """The levelled stacks with what all starts share."""

    def __init__(
        self, stacks: list[ModuleStack], settings: Settings, on_step: Callable[[], None]
    ) -> None:
        self.stacks, self.settings, self.on_step = stacks, settings, on_step
        draw = torch.Generator().manual_seed(settings.seed)
        width = settings.max_shared_rank + 4  # oversampling, Halko, Martinsson & Tropp 2011
        self.bases = [
            torch.randn(s.clients * s.width, min(width, s.clients * s.width), generator=draw).to(
                s.left
            )
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
        self.problem, self.name = problem, name
        self.weights = start / start.sum()
        self.bases = list(problem.bases)
        self.spaces: list[SharedSubspace] | None = None
        self.lengths = np.ones(len(start))
        self.objective, self.gap, self.iterations = np.inf, np.inf, 0

    def step(self) -> None:
        """Fit M and U under the weights, measure every client's distance, weigh by its inverse."""
        self.iterations += 1
        # the last step's directions are a warm start: one sweep keeps up with the weights
        _, self.lengths = self._fit(self.weights, sweeps=3 if self.iterations == 1 else 1)
        self.gap = abs(self.objective - self.lengths.sum()) / self.lengths.sum()
        self.objective = float(self.lengths.sum())
        self.weights = (1 / self.lengths) / (1 / self.lengths).sum()
        self.problem.on_step()

    def result(self) -> Decomposition:
        """Settle who has S_k = 0, and refit on them."""
        for _ in range(3):
            members = _support(self.lengths, self.problem.floor)
            found = self.refit(members, self.gap <= self.problem.settings.tolerance)
            if (members == _support(self.lengths, self.problem.floor)).all():
                break
        return found

    def refit(self, members: Mask, converged: bool = True) -> Decomposition:
        """Equal weights on the clients with S_k = 0 make M and U exact where the data are."""
        weights = members / members.sum()
        self.spaces = None
        spaces, self.lengths = self._fit(weights, sweeps=6)
        return Decomposition(
            modules=tuple(s.module for s in self.problem.stacks),
            weights=weights,
            members=members,
            subspaces=tuple(spaces),
            residuals=self.problem.residuals(spaces, weights),
            norms=np.sqrt(np.stack([s.energies.numpy() for s in self.problem.stacks]).clip(min=0)),
            objective=float(self.lengths.sum()),
            status="converged" if converged else "iteration limit",
            iterations=self.iterations,
            gap=float(self.gap),
            start=self.name,
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
                stack, weights, self.bases[i], sweeps, self.problem.settings, before
            )
            spaces.append(space)
        if self.iterations >= TRIAL_STEPS:
            self.spaces = spaces
        squares = (self.problem.residuals(spaces, weights) ** 2).sum(axis=0)
        return spaces, np.sqrt(squares).clip(min=self.problem.floor)


def _support(lengths: NDArray[np.float64], floor: float) -> Mask:
    """Clients with S_k = 0: not further out than three times the nearer half, never a minority."""
    need = len(lengths) // 2 + 1
    nearer = np.sort(lengths)[:need]
    return lengths <= max(3 * float(np.median(nearer)), 2 * floor, float(nearer[-1]))


def deviations(inner: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """||Y_k - M||^2 (K,) for M = sum_k w_k Y_k, from the inner products (K, K)."""
    towards = inner @ weights
    return np.asarray(inner.diagonal() - 2 * towards + weights @ towards)


def shared_subspace(
    stack: ModuleStack,
    weights: NDArray[np.float64],
    start: Tensor,
    sweeps: int,
    settings: Settings,
    before: Tensor | None = None,
) -> tuple[SharedSubspace, Tensor]:
    """Left directions of the weighted deviations that the majority shares, and a warm start.

    With weights summing to one, sum_k w_k (Y_k - M)(Y_k - M)' = B H B', H = A A' o (diag(w) - w w').
    A direction counts as shared when the participation ratio of its client energies is at least
    `settings.breadth` and it stands out of the noise; given the directions
    `before`, those nearest to them are taken.
    """
    column = stack.spread(torch.from_numpy(weights))

    def inner(x: Tensor) -> Tensor:
        return column * (stack.block_dot(x) - stack.right_dot(column * x))

    values, vectors, dual = dominant(
        stack.left_dot, inner, start, sweeps, torch.finfo(start.dtype).eps ** 0.5
    )
    energies = _energies(stack, dual, column)  # (K, k)
    total = float(weights @ deviations(stack.inner.numpy(), weights))
    breadths = _breadth(energies, weights)
    most = min(settings.max_shared_rank, (stack.clients - 1) // 2)
    if before is None:
        keep = (breadths >= settings.breadth) & _above_noise(values, total, stack, weights)
        rank = min(int(keep.sum()), most)
        order = np.where(keep, np.inf, breadths)  # those that qualify, strongest first
    else:
        rank = before.shape[1]
        order = (before.T @ dual).square().sum(dim=0).cpu().double().numpy()
    chosen = torch.from_numpy(np.sort(np.argsort(-order, kind="stable")[:rank]))
    space = SharedSubspace(
        vectors[:, chosen.to(vectors.device)], energies[:, chosen], values.cpu().double(), total
    )
    return space, _restart(vectors, start)


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
