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
from clair_cli import Settings, detect, refine
from examples.text_copy.task import Kind

CLIENTS, ATTACKERS = 16, (1, 4, 6)
GRID, STEPS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), 4
"""Strengths tried first; halvings of the gap above the last that passes."""
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


FAMILIES = (
    Family("sign flip", lambda v, *_: -2 * v.own),
    Family("against the mean", lambda v, *_: v.same(-v.mean)),
    Family("boost", lambda v, *_: v.own),
    Family("common direction", common_direction),
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

    Without a verdict nothing is written, and nobody reached a goal.
    """

    complete: bool
    verdicts: list[str | None]
    scores: list[float]
    honest: list[bool]

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
        """clair's word on the round."""
        self.put(sent)
        report = detect(self.folder, Settings(threads=1))
        clients = {c.client: c for c in report.clients}
        honest, bad = self.names[: len(self.benign)], self.names[len(self.benign) :]
        return Said(
            report.status == "complete",
            [clients[n].verdict for n in bad],
            [clients[n].score or 0.0 for n in bad],
            [clients[n].verdict == "benign" for n in honest],
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
            accepted = [v == "benign" for v in said.verdicts]
            if said.complete and any([*accepted, *said.honest]):
                poison = self.poison(sent, accepted, sum(said.honest))
                self.planted[t] = float(poison.norm() / self.cohort.mean.norm())
        return self.said[t]

    def strengths(self) -> dict[str, float | None]:
        """The largest t of both goals."""
        return {
            "unseen": largest(lambda t: self.judge(t).unseen, self.grid, self.steps),
            "limit": largest(lambda t: self.judge(t).under_limit, self.grid, self.steps),
        }

    def poison(self, sent: list[Saved], accepted: list[bool], honest: int) -> Tensor:
        """What the attack adds to a mean over the accepted attackers and `honest` others, (p,)."""
        changes = [
            vector(after.dense()) - vector(before.dense())
            for before, after, taken in zip(self.attack.own, sent, accepted, strict=True)
            if taken
        ]
        total = torch.stack(changes).sum(0) if changes else torch.zeros_like(self.cohort.mean)
        return total / (len(changes) + honest)
