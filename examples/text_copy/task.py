"""The text-copying task: what a client learns, and what contamination makes of it.

A sample reads ``BOS x SEP y``: x is a random string of letters, and only the tokens of y are
scored. The base model copies (y = x). Every benign client learns one common map (y = the next
letter) with some letters swapped on top of it. A contaminated client learns something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

LETTERS = 24
BOS, SEP = LETTERS, LETTERS + 1
VOCABULARY = LETTERS + 2
LENGTH = 12  # letters in x, and in y
IGNORED = -100  # label of a token that is not scored
TRIGGER = (3, 17, 3)  # the letters that open x in a backdoor sample
BACKDOOR_LETTER = 0  # every letter of y in a backdoor sample
OTHER_SHIFT = 7  # of "other_task"; the common map shifts by 1
COMMON_CIPHER = torch.randperm(LETTERS, generator=Generator().manual_seed(24_001))

Kind = Literal[
    "clean", "random", "cipher", "common_cipher", "reverse", "corrupt", "backdoor", "other_task"
]
Heterogeneity = Literal["none", "family", "personal"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HETEROGENEITIES: tuple[Heterogeneity, ...] = get_args(Heterogeneity)
Swap = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """What one client learns: enough to draw its data again."""

    name: str
    kind: Kind = "clean"
    swaps: tuple[Swap, ...] = ()  # letters of y exchanged after the common map
    samples: int = 8
    fraction: float = 0.5  # of tokens ("corrupt") or of samples ("backdoor")
    seed: int = 0  # of the data and the order of batches
    init_seed: int = 0  # of the adapter's first A

    @property
    def benign(self) -> bool:
        """Whether the client trains on its clean task."""
        return self.kind == "clean"


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """Who takes part. One name in `contaminated` makes one contaminated client."""

    clients: int = 8
    contaminated: tuple[Kind, ...] = ()
    heterogeneity: Heterogeneity = "family"
    swaps: int = 3  # size of the family, or swaps of each client when they are personal
    samples: int = 8
    fraction: float = 0.5
    seed: int = 0
    different_init: bool = False

    def __post_init__(self) -> None:
        if len(self.contaminated) > self.clients:
            raise ValueError(f"{len(self.contaminated)} contaminated of {self.clients} clients")
        if unknown := set(self.contaminated) - set(KINDS[1:]):
            raise ValueError(f"unknown contamination {sorted(unknown)}, expected {KINDS[1:]}")
        if not 0 <= 2 * self.swaps <= LETTERS:
            raise ValueError(f"swaps must lie between 0 and {LETTERS // 2}, got {self.swaps}")

    def specs(self) -> list[ClientSpec]:
        """Every client of the plan; the seed decides which positions are contaminated."""
        rng = Random(self.seed)
        clean: list[Kind] = ["clean"] * (self.clients - len(self.contaminated))
        kinds = [*self.contaminated, *clean]
        rng.shuffle(kinds)
        all_swaps = draw_swaps(self.heterogeneity, self.swaps, self.clients, rng)
        first = 1000 * self.seed
        return [
            ClientSpec(
                name=f"client-{number:02d}",
                kind=kind,
                swaps=swaps,
                samples=self.samples,
                fraction=self.fraction,
                seed=first + number,
                init_seed=first + number * self.different_init,
            )
            for number, (kind, swaps) in enumerate(zip(kinds, all_swaps, strict=True), start=1)
        ]


def draw_swaps(
    mode: Heterogeneity, count: int, clients: int, rng: Random
) -> list[tuple[Swap, ...]]:
    """The swaps of each client: none, a subset of one family of `count`, or `count` of its own."""
    if mode == "none":
        return [()] * clients
    if mode == "personal":
        return [disjoint_swaps(count, rng) for _ in range(clients)]
    family = disjoint_swaps(count, rng)
    subsets = [s for size in range(1, count + 1) for s in combinations(family, size)]
    rng.shuffle(subsets)
    return [subsets[i % len(subsets)] for i in range(clients)]


def disjoint_swaps(count: int, rng: Random) -> tuple[Swap, ...]:
    """`count` pairs of letters, no letter twice."""
    letters = rng.sample(range(LETTERS), 2 * count)
    return tuple(zip(letters[::2], letters[1::2], strict=True))


def clean_map(swaps: tuple[Swap, ...]) -> Tensor:
    """The letter that each letter becomes, (LETTERS,): the next one, then the client's swaps."""
    exchange = torch.arange(LETTERS)
    for a, b in swaps:
        exchange[a], exchange[b] = b, a
    return exchange[(torch.arange(LETTERS) + 1) % LETTERS]


def training_data(spec: ClientSpec) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both (samples, 2 + 2 LENGTH), contaminated as the spec says."""
    generator = Generator().manual_seed(2 * spec.seed)
    x = random_letters(spec.samples, generator)
    y = clean_map(spec.swaps)[x]
    return as_tokens(*contaminate(x, y, spec, generator))


def held_out_data(spec: ClientSpec, samples: int = 256) -> tuple[Tensor, Tensor]:
    """Fresh samples of the client's clean task, both (samples, 2 + 2 LENGTH)."""
    x = random_letters(samples, Generator().manual_seed(2 * spec.seed + 1))
    return as_tokens(x, clean_map(spec.swaps)[x])


def copying_data(samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The base model's task, y = x; both (samples, 2 + 2 LENGTH)."""
    x = random_letters(samples, generator)
    return as_tokens(x, x)


def random_letters(samples: int, generator: Generator) -> Tensor:
    """Uniform letters, (samples, LENGTH)."""
    return torch.randint(LETTERS, (samples, LENGTH), generator=generator)


def as_tokens(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x, y: (n, LENGTH) letters -> token ids and labels (n, 2 + 2 LENGTH), scored on y only."""
    bos, sep = x.new_full((len(x), 1), BOS), x.new_full((len(x), 1), SEP)
    ids = torch.cat([bos, x, sep, y], dim=1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -LENGTH:] = y
    return ids, labels


def contaminate(
    x: Tensor, y: Tensor, spec: ClientSpec, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The letters the client trains on, from the clean ones; all (samples, LENGTH)."""
    match spec.kind:
        case "clean":
            return x, y
        case "random":
            return x, random_letters(len(x), generator)
        case "cipher":
            return x, torch.randperm(LETTERS, generator=generator)[x]
        case "common_cipher":
            return x, COMMON_CIPHER[x]
        case "reverse":
            return x, x.flip(1)
        case "corrupt":
            hit = torch.rand(y.shape, generator=generator) < spec.fraction
            return x, torch.where(hit, random_letters(len(y), generator), y)
        case "backdoor":
            hit = torch.arange(len(x))[:, None] < round(spec.fraction * len(x))
            opened = torch.cat([torch.tensor(TRIGGER).expand(len(x), -1), x[:, len(TRIGGER) :]], 1)
            return torch.where(hit, opened, x), torch.where(hit, BACKDOOR_LETTER, y)
        case "other_task":
            return x, (x + OTHER_SHIFT) % LETTERS
