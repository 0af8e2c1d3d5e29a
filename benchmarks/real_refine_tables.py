"""The tables of real.py on refinement. Pure functions of what real_refine.py kept.

A row is a cohort and method -> honest client -> (loss, accuracy). Clients that a method leaves without
an adapter keep, and are counted with, their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.measures import table
from benchmarks.real_cohorts import Cohort
from benchmarks.real_tables import regime

Qualities = dict[str, tuple[float, float]]
ONE_TASK = (
    *("even", "few-3", "few-10", "few-30", "few-any", "brief-10"),
    *("rates", "steps", "ranks", "everything"),
)
SEVERAL = ("skew-0.5", "skew-0.1", "skew-any", "domains-equal", "domains-unequal")
HONEST_MEAN = "mean of the honest"


@dataclass(frozen=True, slots=True)
class Row:
    """`quality`: method -> honest client -> loss, accuracy."""

    cohort: Cohort
    quality: dict[str, Qualities]

    def loss(self, method: str, label: str = "") -> float:
        """Mean over the honest clients; over those of a label where one is given."""
        found = self.quality[method].items()
        wanted = [q[0] for n, q in found if self.cohort.clients[n].label == label or not label]
        return float(np.mean(wanted))

    def accuracy(self, method: str) -> float:
        """Mean over the honest clients."""
        return float(np.mean([q[1] for q in self.quality[method].values()]))


Measure = Callable[[Row, str], float]


def to_local(row: Row, method: str) -> float:
    """Loss over that of the clients' own adapters."""
    return row.loss(method) / row.loss("local")


def to_better(row: Row, method: str) -> float:
    """Loss over the lower of local and the mean of the honest."""
    return row.loss(method) / min(row.loss("local"), row.loss(HONEST_MEAN))


def poor_to_rich(row: Row, method: str) -> float:
    """Loss of those with a tenth of the data over that of those with all."""
    return row.loss(method, "few-10") / row.loss(method, "even")


# What is wanted


@dataclass(frozen=True, slots=True)
class Target:
    """`worst`: every cohort is held to the limit; else their mean."""

    name: str
    method: str
    conditions: tuple[str, ...]
    measure: Measure
    limit: float
    worst: bool = False

    def cell(self, rows: list[Row]) -> str:
        """Mean, worst, how many cohorts are above, and whether it is as wanted."""
        these = clean(rows, self.conditions)
        if not these:
            return "-"
        values = [self.measure(r, self.method) for r in these]
        mean, most = float(np.mean(values)), max(values)
        met = round(most if self.worst else mean, 3) <= self.limit
        above = sum(round(v, 3) > self.limit for v in values)
        said = f"{mean:.3f}, worst {most:.3f}, {above} of {len(values)} above"
        return f"{said} {'yes' if met else '**no**'}"


TARGETS = (
    Target("one task, over the better of local and mean", "clair", ONE_TASK, to_better, 1.05),
    Target("- the same", "clair --tasks same", ONE_TASK, to_better, 1.02),
    Target("domains, label skew: over local", "clair", SEVERAL, to_local, 1.0, worst=True),
    Target("a tenth of the data, over all of it", "clair", ("few-10",), poor_to_rich, 1.05),
    Target("- the same", "clair --tasks same", ("few-10",), poor_to_rich, 1.05),
    Target("- the same", "local", ("few-10",), poor_to_rich, 1.05),
)


def targets(rows: list[Row]) -> str:
    """Each target on both sets of seeds; nobody contaminated."""
    parts = [[r for r in rows if r.cohort.held_out == held] for held in (False, True)]
    lines = [[t.name, t.method, wanted(t), *(t.cell(part) for part in parts)] for t in TARGETS]
    return table(["", "method", "wanted", "seeds set on", "seeds held out"], lines)


def wanted(target: Target) -> str:
    """As in `mean <= 1.05`."""
    return f"{'each' if target.worst else 'mean'} <= {target.limit:g}"


def clean(rows: Iterable[Row], conditions: tuple[str, ...]) -> list[Row]:
    """Cohorts in these conditions with nobody contaminated."""
    return [r for r in rows if r.cohort.kind == "none" and r.cohort.condition in conditions]


# Everything


def methods(rows: list[Row]) -> list[str]:
    """All that any row has, in their order."""
    return list(dict.fromkeys(m for r in rows for m in r.quality))


def beside(rows: list[Row], column: Callable[[Row], str], measure: Measure) -> str:
    """Mean of a measure over the cohorts of a column, one line per method.

    A star: without those cohorts of it that the method cannot do.
    """
    columns = list(dict.fromkeys(map(column, rows)))
    lines = []
    for method in methods(rows):
        parts = [[r for r in rows if column(r) == c] for c in columns]
        lines.append([method, *(mean_of(part, method, measure) for part in parts)])
    return table(["method", *columns], lines)


def mean_of(rows: list[Row], method: str, measure: Measure) -> str:
    """One cell of `beside`."""
    able = [measure(r, method) for r in rows if method in r.quality]
    return f"{np.mean(able):.3f}{'*' * (len(able) < len(rows))}" if able else "-"


def as_markdown(rows: list[Row]) -> str:
    """All tables of cohorts of one set of seeds."""
    honest = [r for r in rows if r.cohort.kind == "none"]
    harmed = [r for r in rows if r.cohort.kind != "none"]
    classes = [r for r in honest if r.cohort.pool.task != "language"]
    parts = [
        (
            "Loss over local by condition, nobody contaminated",
            beside(honest, lambda r: r.cohort.condition, to_local),
        ),
        (
            "Loss over local by pool, cohorts of one task, nobody contaminated",
            beside(clean(rows, ONE_TASK), lambda r: regime(r.cohort.pool), to_local),
        ),
        (
            "Accuracy by condition, classification, nobody contaminated",
            beside(classes, lambda r: r.cohort.condition, lambda r, m: r.accuracy(m)),
        ),
        (
            "Loss over local by kind of contamination, even clients",
            beside(harmed, lambda r: r.cohort.kind, to_local),
        ),
    ]
    return "\n\n".join(f"{title}:\n\n{text}" for title, text in parts)
