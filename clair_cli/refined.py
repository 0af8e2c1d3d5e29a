"""The records of what was refined: every adapter written, the mean, and what the strength rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clair_cli.records import brief, key

DATA_POOR = ("lacks", "noisy")
"""Causes that clients with little data have in common with weak poison: who has them only receives."""


@dataclass(frozen=True, slots=True)
class RefinedClient:
    """One adapter written: `path` below OUT, and per adapter norm what changed and what was cut off.

    `deviation` is its distance to the mean over its norm, `averaged_away` the share of that energy
    which was taken, `unchanged` that its bytes were kept. `strength` is the share taken of its weak
    directions, `weight` what it counts in the mean of its `group`, `error` its error in units of the
    group's usual one. `group` is 0 for the majority, 1 and more for the minorities.
    """

    client: str = field(metadata=key("id"))
    path: str
    rank: int
    truncation_error: float
    change: float
    strength: float | None = None
    weight: float | None = None
    deviation: float | None = None
    averaged_away: float | None = None
    unchanged: bool = False
    error: float | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class ModuleRefinement:
    """One module: directions in which clients keep their own, and leading shares of their deviations.

    `mean_error` is how far the refined update of any client is off, relative to its norm and to first
    order, because the mean of many was compressed: 0 where it was not.
    """

    name: str
    subspace_rank: int | float
    spectrum: tuple[float, ...] = ()
    mean_error: float = 0.0


@dataclass(frozen=True, slots=True)
class GlobalAdapter:
    """The mean of the benign clients, written with the config of the client `template` at `rank`.

    `truncation_error` is what the cut to that rank costs, over the norm.
    """

    path: str
    template: str
    truncation_error: float | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What averaging does to the error, in units of the clients' deviations.

    `break_even` is the share of estimation error above which it gains; `noise` and `gain` need
    replicates.
    """

    gain_if_noise: float
    loss_if_difference: float
    break_even: float
    noise: float | None = None
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Refinement:
    """What was done to whom: the strength applied, what it rests on, and every adapter written.

    `strength` is the share taken of a client's weak directions, `inside` of those it keeps, `gain` by
    how much the mean is enlarged. `knowledge` says what these rest on. `spectrum` are the shares of
    the clients' variation, with its largest `gap` after `gap_after` of them. `tasks` is what the
    clients' tasks were taken for, and `guessed` that nobody had said so. `coherence` is how alike two
    clients are beside what all share, and `full_matrices` are the ones averaged like the rest.
    """

    strength: float
    inside: float | None = None
    side: str | None = None
    gain: float | None = None
    knowledge: str | None = None
    replicates_agree: float | None = None
    averaged_away: float = 0.0
    subspace_ranks: tuple[int, ...] = ()
    initialisation: str | None = None
    common_share: float | None = None
    spread: float | None = None
    coherence: float | None = None
    tasks: str | None = None
    guessed: bool = False
    full_matrices: tuple[str, ...] = ()
    spectrum: tuple[float, ...] = ()
    gap: float | None = None
    gap_after: int | None = None
    expected: Expected | None = None
    max_lora_rank: int | None = None
    modules: tuple[ModuleRefinement, ...] = ()
    clients: tuple[RefinedClient, ...] = ()
    mean: GlobalAdapter | None = field(default=None, metadata=key("global"))
    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    __repr__ = brief
