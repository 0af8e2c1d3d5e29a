"""What attackers that know clair send, and how far they can go: the search of adaptive.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.attacks import View, orthonormal, regauged, truncated, views
from benchmarks.pools import CONTAMINATED
from benchmarks.saved import Saved, read, write
from clair_cli import Settings, pipeline, refine
from clair_cli.refinement.plan import plan_refinement
from examples.text_copy.task import Kind

CLIENTS, ATTACKERS = 16, (1, 4, 6)
GRID, STEPS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), 4
"""Strengths tried first; halvings of the gap above the last that passes."""
PROBES = 3
"""Halvings of the gaps beside the strength that plants most: what is bounded falls again beyond it."""
OPEN = 1.0
"""The strength of an attack that does not hide."""
TASKS = 3
"""Benign clients whose held-out text is read."""
SEED = 22
Dense = dict[str, Tensor]
"""Module -> (d_out, d_in)."""
Row = dict[str, Any]


# What attackers do


@dataclass(frozen=True, slots=True)
class Family:
    """One way to attack. `step`: a module, what the attackers would rather be (m, d_out, d_in), draws ->
    where t = 1 takes each attacker from its own update, (m, d_out, d_in).

    `label` names the contaminated clients of the pool that are the target; `aimed` says whether the
    attackers pull one way.
    """

    name: str
    step: Callable[[View, Tensor, Generator], Tensor]
    label: str = ""
    aimed: bool = True

    @property
    def kind(self) -> Kind | None:
        """What the target was trained on."""
        return CONTAMINATED[self.label][0] if self.label else None


def common_direction(view: View, _: Tensor, generator: Generator, rank: int = 2) -> Tensor:
    """One random direction of the benign norm, the same for all attackers."""
    _, d_out, d_in = view.own.shape
    up, down = (orthonormal(generator, d, rank) for d in (d_out, d_in))
    return view.same(view.norm * up @ down.T / rank**0.5)


def directions_in_pairs(view: View, _: Tensor, generator: Generator, rank: int = 2) -> Tensor:
    """Random directions of the benign norm, one for every two attackers: no one of them stands out."""
    attackers, d_out, d_in = view.own.shape
    steps: list[Tensor] = []
    while len(steps) < attackers:
        up, down = (orthonormal(generator, d, rank) for d in (d_out, d_in))
        steps += [view.norm * up @ down.T / rank**0.5] * 2
    return torch.stack(steps[:attackers])


FAMILIES = (
    Family("sign flip", lambda v, *_: -2 * v.own),
    Family("against the mean", lambda v, *_: v.same(-v.mean)),
    Family("boost", lambda v, *_: v.own),
    Family("common direction", common_direction),
    Family("directions in pairs", directions_in_pairs, aimed=False),
    Family("own noise", lambda v, _, g: v.noise(v.norm, g), aimed=False),
    *(
        Family(f"to {label}", lambda v, bad, _: bad - v.own, label)
        for label in ("backdoor-30", "common-cipher")
    ),
)


class Attack:
    """The adapters that m attackers send at each strength. `bad` are m contaminated ones."""

    def __init__(
        self, family: Family, own: list[Saved], benign: list[Saved], bad: list[Saved]
    ) -> None:
        self.family, self.own = family, own
        generator = Generator().manual_seed(SEED)
        seen, wanted = views(own, benign), views(bad or own, benign)
        self.step = {m: family.step(v, wanted[m].own, generator) for m, v in seen.items()}
        self.start = {m: v.own for m, v in seen.items()}

    def sent(self, t: float) -> list[Saved]:
        """One adapter for each attacker; at t = 0 its own in another gauge."""
        generator = Generator().manual_seed(SEED)
        return [
            regauged(truncated(self._target(k, t), like), generator)
            for k, like in enumerate(self.own)
        ]

    def _target(self, k: int, t: float) -> Dense:
        return {m: own[k] + t * self.step[m][k] for m, own in self.start.items()}

    @property
    def goal(self) -> Tensor | None:
        """Unit vector of the way they pull together, (p,)."""
        if not self.family.aimed:
            return None
        together = vector({m: s.mean(0) for m, s in self.step.items()})
        return together / together.norm()


# What clair says and writes


@dataclass(frozen=True, slots=True)
class Said:
    """clair's word on one round: of every attacker verdict and score, whether each honest one is benign.

    `weights` are what every attacker counts in the mean. Without a verdict nothing is written, and
    nobody reached a goal.
    """

    complete: bool
    verdicts: list[str | None]
    scores: list[float]
    honest: list[bool]
    weights: list[float]

    @property
    def unseen(self) -> bool:
        """Every attacker is benign."""
        return self.complete and all(v == "benign" for v in self.verdicts)

    @property
    def under_limit(self) -> bool:
        """No attacker is contaminated."""
        return self.complete and all(v in ("benign", "suspicious") for v in self.verdicts)


class Cohort:
    """Benign clients in a folder that attackers join. `scratch` is an empty folder for it."""

    def __init__(self, own: list[Saved], benign: list[Saved], scratch: Path) -> None:
        self.own, self.benign, self.scratch = own, benign, scratch
        self.folder = scratch / "round"
        self.names = [f"client-{k:02}" for k in range(1, len(benign) + len(own) + 1)]
        for name, adapter in zip(self.names, benign, strict=False):
            write(adapter, self.folder / name)

    def put(self, sent: list[Saved]) -> None:
        """Let the attackers send these; none at all leaves the benign clients alone."""
        for name in self.names[len(self.benign) :]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name, adapter in zip(self.names[len(self.benign) :], sent, strict=False):
            write(adapter, self.folder / name)

    def judged(self, sent: list[Saved]) -> Said:
        """clair's word on the round, and what each attacker would count."""
        self.put(sent)
        settings = Settings(threads=1)
        found = pipeline.examined(pipeline.opened(self.folder, settings), settings)
        judged = found.judgement
        clients = {v.client: v for v in judged.verdicts} if judged is not None else {}
        complete = judged is not None and judged.identified
        honest, bad = self.names[: len(self.benign)], self.names[len(self.benign) :]
        counted: dict[str, float] = {}
        if complete and any(v.verdict == "benign" for v in clients.values()):
            plan = plan_refinement(found, tuple(clients.values()), settings, {})
            who = zip(plan.groups[0].clients, plan.groups[0].weights, strict=True)
            counted = {a.client: weight for a, weight in who}
        return Said(
            complete,
            [clients[n].verdict if n in clients else None for n in bad],
            [clients[n].score or 0.0 if n in clients else 0.0 for n in bad],
            [n in clients and clients[n].verdict == "benign" for n in honest],
            [counted.get(n, 0.0) for n in bad],
        )

    def refined(self, sent: list[Saved]) -> dict[str, Dense]:
        """Client or `global` -> the update clair writes for it; empty without a verdict."""
        self.put(sent)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            out = Path(folder) / "out"
            refine(self.folder, out, Settings(write_global=True, threads=1))
            return {p.name: read(p).dense() for p in sorted(out.glob("*")) if p.is_dir()}

    @cached_property
    def alone(self) -> dict[str, Dense]:
        """What is written where the attackers take no part."""
        return self.refined([])

    @cached_property
    def mean(self) -> Tensor:
        """Of the benign updates, (p,)."""
        return vector(mean([a.dense() for a in self.benign]))


def vector(dense: Dense) -> Tensor:
    """All modules as one vector, (p,), float64."""
    return torch.cat([dense[m].double().flatten() for m in sorted(dense)])


def mean(updates: Sequence[Dense]) -> Dense:
    """Module by module."""
    return {m: torch.stack([u[m] for u in updates]).mean(0) for m in updates[0]}


# The search


def largest(
    passes: Callable[[float], bool], grid: Sequence[float] = GRID, steps: int = STEPS
) -> float | None:
    """The largest t found that passes: the last of the grid, and bisection up to the next, which fails.

    What passes need not be an interval; islands between two points of the grid are not found.
    """
    passing = [k for k, t in enumerate(grid) if passes(t)]
    if not passing:
        return None
    low = grid[passing[-1]]
    if passing[-1] + 1 == len(grid):
        return low
    high = grid[passing[-1] + 1]
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


@dataclass
class Search:
    """Everything tried with one attack on one cohort; nothing is judged twice."""

    cohort: Cohort
    attack: Attack
    said: dict[float, Said] = field(default_factory=dict)
    planted: dict[float, float] = field(default_factory=dict)
    """Strength -> poison in clair's global adapter."""
    grid: Sequence[float] = GRID
    steps: int = STEPS

    def judge(self, t: float) -> Said:
        if t not in self.said:
            sent = self.attack.sent(t)
            self.said[t] = said = self.cohort.judged(sent)
            if said.complete and any([*said.weights, *said.honest]):
                poison = self.poison(sent, said.weights)
                self.planted[t] = float(poison.norm() / self.cohort.mean.norm())
        return self.said[t]

    def strengths(self) -> dict[str, float | None]:
        """The largest t of both goals, and `most`: the unseen t that plants most."""
        return {
            "unseen": largest(lambda t: self.judge(t).unseen, self.grid, self.steps),
            "limit": largest(lambda t: self.judge(t).under_limit, self.grid, self.steps),
            "most": self.most(),
        }

    def most(self) -> float | None:
        """The unseen t that plants most: the best tried, and the gaps beside it halved in turn."""
        for _ in range(PROBES):
            best = self._best()
            if best is None:
                return None
            tried = sorted(self.said)
            here = tried.index(best)
            for beside in tried[max(here - 1, 0) : here] + tried[here + 1 : here + 2]:
                self.judge((best + beside) / 2)
        return self._best()

    def _best(self) -> float | None:
        unseen = [t for t in self.planted if self.said[t].unseen]
        return max(unseen, key=lambda t: self.planted[t], default=None)

    def poison(self, sent: list[Saved], weights: Sequence[float]) -> Tensor:
        """What the attackers' changes add to a mean in which they count so much, (p,)."""
        total = torch.zeros_like(self.cohort.mean)
        for before, after, weight in zip(self.attack.own, sent, weights, strict=True):
            total += weight * (vector(after.dense()) - vector(before.dense()))
        return total
