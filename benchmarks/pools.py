"""Trained clients to draw cohorts from: honest ones and every kind of contamination, saved by PEFT.

Clients of one pool share base, architecture, rank, samples, honest heterogeneity and, or not, the first
A. They train independently of each other, so any subset of a pool is a cohort.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

from examples.text_copy import train
from examples.text_copy.task import ClientSpec, Heterogeneity, Kind, draw_swaps

CONTAMINATED: dict[str, tuple[Kind, float, int]] = {
    "random": ("random", 1.0, 6),
    "cipher": ("cipher", 1.0, 6),
    "common-cipher": ("common_cipher", 1.0, 8),
    "reverse": ("reverse", 1.0, 5),
    "other-task": ("other_task", 1.0, 6),
    "corrupt-50": ("corrupt", 0.5, 6),
    "corrupt-20": ("corrupt", 0.2, 3),
    "backdoor-30": ("backdoor", 0.3, 6),
    "backdoor-10": ("backdoor", 0.1, 3),
}
"""Name of a contamination -> how it is trained, the share of tokens or samples, clients of a pool."""
CLEAN, EQUAL = 26, (1.0, 1.0, 0)
HONEST = {"few": (0.3, 1.0, 4), "many": (3.0, 1.0, 4), "short": (1.0, 0.3, 4)}
"""Clean clients unlike the others -> their share of the samples, of the steps, clients of a pool."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One regime. `seed` decides everything that is drawn."""

    architecture: train.Architecture
    width: int
    own_init: bool
    heterogeneity: Heterogeneity
    samples: int
    swaps: int = 0
    rank: int = 8
    seed: int = 0
    clean: int = CLEAN
    most: int = 99  # clients of each contamination
    odd: tuple[tuple[str, int], ...] | None = None  # label, how many: instead of the tables above
    replicates: int = 0  # further adapters of every client, as in train.train_client

    @property
    def name(self) -> str:
        """As in `llama-64 own family-3 n24 r8 s1003`."""
        init = "own" if self.own_init else "shared"
        kind = f"{self.heterogeneity}-{self.swaps}" if self.swaps else self.heterogeneity
        return (
            f"{self.architecture}-{self.width} {init} {kind} n{self.samples} r{self.rank} "
            f"s{self.seed}"
        )

    @property
    def recipe(self) -> train.Recipe:
        """How each client trains."""
        return train.Recipe(
            rank=self.rank,
            alpha=2 * self.rank,
            width=self.width,
            architecture=self.architecture,
        )

    def specs(self) -> list[ClientSpec]:
        """Every client, clean ones first; a name is its kind and a number."""
        kinds: list[tuple[str, Kind, float]] = [
            (f"clean-{n:02d}", "clean", 0.0) for n in range(1, self.clean + 1)
        ]
        for label, (kind, fraction, count) in CONTAMINATED.items():
            numbers = range(1, self._wanted(label, count) + 1)
            kinds += [(f"{label}-{n:02d}", kind, fraction) for n in numbers]
        for label, (_, _, count) in HONEST.items():
            numbers = range(1, self._wanted(label, count) + 1)
            kinds += [(f"{label}-{n:02d}", "clean", 0.0) for n in numbers]
        rng = Random(self.seed)
        swaps = draw_swaps(self.heterogeneity, self.swaps, len(kinds), rng)
        first = 1000 * self.seed
        return [
            ClientSpec(
                name=name,
                kind=kind,
                swaps=own,
                samples=round(self.samples * HONEST.get(label_of(name), EQUAL)[0]),
                fraction=fraction,
                seed=first + number,
                init_seed=first + number * self.own_init,
            )
            for number, ((name, kind, fraction), own) in enumerate(
                zip(kinds, swaps, strict=True), start=1
            )
        ]

    def _wanted(self, label: str, usual: int) -> int:
        """How many clients of a label."""
        return min(usual, self.most) if self.odd is None else dict(self.odd).get(label, 0)


def label_of(name: str) -> str:
    """`corrupt-50` of the client `corrupt-50-03`."""
    return name.rpartition("-")[0]


def pools(shift: int = 0) -> list[Pool]:
    """The regimes of the full grid: architectures, widths, inits, heterogeneity, data, ranks."""
    table = [
        Pool("llama", 64, False, "none", 16),
        Pool("llama", 64, True, "family", 24, 3),
        Pool("gpt2", 64, True, "none", 48),
        Pool("llama", 64, False, "personal", 48, 2, rank=4),
        Pool("llama", 64, True, "none", 16),
        Pool("llama", 64, False, "family", 24, 3),
        Pool("gpt2", 64, False, "family", 48, 2),
        Pool("llama", 64, True, "personal", 48, 2, rank=4),
        Pool("llama", 128, False, "none", 100),
        Pool("llama", 128, True, "family", 100, 3),
        Pool("gpt2", 96, False, "none", 500, rank=4),
        Pool("llama", 64, True, "none", 500, rank=4),
        Pool("gpt2", 96, True, "personal", 200, 2),
        Pool("llama", 64, False, "family", 200, 4),
    ]
    return [replace(pool, seed=11 + n + shift) for n, pool in enumerate(table)]


def quick_pools(shift: int = 0) -> list[Pool]:
    """Two small ones, trained in about a minute."""
    table = [Pool("llama", 64, False, "family", 24, 3), Pool("llama", 64, True, "none", 24)]
    return [
        replace(pool, seed=11 + n + shift, clean=12, most=2, rank=4) for n, pool in enumerate(table)
    ]


def train_pool(pool: Pool, work: Path, jobs: int) -> Iterator[ClientSpec]:
    """Train what is missing of a pool into `work`/<pool>/<client>; yields each client as it is there."""
    base = train.default_base(pool.recipe)
    train.ensure_base(base, pool.recipe)
    folder = work / pool.name
    folder.mkdir(parents=True, exist_ok=True)
    specs = pool.specs()
    train.write_truth(train.truth_path(folder), None, pool.recipe, specs)
    missing = [spec for spec in specs if not (folder / spec.name).is_dir()]
    yield from (spec for spec in specs if spec not in missing)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=train.one_thread
    ) as workers:
        tasks = [workers.submit(_train, spec, pool, base, folder) for spec in missing]
        for task in tasks:
            yield task.result()


def _train(spec: ClientSpec, pool: Pool, base: Path, folder: Path) -> ClientSpec:
    """One client, whole or not at all."""
    staging = folder / f".{spec.name}.{os.getpid()}"
    steps = round(pool.recipe.steps * HONEST.get(label_of(spec.name), EQUAL)[1])
    recipe = replace(pool.recipe, steps=steps)
    train.train_client(spec, recipe, base, staging, pool.replicates)
    staging.rename(folder / spec.name)
    return spec
