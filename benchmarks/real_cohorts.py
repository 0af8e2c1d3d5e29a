"""Cohorts drawn from the pools of real_pools.py: who is in them, and what is true of everybody.

A cohort is a condition (what honest clients differ in), a kind of contamination, and clients under
names that say nothing. Its name decides everything that is drawn. Cohorts of one pool share clients.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from zlib import crc32

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from benchmarks.attacks import orthonormal, truncated
from benchmarks.real_pools import COUNTS, HARMED, KINDS, Pool, label_of, pools
from benchmarks.saved import PREFIX, Saved, read

SET, HELD_OUT = 1, 1001
"""First seeds of the pools on which things may be set, and of those on which nothing is."""
SHARES = {"colluder-third": 1 / 3, "colluder-half": 1 / 2}
"""Of a colluder's update, in norm, that all colluders of the cohort have in common."""
COMMON_RANK = 2
Draw = tuple[str, str, dict[str, int]]
"""Condition, kind of contamination, labels and how many of them; colluders are drawn from the even."""


@dataclass(frozen=True, slots=True)
class Client:
    """`source` is its name in the pool; `label` that, without the number, or how it colludes.

    `note` says in what an honest client differs from the majority: domain, classes or length (of the
    training). Such a client may be called a minority. "" where in nothing of these.
    """

    source: str
    honest: bool
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cohort:
    """`clients`: name in the cohort -> who it is."""

    name: str
    pool: Pool
    condition: str
    kind: str
    clients: dict[str, Client]

    @property
    def held_out(self) -> bool:
        """Nothing was set on its clients."""
        return self.pool.seed >= HELD_OUT


def every_cohort() -> list[Cohort]:
    """Of the seeds on which things may be set, then as many of those held out."""
    return cohorts(SET) + cohorts(HELD_OUT)


def cohorts(seed: int) -> list[Cohort]:
    """Those of the pools of one seed, `SET` or `HELD_OUT`."""
    found, seen = [], Counter[str]()
    for pool in pools(seed):
        for condition, kind, wanted in draws(pool):
            stem = f"{pool.name}.{condition}.{kind}".replace(" ", "-")
            seen[stem] += 1
            name = f"{stem}.{seen[stem]}"
            found.append(Cohort(name, pool, condition, kind, drawn(pool, wanted, name)))
    return found


# Which there are


def draws(pool: Pool) -> Iterator[Draw]:
    """Every cohort of a pool, by what is drawn for it."""
    language = pool.task == "language"
    uneven = DOMAINS if language else SKEWED
    for condition, honest in (*UNEQUAL, *uneven):
        yield condition, "none", honest
    for label in HARMED:
        if label in COUNTS[pool.task]:
            yield from harmed(label, COUNTS[pool.task][label], language)
    first, second = ("shuffled", "random") if language else ("flipped", "other")
    kinds = [label for label in HARMED if label in COUNTS[pool.task]]
    yield "even", "mixed", {"even": 10} | dict.fromkeys(kinds, 1)
    yield "even", "mixed", {"even": 10, "random": 2, "trigger-100": 2}
    yield "few-10", "mixed", {"even": 7, "few-10": 4, first: 2, "trigger-100": 2}
    yield "thin majority", "mixed", {"even": 7, "random": 3, "trigger-100": 3}
    yield "thin majority", "mixed", {"even": 7, first: 3, second: 3}
    yield "thin majority", "mixed", {"even": 8, "random": 4, "trigger-100": 3}
    for label in SHARES:
        yield "even", label, {"even": 10, label: 4}
        yield "even", label, {"even": 9, label: 3}
        yield "few-3", label, {"even": 9, "few-3": 3, label: 4}
        yield "few-10", label, {"even": 6, "few-10": 4, label: 3}


UNEQUAL: tuple[tuple[str, dict[str, int]], ...] = (
    ("even", {"even": 12}),
    ("even", {"even": 14}),
    ("few-3", {"even": 10, "few-3": 3}),
    ("few-10", {"even": 8, "few-10": 4}),
    ("few-10", {"even": 9, "few-10": 5}),
    ("few-10", {"even": 7, "few-10": 5}),
    ("few-30", {"even": 9, "few-30": 3}),
    ("few-any", {"even": 6, "few-3": 3, "few-10": 3, "few-30": 3}),
    ("few-any", {"even": 12, "few-3": 3, "few-10": 5, "few-30": 3}),
    ("brief-10", {"even": 10, "brief-10": 3}),
    ("rates", {"even": 8, "slow": 3, "fast": 3}),
    ("steps", {"even": 8, "short": 4}),
    ("short majority", {"even": 5, "short": 6, "brief-10": 1}),
    ("ranks", {"even": 9, "rank-4": 2, "rank-16": 2}),
    ("everything", {"even": 12, "few-10": 3, "short": 3, "slow": 2, "rank-4": 2, "rank-16": 2}),
)
SKEWED: tuple[tuple[str, dict[str, int]], ...] = (
    ("skew-0.5", {"even": 8, "skew-0.5": 4}),
    ("skew-0.5", {"even": 4, "skew-0.5": 8}),
    ("skew-0.1", {"even": 8, "skew-0.1": 4}),
    ("skew-0.1", {"even": 4, "skew-0.1": 8}),
    ("skew-any", {"skew-0.5": 8, "skew-0.1": 4}),
    ("skew-any", {"skew-0.5": 4, "skew-0.1": 8}),
    ("skew-any", {"skew-0.5": 8, "skew-0.1": 8}),
)
DOMAINS: tuple[tuple[str, dict[str, int]], ...] = (
    ("domains-equal", {"even": 6, "domain-1": 6}),
    ("domains-equal", {"even": 4, "domain-1": 4, "domain-2": 4}),
    ("domains-equal", {"even": 5, "domain-1": 5, "domain-2": 5}),
    ("domains-equal", {"even": 4, "domain-1": 4, "domain-2": 4, "domain-3": 4}),
    ("domains-unequal", {"even": 9, "domain-1": 4}),
    ("domains-unequal", {"even": 8, "domain-1": 3, "domain-2": 2}),
    ("domains-unequal", {"even": 10, "domain-1": 5, "domain-2": 3}),
    ("domains-unequal", {"even": 7, "domain-1": 6}),
    ("domains-unequal", {"even": 12, "domain-1": 6, "domain-2": 3, "domain-3": 3}),
)


def harmed(label: str, most: int, language: bool) -> Iterator[Draw]:
    """One kind of contamination in even cohorts, alone, and in uneven ones."""
    yield "even", label, {"even": 10, label: most}
    yield "even", label, {"even": 12, label: 2}
    yield "one alone", label, {"even": 11, label: 1}
    yield "few-10", label, {"even": 6, "few-10": 4, label: 3}
    if language:
        yield "domains-equal", label, {"even": 5, "domain-1": 5, label: 3}
        yield "domains-unequal", label, {"even": 8, "domain-1": 3, label: 3}
    else:
        yield "skew-0.5", label, {"even": 4, "skew-0.5": 6, label: 3}


# Who is in one


def drawn(pool: Pool, wanted: dict[str, int], name: str) -> dict[str, Client]:
    """The clients of a cohort, in an order that says nothing."""
    rng = Random(name)
    left: dict[str, list[str]] = {}
    for source in pool.clients():
        left.setdefault(label_of(source), []).append(source)
    for sources in left.values():
        rng.shuffle(sources)
    chosen = [
        (left["even" if label in SHARES else label].pop(), label)
        for label, count in wanted.items()
        for _ in range(count)
    ]
    rng.shuffle(chosen)
    notes = differing(chosen)
    return {
        f"client-{n:02d}": Client(source, is_honest(label), label, notes.get(source, ""))
        for n, (source, label) in enumerate(chosen, start=1)
    }


def is_honest(label: str) -> bool:
    """Of a client's label."""
    return label not in HARMED and label not in SHARES


def differing(chosen: list[tuple[str, str]]) -> dict[str, str]:
    """Honest source -> in what it differs from more than half of the honest clients, or from anybody
    where no half is alike."""
    honest = [(source, KINDS[label]) for source, label in chosen if is_honest(label)]
    found: dict[str, str] = {}
    for note in ("domain", "classes", "length"):
        values = {
            source: {
                "domain": str(kind.domain),
                "classes": source if kind.skew else "",
                "length": str(kind.steps),
            }[note]
            for source, kind in honest
        }
        counts = Counter(values.values())
        found |= {s: note for s, v in values.items() if 2 * counts[v] <= len(honest)}
    return found


# From a cohort to a folder


def put(cohort: Cohort, trained: Path, folder: Path) -> None:
    """Write the cohort below `folder`, one sub-folder per client; files of the pool as hard links.

    trained: the folder of the pools.
    """
    for name, client in cohort.clients.items():
        target = folder / name
        target.mkdir(parents=True)
        for path in sorted((trained / cohort.pool.name / client.source).iterdir()):
            link(path, target / path.name)
        if client.label in SHARES:
            collude(target, SHARES[client.label], crc32(cohort.name.encode()))


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def collude(folder: Path, share: float, seed: int) -> None:
    """Mix into the client's update the part that `seed` decides, of its own norm, `share` of it.

    The sum is cut to the rank it had. Everything but the factors stays as it was.
    """
    honest, path = read(folder), folder / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    for module, (up, down) in mixed(honest, share, seed).items():
        tensors[f"{PREFIX}{module}.lora_B.weight"] = up.contiguous()
        tensors[f"{PREFIX}{module}.lora_A.weight"] = down.contiguous()
    path.unlink()  # a link to the pool's
    save_file(tensors, path, metadata=metadata)


def mixed(honest: Saved, share: float, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> factors of (1 - share) honest + share common, A as near to the honest one as can be."""
    draw, dense = Generator().manual_seed(seed), {}
    for module, update in honest.dense().items():
        left, right = (orthonormal(draw, d, COMMON_RANK) for d in update.shape)
        common = left @ right.T * update.double().norm() / COMMON_RANK**0.5
        dense[module] = (1 - share) * update.double() + share * common
    cut = truncated(dense, honest).factors
    return {m: near(*cut[m], honest.factors[m][1]) for m in cut}


def near(up: Tensor, down: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with orthogonal rows of A, as near to `wanted` as they turn, of its norm."""
    basis = torch.linalg.qr(down.double().T)[0]
    u, _, vh = torch.linalg.svd(wanted.double() @ basis)
    rows = u @ vh @ basis.T * (wanted.double().norm() / len(wanted) ** 0.5)
    return (up.double() @ down.double() @ torch.linalg.pinv(rows)).to(up), rows.to(down)
