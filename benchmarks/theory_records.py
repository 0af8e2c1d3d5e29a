"""What the experiments on planted truth find: a record for each, and the two laws that tables need."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.theory_truth import Plan

Array = NDArray[np.float64]
EXACT = 1e-8
"""Errors up to this are exact recovery in float64."""
Results = dict[str, list[Any]]
"""The name of an experiment -> its records."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Of one plan: the share of trials in which U and M are exact, for each way of finding them.

    `ranks`: share of the trials in which the first way has the planted rank everywhere. `largest` is the
    largest error that counts as exact, `least` the least that does not, None where there is none.
    """

    plan: Plan
    rates: dict[str, float]
    ranks: float
    largest: float | None
    least: float | None


@dataclass(frozen=True, slots=True)
class Stability:
    """Errors of U and of M by noise, (noises, 2), medians over trials.

    `split` are those of the decomposition alone, `settled` those of the consensus of the verdicts,
    `predicted` (noises,) is `subspace_error`. `members` (noises,): share of the trials in which the
    decomposition has exactly the benign. `slopes` (2, 2): log-log slope and its standard error, for U
    and for M, of the consensus up to the noise `law`; `edge`: error of U over predicted there, median.
    """

    plan: Plan
    noises: tuple[float, ...]
    law: float
    split: Array
    settled: Array
    predicted: Array
    members: Array
    slopes: Array
    edge: float


@dataclass(frozen=True, slots=True)
class Sets:
    """Shares of the trials with exactly the benign set: from the decomposition, from the verdicts."""

    plan: Plan
    members: float
    verdicts: float | None

    @property
    def over_noise(self) -> float:
        """||S_k|| / ||E_k||."""
        return self.plan.size[0] / self.plan.noise

    @property
    def over_update(self) -> float:
        """||S_k|| over the norm of a benign update."""
        return self.plan.size[0] / self.plan.usual


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean squared off-subspace errors per entry in units of sigma^2, means over clients and trials."""

    clients: int
    ratio: float  # h / sigma
    strength: float
    local: float
    refined: float
    predicted: float


RECORDS = {kind.__name__: kind for kind in (Recovery, Stability, Sets, Gain)}
Shown = dict[str, Any]


def as_json(results: Results, facts: str) -> str:
    """What is kept of a run: every record by its fields, tuples as lists."""
    found = {
        name: [asdict(r) | {"is": type(r).__name__} if is_dataclass(r) else [*r] for r in records]
        for name, records in results.items()
    }
    kept = {"facts": facts, "results": found}
    return json.dumps(kept, default=lambda array: array.tolist()) + "\n"


def from_json(text: str) -> tuple[Results, str]:
    """The records and the facts of `as_json`."""
    kept = json.loads(text)
    results = {name: [*map(_record, records)] for name, records in kept["results"].items()}
    return results, kept["facts"]


def _record(kept: Shown | list[Any]) -> Any:
    if isinstance(kept, list):
        return tuple(kept)
    kind: Any = RECORDS[kept.pop("is")]
    if "plan" in kept:
        plan = kept.pop("plan")
        tuples = {name: tuple(v) if isinstance(v, list) else v for name, v in plan.items()}
        kept["plan"] = Plan(**tuples)
    arrays = {n: np.array(v) for n, v in kept.items() if isinstance(v, list) and n != "noises"}
    noises = {"noises": tuple(kept["noises"])} if "noises" in kept else {}
    return kind(**kept | arrays | noises)


def breakdown(breadth: float) -> float:
    """The contaminated share from which one common shift passes for a shared direction.

    About the mean of all, a shift of the share p has energy p^2 in benign and (1 - p)^2 in contaminated
    clients: a participation ratio of x / (1 - 3 x), x = p (1 - p), which reaches `breadth` at this p.
    """
    return (1 - (1 - 4 * breadth / (1 + 3 * breadth)) ** 0.5) / 2


def line(x: Array, y: Array) -> tuple[float, float]:
    """Slope of log y over log x and its standard error; at least 3 points."""
    fit, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    return float(fit[0]), float(covariance[0, 0] ** 0.5)
