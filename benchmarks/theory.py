"""Four claims on planted truth, with clair's own code: recovery, stability, sets, refinement gain.

python -m benchmarks.theory --out benchmarks/results [--keep FILE]

Writes theory.md and its pictures, in about eight minutes of one core. What is planted: theory_truth.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.theory_pictures import report
from benchmarks.theory_records import (
    EXACT,
    Array,
    Gain,
    Recovery,
    Results,
    Sets,
    Stability,
    as_json,
    line,
)
from benchmarks.theory_truth import KINDS, VARIATION, Kind, Mask, Plan, Planted, plant
from clair_cli import __version__
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.detection.solver import Decomposition, decompose, refit, tables
from clair_cli.detection.stacks import ModuleStack, stack_module
from clair_cli.detection.tables import Tables
from clair_cli.detection.verdicts import Judgement, judge
from clair_cli.refinement.module import refine_module
from clair_cli.update import LowRankUpdate

# What clair makes of it


def stacked(truth: Sequence[Planted]) -> list[ModuleStack]:
    """What the solver gets."""
    return [stack_module(f"m{i}", t.updates) for i, t in enumerate(truth)]


def settle(stacks: Sequence[ModuleStack], found: Decomposition) -> tuple[Judgement, Decomposition]:
    """The verdicts of `clair detect`, and M and U of their consensus, where there is one."""
    inner, overlap, d_out, d_in = tables(stacks)
    names = tuple(f"client-{k + 1:02d}" for k in range(inner.shape[1]))
    what = names, found.modules, inner, overlap, d_out, d_in, found.members, names
    said = judge(Tables(*what, unexplained=found.unexplained()))
    return said, refit(stacks, said.consensus) if said.identified else found


def called_benign(said: Judgement) -> Mask:
    """The collaborative set: whom `clair refine` averages, (K,)."""
    return np.array([v.verdict == "benign" for v in said.verdicts])


def errors(found: Decomposition, truth: Sequence[Planted]) -> Array:
    """Distances of U and of M from the truth, (2,), the worst of all modules.

    Of U the spectral norm of the difference of the projectors. Of M what lies outside U, in Frobenius
    norm: inside it M and U C_k cannot be told apart.
    """
    both = []
    for space, planted in zip(found.subspaces, truth, strict=True):
        u, v, columns = planted.basis, space.vectors, _columns(planted.updates)
        if len(v) == columns.shape[1]:  # of more columns than are kept, U itself is known
            v = columns @ v
        mean = sum(w * d.dense() for w, d in zip(found.weights, planted.updates, strict=True))
        off = mean - planted.common
        angle = torch.linalg.matrix_norm(u @ u.T - v @ v.T, ord=2)
        both.append((float(angle), float((off - u @ (u.T @ off)).norm())))
    return np.max(both, axis=0)


def _columns(updates: Sequence[LowRankUpdate]) -> Tensor:
    """All columns of the up factors, each client padded to one width, (d_out, n)."""
    width = max(u.rank for u in updates)
    return torch.cat([torch.nn.functional.pad(u.up, (0, width - u.rank)) for u in updates], dim=1)


# (a) Exact recovery


def recovery(
    plan: Plan,
    offers: dict[str, DetectionCalibration],
    trials: int,
    seed: int,
    verdicts: bool = False,
) -> Recovery:
    """`decompose` under the named numbers; with `verdicts` also what follows from the first of them."""
    found, ranks = [], []
    for trial in range(trials):
        truth = plant(plan, seed + trial)
        stacks = stacked(truth)
        splits = [decompose(stacks, numbers) for numbers in offers.values()]
        ranks.append(all(s.rank == plan.rank for s in splits[0].subspaces))
        splits += [settle(stacks, splits[0])[1]] if verdicts else []
        found.append([errors(split, truth).max() for split in splits])
    table = np.array(found)  # (trials, ways)
    exact = table <= EXACT
    return Recovery(
        plan,
        dict(zip([*offers, "verdicts"], exact.mean(axis=0).tolist(), strict=False)),
        float(np.mean(ranks)),
        float(table[exact].max()) if exact.any() else None,
        float(table[~exact].min()) if not exact.all() else None,
    )


def offers(rank: int) -> dict[str, DetectionCalibration]:
    """The rank chosen by clair's default rules, and no more offered than there is."""
    return {"chosen": DETECTION, "known": DetectionCalibration(max_shared_rank=rank)}


# (b) Stable recovery


def stability(plan: Plan, noises: Sequence[float], law: float, trials: int, seed: int) -> Stability:
    """Errors at each noise; slopes are fitted to single trials."""
    split, settled = np.zeros((2, len(noises), trials, 2))
    members = np.zeros((len(noises), trials))
    for i, noise in enumerate(noises):
        for trial in range(trials):
            truth = plant(replace(plan, noise=noise), seed + trial)
            stacks = stacked(truth)
            found = decompose(stacks)
            split[i, trial] = errors(found, truth)
            settled[i, trial] = errors(settle(stacks, found)[1], truth)
            members[i, trial] = (found.members == plan.members).all()
    predicted = np.array([subspace_error(replace(plan, noise=noise)) for noise in noises])
    inside = np.array(noises) <= law
    x = np.repeat(np.array(noises)[inside], trials)
    return Stability(
        plan,
        tuple(noises),
        law,
        np.median(split, axis=1),
        np.median(settled, axis=1),
        predicted,
        members.mean(axis=1),
        np.array([line(x, settled[inside, :, side].ravel()) for side in (0, 1)]),
        float(np.median(settled[inside, :, 0] / predicted[inside, None])),
    )


def subspace_error(plan: Plan) -> float:
    """First-order error of U from n benign clients: sigma (sqrt(d_out - s) + sqrt(s)) / (c sqrt(n)).

    sigma is the noise per entry, c^2 the energy of a client in one direction of U; the norm of a
    Gaussian (d_out - s, s) matrix is that of its Marchenko-Pastur edge.
    """
    rows, columns = plan.shape
    sigma, direction = plan.noise / (rows * columns) ** 0.5, VARIATION / plan.rank**0.5
    clients = plan.members.sum()
    return float(sigma * ((rows - plan.rank) ** 0.5 + plan.rank**0.5) / direction / clients**0.5)


# (c) Collaborative-set recovery


def sets(plan: Plan, trials: int, seed: int, judged: bool = True) -> Sets:
    """How often exactly the benign clients are found; without a verdict nobody is."""
    want, members, verdicts = plan.members, [], []
    for trial in range(trials):
        stacks = stacked(plant(plan, seed + trial))
        split = decompose(stacks)
        members.append((split.members == want).all())
        if judged:
            verdicts.append((called_benign(settle(stacks, split)[0]) == want).all())
    return Sets(plan, float(np.mean(members)), float(np.mean(verdicts)) if judged else None)


# (d) Refinement gain


def gain(
    plan: Plan, ratio: float, trials: int, seed: int, strength: float = 1.0
) -> tuple[Gain, Array]:
    """Refine benign clients with `plan.own` = ratio x noise; the mean, and refined / local by trial."""
    plan = replace(plan, own=ratio * plan.noise)
    both = np.array([_off_errors(plan, seed + trial, strength) for trial in range(trials)])
    local, refined = both.mean(axis=0).tolist()
    expected = risk(plan, ratio, strength)
    return Gain(plan.clients, ratio, strength, local, refined, expected), both[:, 1] / both[:, 0]


def _off_errors(plan: Plan, seed: int, strength: float) -> tuple[float, float]:
    """Of the local and of the refined updates, outside the planted U, in units of sigma^2."""
    count, (rows, columns) = plan.clients, plan.shape
    squares = np.zeros(2)
    for planted in plant(plan, seed):
        done = refine_module(
            planted.updates, [1 / count] * count, [columns] * count, plan.rank, strength
        )
        refined = [new or own for new, own in zip(done.updates, planted.updates, strict=True)]
        for i, updates in enumerate((planted.updates, refined)):
            off = torch.stack([u.dense() for u in updates]) - planted.wanted
            off = off - planted.basis @ (planted.basis.T @ off)
            squares[i] += float(off.square().sum())
    unit = plan.noise**2 * (rows - plan.rank) / rows * count * plan.modules
    return float(squares[0] / unit), float(squares[1] / unit)


def risk(plan: Plan, ratio: float, strength: float = 1.0) -> float:
    """The predicted error of refinement in units of sigma^2, h = ratio x sigma.

    The mean and the s directions are fitted to n d_in columns: the share f = (1 + s / d_in) / n of the
    off-subspace energy is theirs and stays as it is, error sigma^2; the rest is shrunk by 1 - t, error
    (1 - t)^2 sigma^2 + t^2 h^2.
    """
    kept = (1 + plan.rank / plan.shape[1]) / plan.clients
    return kept + (1 - kept) * ((1 - strength) ** 2 + strength**2 * ratio**2)


def crossover(plan: Plan, ratios: Sequence[float], trials: int, seed: int) -> tuple[float, float]:
    """The h / sigma at which refined and local errors are equal, predicted 1, and its standard error.

    Interpolated in each trial; `ratios` must lie on both sides.
    """
    logs = np.log([gain(plan, ratio, trials, seed)[1] for ratio in ratios])  # (ratios, trials)
    found = [float(np.interp(0.0, logs[:, t], ratios)) for t in range(trials)]
    return float(np.mean(found)), float(np.std(found, ddof=1) / trials**0.5)


def best_strength(plan: Plan, ratio: float, trials: int, seed: int) -> float:
    """The t of least error, predicted 1 / (1 + ratio^2): the error is a parabola in t."""
    steps = (0.0, 0.5, 1.0)
    values = [gain(plan, ratio, trials, seed, t)[0].refined for t in steps]
    a, b, _ = np.polyfit(steps, values, 2)
    return float(-b / (2 * a))


# All of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is run; the defaults are what benchmarks/results/theory.md shows."""

    clients: tuple[int, ...] = (10, 20, 50)
    shares: tuple[float, ...] = (0, 0.2, 0.3, 0.36, 0.38, 0.4, 0.45, 0.48, 0.5, 0.6)
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    sizes: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.1, 0.5, 1, 3, 10, 100)
    coverages: tuple[float, ...] = (1, 0.9, 0.8, 0.75, 0.7, 0.6, 0.5)
    noises: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3)
    law: float = 0.3  # noise up to which the slopes are fitted
    cohorts: tuple[int, ...] = (5, 10, 20, 40)
    levels: tuple[tuple[Kind, float], ...] = (
        ("random", 0.1),
        ("random", 0.3),
        ("random", 1.0),
        ("shift", 0.3),
    )  # kinds of S and noise, for the sets
    over_noise: tuple[float, ...] = (1.5, 2, 2.5, 3, 3.5, 4, 6)
    over_update: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.2)
    averaged: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    ratios: tuple[float, ...] = (0, 0.1, 0.3, 1, 2)
    bests: tuple[float, ...] = (0.5, 1, 2)
    around: tuple[float, ...] = (0.7, 0.85, 1.0, 1.15, 1.3)
    trials: int = 5
    draws: int = 10  # trials of the sets and of refinement


def run(grid: Grid, seed: int) -> Iterator[tuple[str, Any]]:
    """Every record, with the name of its experiment."""
    yield from run_recovery(grid, seed)
    for clients, kind in product(grid.clients, KINDS):
        plan = Plan(clients=clients, contaminated=3 * clients // 10, kind=kind, modules=1)
        plan = replace(plan, size=(2.0, 2.0))
        yield "stability", stability(plan, grid.noises, grid.law, grid.trials, seed)
    for clients, (kind, noise) in product(grid.cohorts, grid.levels):
        plan = Plan(clients=clients, contaminated=clients // 5, kind=kind, noise=noise)
        plan = replace(plan, modules=4, shape=(40, 16))
        for unit, steps in ((noise, grid.over_noise), (plan.usual, grid.over_update)):
            for size in (unit * x for x in steps):
                judged = steps is grid.over_update
                yield "sets", sets(replace(plan, size=(size, size)), grid.draws, seed, judged)
    yield from run_gain(grid, seed)


def run_recovery(grid: Grid, seed: int) -> Iterator[tuple[str, Recovery]]:
    """By contaminated share and rank; by the size of S; by how many clients vary in a direction."""
    for clients, kind, rank in product(grid.clients, KINDS, grid.ranks):
        for bad in sorted({int(clients * share + 1e-9) for share in grid.shares}):
            plan = Plan(clients=clients, contaminated=bad, kind=kind, rank=rank)
            yield "recovery", recovery(plan, offers(rank), grid.trials, seed, verdicts=rank == 2)
    base = Plan(clients=20, contaminated=6)
    for kind, size in product(KINDS, grid.sizes):
        plan = replace(base, kind=kind, size=(size, size))
        yield "size", recovery(plan, offers(2), grid.trials, seed, verdicts=True)
    for coverage in grid.coverages:
        plan = replace(base, contaminated=4, coverage=coverage)
        breadths = {"0.75": DETECTION, "0.4": DetectionCalibration(breadth=0.4)}
        yield "coverage", recovery(plan, breadths, grid.draws, seed)


def run_gain(grid: Grid, seed: int) -> Iterator[tuple[str, Any]]:
    """By the number of clients and h / sigma; where both errors are equal; the best strength."""
    for clients in grid.averaged:
        plan = Plan(clients=clients, noise=0.3, modules=1)
        for ratio in grid.ratios:
            yield "gain", gain(plan, ratio, grid.draws, seed)[0]
        yield "crossover", (clients, *crossover(plan, grid.around, grid.draws, seed))
        for ratio in grid.bests:
            yield "strength", (clients, ratio, best_strength(plan, ratio, grid.draws, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="for theory.md"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="file of what was found")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results, facts = collect(Grid(), given.seed), facts_of(given.seed)
    if given.keep:
        given.keep.write_text(as_json(results, facts))
    report(results, facts, given.out)


def collect(grid: Grid, seed: int) -> Results:
    """Run everything; says on stderr how far it is."""
    results = Results()
    for name, record in run(grid, seed):
        if name not in results:
            print(f"{process_time():6.0f} s  {name}", file=sys.stderr, flush=True)
        results.setdefault(name, []).append(record)
    return results


def facts_of(seed: int) -> str:
    """How the results were made."""
    option = f" --seed {seed}" * bool(seed)
    return (
        f"`python -m benchmarks.theory{option}`, {process_time() / 60:.0f} minutes of one core; "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; clair {__version__}, "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
