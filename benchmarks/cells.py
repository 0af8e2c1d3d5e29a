"""The cohorts of detection.py: which there are, and how one is drawn, changed and written down.

A cell names a pool of trained clients, how many of which kind are drawn from it, and what is planted in
them. Its name decides everything that is random, so a cell is the same cohort every time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import torch

from benchmarks.attacks import ATTACKS
from benchmarks.controls import CONTROLS
from benchmarks.pools import CONTAMINATED, Pool, label_of, pools, quick_pools
from benchmarks.saved import Saved, read, write

STRONG = ("random", "cipher", "common-cipher", "reverse", "other-task")
MEDIUM = ("corrupt-50", "backdoor-30")
WEAK = ("corrupt-20", "backdoor-10")
REPEATS = 2
Draw = tuple[str, int, dict[str, int]]
"""A group, the clients of a cohort, and how many of them are of which label; the others are clean."""


# What is judged


@dataclass(frozen=True, slots=True)
class Cell:
    """One cohort. `drawn` are labels of the pool and how many; the first `attackers` plant `attack`."""

    pool: Pool
    group: str
    drawn: tuple[tuple[str, int], ...]
    attack: str = ""
    attackers: int = 0
    control: str = ""
    number: int = 0

    @property
    def size(self) -> int:
        """Clients of the cohort."""
        return sum(count for _, count in self.drawn)

    @property
    def bad(self) -> int:
        """Contaminated ones."""
        return self.attackers + sum(n for label, n in self.drawn if label in CONTAMINATED)

    @property
    def what(self) -> str:
        """As in `cipher 3 of 12`."""
        odd = " + ".join(f"{label} {count}" for label, count in self.drawn if label != "clean")
        if self.attack:
            odd = f"{self.attack}, {self.attackers}"
        return f"{self.control or odd or 'clean'} of {self.size}"

    @property
    def name(self) -> str:
        """Unique; decides everything that is drawn."""
        return f"{self.pool.name}: {self.group}: {self.what} #{self.number}"


def grid(full: bool, shift: int = 0) -> list[Cell]:
    """Every cell of the mode."""
    regimes = pools(shift) if full else quick_pools(shift)
    cells = [c for pool in regimes for c in (*trained(pool, full), *controlled(pool))]
    attacked = {p for own in (False, True) for p in [p for p in regimes if p.own_init == own][:3]}
    for pool in regimes:
        if pool in attacked:
            cells += planted(pool, full)
    return cells


def trained(pool: Pool, full: bool) -> Iterator[Cell]:
    """Cohorts of trained clients as they are."""
    for group, size, odd in full_draws() if full else quick_draws():
        drawn = (("clean", size - sum(odd.values())), *odd.items())
        for number in range(REPEATS if full else 1):
            yield Cell(pool, group, drawn, number=number)


def full_draws() -> Iterator[Draw]:
    """The trained cohorts of one pool."""
    yield from (("clean", size, {}) for size in (5, 8, 12, 20))
    yield from (("controls", 12, odd) for odd in ({"few": 2}, {"short": 2}))
    yield "controls", 12, {"few": 3, "many": 3, "short": 3}
    for label in STRONG:
        yield "five", 5, {label: 1}
        most = min(8, CONTAMINATED[label][2])
        yield from (("strong", size, {label: n}) for size, n in ((8, 2), (12, 3), (20, most)))
    yield "strong", 20, {"common-cipher": 5, "other-task": 4}
    for label in MEDIUM:
        yield from (("medium", size, {label: n}) for size, n in ((8, 2), (12, 3), (20, 6)))
    yield from (("weak", 12, {label: 3}) for label in WEAK)
    yield "mixed", 20, {"cipher": 3, "common-cipher": 3, "random": 3}
    yield "mixed", 20, {"common-cipher": 3, "other-task": 3, "reverse": 3}
    yield "mixed", 40, {"random": 6, "common-cipher": 6, "other-task": 6}
    for size, odd in ((11, 5), (13, 6)):
        yield from (("thin", size, {label: odd}) for label in ("common-cipher", "other-task"))
        yield "thin", size, {"common-cipher": 3, "other-task": odd - 3}
    yield "thin", 20, {"common-cipher": 5, "reverse": 4}
    yield from (("few", size, odd) for size in (3, 4) for odd in ({}, {"cipher": 1}))
    yield "majority", 12, {"common-cipher": 8}
    yield "majority", 12, {"common-cipher": 4, "other-task": 3}


def quick_draws() -> Iterator[Draw]:
    """The trained cohorts of a small pool: twelve clean clients, two of everything else."""
    yield from (("clean", size, {}) for size in (5, 8, 12))
    yield from (("controls", 12, odd) for odd in ({"few": 2}, {"short": 2}))
    yield "controls", 12, {"few": 2, "many": 2, "short": 2}
    for label in STRONG:
        yield "five", 5, {label: 1}
        yield "strong", 8, {label: 2}
    yield from (("medium", 8, {label: 2}) for label in MEDIUM)
    yield from (("weak", 8, {label: 2}) for label in WEAK)
    yield "mixed", 16, {"random": 2, "common-cipher": 2, "other-task": 2}
    yield "thin", 11, {"common-cipher": 2, "other-task": 2, "reverse": 1}
    yield from (("few", size, odd) for size in (3, 4) for odd in ({}, {"cipher": 1}))
    yield "majority", 7, {"common-cipher": 2, "other-task": 2}


def controlled(pool: Pool) -> Iterator[Cell]:
    """Honest changes to cohorts of clean clients."""
    for control in CONTROLS:
        yield Cell(pool, "controls", (("clean", 12),), control=control.name)


def planted(pool: Pool, full: bool) -> Iterator[Cell]:
    """Attackers among clean clients."""
    for attack in ATTACKS:
        group = "copies" if attack.strength == "copy" else f"planted {attack.strength}"
        sizes = [(16, 4)] if full else [(12, 3)]
        if full and attack.strength == "strong":
            sizes.append((20, 8))
        repeats = REPEATS if full and attack.strength == "medium" else 1
        for (size, attackers), number in product(sizes, range(repeats)):
            yield Cell(pool, group, (("clean", size),), attack.name, attackers, number=number)


# From a cell to a folder


@dataclass(slots=True)
class Client:
    """One client and the truth about it; written from `source` unless there is an `adapter`.

    `poisoned` are the modules an attacker changed, where it left others; `copied` says, among
    attackers that send copies, whether the client is who was copied.
    """

    source: Path
    kind: str
    bad: bool
    adapter: Saved | None = None
    poisoned: list[str] | None = None
    copied: bool | None = None


def draw(cell: Cell, trained: Path) -> list[Client]:
    """The clients of a cell, in an order that says nothing."""
    rng = Random(cell.name)
    names: dict[str, list[str]] = {}
    for spec in cell.pool.specs():
        names.setdefault(label_of(spec.name), []).append(spec.name)
    clients = [
        Client(trained / cell.pool.name / name, label, label in CONTAMINATED)
        for label, count in cell.drawn
        for name in rng.sample(names[label], count)
    ]
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    if cell.attack:
        plant(cell, clients, generator)
    for control in CONTROLS:
        if control.name == cell.control:
            changed = control.apply([read(c.source) for c in clients], generator)
            for client, adapter in zip(clients, changed, strict=True):
                client.adapter = adapter
    return rng.sample(clients, len(clients))


def plant(cell: Cell, clients: list[Client], generator: torch.Generator) -> None:
    """Let the first clients attack the others."""
    (attack,) = [a for a in ATTACKS if a.name == cell.attack]
    attackers, honest = clients[: cell.attackers], clients[cell.attackers :]
    own, benign = [read(c.source) for c in attackers], [read(c.source) for c in honest]
    sent = attack.make(own, benign, generator)
    for client, before, after in zip(attackers, own, sent, strict=True):
        client.kind, client.bad, client.adapter = attack.name, True, after
        old, new = before.dense(), after.dense()
        changed = [m for m in old if differs(old[m], new[m], 1e-3)]
        client.poisoned = changed if len(changed) < len(old) else None
    if attack.strength == "copy":
        whole = [flat(a) for a in sent]
        for client, adapter in zip(honest, benign, strict=True):
            client.copied = not all(differs(flat(adapter), copy, 0.05) for copy in whole)
        for client in attackers:
            client.copied = False


def differs(one: torch.Tensor, other: torch.Tensor, by: float) -> bool:
    """By more than `by` of its norm, or not a number."""
    return not (other - one).norm() <= by * one.norm()


def flat(adapter: Saved) -> torch.Tensor:
    """All updates as one vector."""
    return torch.cat([update.flatten() for update in adapter.dense().values()])


def put(clients: list[Client], folder: Path) -> dict[str, Client]:
    """Write the cohort into `folder`, one sub-folder per client; their names."""
    named = {f"client-{n:02d}": client for n, client in enumerate(clients, start=1)}
    for name, client in named.items():
        if client.adapter is None:
            shutil.copytree(client.source, folder / name)
        else:
            write(client.adapter, folder / name)
    return named
