"""The tables of real.py: verdicts by condition and by kind, and the figures that are wanted.

Found is who is called contaminated, or minority where two or more contaminated clients of the cohort
are of one kind. Suspicious counts as found for weak kinds only, and is shown apart. Without a verdict
nobody is found, and nobody convicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.measures import CONVICTED, table
from benchmarks.real_cohorts import SHARES, Client
from benchmarks.real_judges import Judged
from benchmarks.real_pools import HARMED, Pool

STRONG = ("random", "trigger-100", "other")
WEAK = ("trigger-30", "half", "shuffled")
BY_TEN = ("few-10", "few-any", "brief-10")
KINDS = (*HARMED, *SHARES)


@dataclass(frozen=True, slots=True)
class Said:
    """A client of a judged cohort. `company`: contaminated clients of its label, itself one."""

    judged: Judged
    name: str
    client: Client
    company: int

    @property
    def verdict(self) -> str | None:
        """None without one."""
        return self.judged.verdicts[self.name]

    @property
    def convicted(self) -> bool:
        """Called contaminated, or broken."""
        return self.verdict in CONVICTED

    @property
    def found(self) -> bool:
        """Of a contaminated client; suspicion apart."""
        return self.convicted or (self.verdict == "minority" and self.company > 1)

    @property
    def suspected(self) -> bool:
        """Of a contaminated client of a weak kind: suspicious."""
        return self.client.label in WEAK and self.verdict == "suspicious"

    @property
    def wronged(self) -> bool:
        """Of an honest client: a minority that it is not."""
        return self.verdict == "minority" and not self.client.note


def clients(cohorts: Iterable[Judged]) -> list[Said]:
    """All clients of the cohorts."""
    found = []
    for judged in cohorts:
        bad = [c.label for c in judged.cohort.clients.values() if not c.honest]
        found += [
            Said(judged, name, c, bad.count(c.label)) for name, c in judged.cohort.clients.items()
        ]
    return found


def honest(cohorts: Iterable[Judged]) -> list[Said]:
    """Their honest clients."""
    return [s for s in clients(cohorts) if s.client.honest]


def contaminated(cohorts: Iterable[Judged], *labels: str) -> list[Said]:
    """Their contaminated clients; of these labels where any is given."""
    return [
        s
        for s in clients(cohorts)
        if not s.client.honest and (not labels or s.client.label in labels)
    ]


def exact(judged: Judged) -> bool:
    """All contaminated are found, no honest client convicted, or a minority that it is not."""
    return all(s.found for s in contaminated([judged])) and not any(
        s.convicted or s.wronged for s in honest([judged])
    )


def regime(pool: Pool) -> str:
    """As in `sms all shared`."""
    return f"{pool.task} {pool.modules} {'own' if pool.own else 'shared'}"


# What is wanted


@dataclass(frozen=True, slots=True)
class Counted:
    """`hits` of `total`; of these `suspected` on suspicion only."""

    hits: int
    total: int
    suspected: int = 0

    @property
    def share(self) -> float:
        """0 of nothing."""
        return self.hits / self.total if self.total else 0.0

    def __str__(self) -> str:
        if not self.total:
            return "-"
        apart = f", {self.suspected} suspicious" if self.suspected else ""
        return f"{self.share:.3f} ({self.hits} of {self.total}{apart})"


@dataclass(frozen=True, slots=True)
class Target:
    """`most`: the share must not be above `limit`; else not below."""

    name: str
    limit: float
    most: bool
    count: Callable[[list[Judged]], Counted]

    @property
    def wanted(self) -> str:
        """As in `<= 0.003`."""
        return f"{'<=' if self.most else '>='} {self.limit:g}"

    def cell(self, cohorts: list[Judged]) -> str:
        """The figure, and whether it is as wanted."""
        counted = self.count(cohorts)
        if not counted.total:
            return "-"
        met = counted.share <= self.limit if self.most else counted.share >= self.limit
        return f"{counted} {'yes' if met else '**no**'}"


def caught(said: list[Said]) -> Counted:
    """Found, or suspected where that counts."""
    found, suspected = sum(s.found for s in said), sum(s.suspected for s in said)
    return Counted(found + suspected, len(said), suspected)


def recall(*labels: str, **where: object) -> Callable[[list[Judged]], Counted]:
    """Of the clients of these labels, in pools whose fields are as said."""
    return lambda cohorts: caught(contaminated(pooled(cohorts, **where), *labels))


def pooled(cohorts: list[Judged], **where: object) -> list[Judged]:
    """Those of pools whose fields are as said; a tuple: one of these."""
    return [
        j
        for j in cohorts
        if all(
            getattr(j.cohort.pool, f) in (v if isinstance(v, tuple) else (v,))
            for f, v in where.items()
        )
    ]


def convicted(*conditions: str) -> Callable[[list[Judged]], Counted]:
    """Of the honest clients in these conditions; in all where none is given."""

    def count(cohorts: list[Judged]) -> Counted:
        said = honest(j for j in cohorts if not conditions or j.cohort.condition in conditions)
        return Counted(sum(s.convicted for s in said), len(said))

    return count


def wronged(cohorts: list[Judged]) -> Counted:
    """Of the honest clients that differ from the majority in nothing."""
    said = [s for s in honest(cohorts) if not s.client.note]
    return Counted(sum(s.wronged for s in said), len(said))


def exact_sets(*labels: str) -> Callable[[list[Judged]], Counted]:
    """Of the cohorts with one of these kinds alone."""

    def count(cohorts: list[Judged]) -> Counted:
        these = [j for j in cohorts if j.cohort.kind in labels]
        return Counted(sum(exact(j) for j in these), len(these))

    return count


def of_mixed(cohorts: list[Judged]) -> Counted:
    """Contaminated clients of several kinds in one cohort, thin majorities among them."""
    return caught(contaminated(j for j in cohorts if j.cohort.kind == "mixed"))


def of_thin(cohorts: list[Judged]) -> Counted:
    """Contaminated clients where the honest are hardly more."""
    return caught(contaminated(j for j in cohorts if j.cohort.condition == "thin majority"))


CLASSES = ("sms", "intents")
TARGETS = (
    Target("honest clients contaminated", 0.003, True, convicted()),
    Target("- in cohorts unequal by ten", 0.0, True, convicted(*BY_TEN)),
    Target("- in cohorts of equal domains", 0.0, True, convicted("domains-equal")),
    Target("honest clients a minority that they are not", 0.0, True, wronged),
    Target("strong kinds, exact sets", 0.99, False, exact_sets(*STRONG)),
    Target("flipped, heads of one start", 0.95, False, recall("flipped", own=False)),
    Target("flipped, own heads", 0.9, False, recall("flipped", own=True)),
    Target("half-corrupted, shared A", 0.95, False, recall("half", own=False)),
    Target("half-corrupted, own A", 0.9, False, recall("half", own=True)),
    Target("trigger 30 %, language", 0.95, False, recall("trigger-30", task="language")),
    Target("trigger 30 %, classification", 0.8, False, recall("trigger-30", task=CLASSES)),
    Target("colluders mixing a third", 0.95, False, recall("colluder-third")),
    Target("mixed kinds", 0.98, False, of_mixed),
    Target("thin majorities", 0.98, False, of_thin),
)


# Markdown


def targets(cohorts: list[Judged], others: dict[str, list[Judged]] | None = None) -> str:
    """Each target on both sets of seeds, and on other cohorts by their title."""
    parts = {
        "seeds set on": [j for j in cohorts if not j.cohort.held_out],
        "seeds held out": [j for j in cohorts if j.cohort.held_out],
        **(others or {}),
    }
    lines = [[t.name, t.wanted, *map(t.cell, parts.values())] for t in TARGETS]
    return table(["", "wanted", *parts], lines)


def by_condition(cohorts: list[Judged]) -> str:
    """What was said of honest and of contaminated clients, by what the honest differ in."""
    head = ["condition", "cohorts", "no verdict", "honest", "contaminated", "suspicious"]
    head += ["minority: is / is not", "harmed", "found", "suspicious", "missed"]
    lines = []
    for condition in dict.fromkeys(j.cohort.condition for j in cohorts):
        these = [j for j in cohorts if j.cohort.condition == condition]
        silent = sum(j.silent for j in these)
        lines.append([condition, str(len(these)), str(silent), *of_honest(these), *of_bad(these)])
    lines.append(
        [
            *("all", str(len(cohorts)), str(sum(j.silent for j in cohorts))),
            *of_honest(cohorts),
            *of_bad(cohorts),
        ]
    )
    return table(head, lines)


def of_honest(cohorts: list[Judged]) -> list[str]:
    """Four columns of `by_condition`."""
    said = honest(cohorts)
    wrong, minority = sum(s.wronged for s in said), sum(s.verdict == "minority" for s in said)
    return [
        str(len(said)),
        str(sum(s.convicted for s in said)),
        str(sum(s.verdict == "suspicious" for s in said)),
        f"{minority - wrong} / {wrong}",
    ]


def of_bad(cohorts: list[Judged]) -> list[str]:
    """Its last four."""
    said = contaminated(cohorts)
    counted = caught(said)
    found = counted.hits - counted.suspected
    missed = counted.total - counted.hits
    return [str(n) for n in (counted.total, found, counted.suspected, missed)]


def by_kind(cohorts: list[Judged], column: Callable[[Judged], str]) -> str:
    """Found + suspicious of how many, by the client's kind and what `column` says of its cohort."""
    columns = list(dict.fromkeys(column(j) for j in cohorts if contaminated([j])))
    lines = []
    for kind in KINDS:
        parts = [contaminated((j for j in cohorts if column(j) == c), kind) for c in columns]
        if any(parts):
            lines.append([kind, *map(apart, parts), apart([s for part in parts for s in part])])
    return table(["kind", *columns, "all"], lines)


def apart(said: list[Said]) -> str:
    """As in `9 + 1 of 12`."""
    counted = caught(said)
    suspected = f" + {counted.suspected}" if counted.suspected else ""
    found = counted.hits - counted.suspected
    return f"{found}{suspected} of {counted.total}" if counted.total else "-"


def wrongly(cohorts: list[Judged], most: int = 60) -> str:
    """Honest clients that are called contaminated or a minority that they are not, highest first."""
    said = [s for s in honest(cohorts) if s.convicted or s.wronged]
    said.sort(key=lambda s: -s.judged.scores[s.name])
    lines = [
        [s.judged.cohort.name, s.client.label, str(s.verdict), f"{s.judged.scores[s.name]:.1f}"]
        for s in said[:most]
    ]
    return table(["cohort", "client", "verdict", "score"], lines) if lines else "Nobody."


def verdict_tables(cohorts: list[Judged]) -> str:
    """All that is said about cohorts of one set of seeds."""
    seconds = median(j.seconds for j in cohorts)
    return f"""\
{len(cohorts)} cohorts, {len(clients(cohorts))} clients in them; median {seconds:.1f} s a cohort.

By condition, all kinds together:

{by_condition(cohorts)}

Found by kind and pool:

{by_kind(cohorts, lambda j: regime(j.cohort.pool))}

Found by kind and condition:

{by_kind(cohorts, lambda j: j.cohort.condition)}

Honest clients called contaminated, or a minority that they are not:

{wrongly(cohorts)}"""
