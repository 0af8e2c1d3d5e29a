"""Evidence over rounds: how soon weak contamination is convicted, and which honest clients are.

python -m benchmarks.history --work DIR [--seeds reported] [--rounds 50] [--bad-rounds 8]

Federations of 12 clients of unequal data train for rounds (history_rounds.py, kept in DIR/rounds),
honest ones for --rounds, those with three attackers for --bad-rounds. clair judges every round by its
changes, through its public API; then the ledger's own arithmetic is run over the scores. --seeds says
which: the constants of clair_cli/history.py were chosen on the setting seeds, and no table of results
has them. --kept trains nothing and takes whole rounds that are there.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.history_rounds import CLIENTS, KINDS, SAMPLES, Federation, kept, played
from clair_cli import __version__
from clair_cli.history import HISTORY, SILENT, after, factor
from clair_cli.rarity import table as honest_scores

HERE = Path(__file__).resolve().parent
SEEDS = {"setting": (301, 303), "reported": tuple(range(2011, 2025))}
ROUNDS, BAD_ROUNDS = 50, 8
"""Of honest federations, and of those with attackers."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Course:
    """One client over the rounds: in which it was first found by what, None where it never was."""

    federation: Federation
    client: int
    bad: bool
    rounds: int
    factors: tuple[float, ...]
    by_ledger: int | None
    by_verdict: int | None
    """Contaminated, or of a minority, in a single round."""
    flagged: int
    """Rounds in which it was contaminated."""

    @property
    def found(self) -> int | None:
        """By either."""
        return min((r for r in (self.by_ledger, self.by_verdict) if r), default=None)


def courses(federation: Federation, rows: list[Row]) -> Iterator[Course]:
    """Every client of a federation, its evidence as the ledger counts it."""
    for k, name in enumerate(spec.name for spec in federation.specs()):
        evidence, factors, by_ledger, by_verdict, flagged = 0.0, [], None, None, 0
        for row in rows:
            verdict, score = row["clients"][name]
            flagged += verdict == "contaminated"
            if verdict in ("contaminated", "minority"):
                by_verdict = by_verdict or row["round"]
            if row["status"] == "complete" and verdict not in SILENT and score is not None:
                latest = factor(score)
                evidence = after(evidence, len(factors), HISTORY, latest)
                factors.append(latest)
            if evidence >= HISTORY.limit:
                by_ledger = by_ledger or row["round"]
        bad = k >= CLIENTS - federation.attackers
        yield Course(federation, k, bad, len(rows), tuple(factors), by_ledger, by_verdict, flagged)


def federations(seeds: tuple[int, ...]) -> list[Federation]:
    """Every scenario with every seed; one task, because one global model serves no others."""
    return [Federation(kind, "none", seed) for kind in KINDS for seed in seeds]


def measured(given: argparse.Namespace) -> list[Course]:
    """All courses; what is missing is trained, unless --kept."""
    found: list[Course] = []
    for one in federations(SEEDS[given.seeds]):
        rounds = given.rounds if one.scenario == "honest" else given.bad_rounds
        work = given.work / "rounds"
        rows = kept(one, work)[:rounds] if given.kept else list(played(one, rounds, work))
        found += courses(one, rows) if rows else []
    return found


def parts(work: Path) -> dict[str, str]:
    """The tables of the page from the rounds that are kept, by name; none for seeds without any."""
    made: dict[str, str] = {}
    for seeds in SEEDS:
        given = argparse.Namespace(kept=True, seeds=seeds, work=work)
        given.rounds, given.bad_rounds = ROUNDS, BAD_ROUNDS
        if found := measured(given):
            of = "" if seeds == "reported" else f" {seeds}"
            if any(c.bad for c in found):
                made[f"found{of}"] = found_table(found)
            if any(c.federation.scenario == "honest" for c in found):
                made[f"honest{of}"] = honest_table(found)
    return made | ({"bound": bound()} if made else {})


def found_table(all_courses: list[Course]) -> str:
    """A row per kind of attacker: how many are found, and how soon."""
    heads = ["attackers", "number", "convicted within 5 rounds", "found within 5 rounds"]
    heads += ["median round: ledger", "median round: either", "single rounds alone"]
    lines = [heads, ["---"] * len(heads)]
    for kind in KINDS:
        mine = [c for c in all_courses if c.bad and c.federation.scenario == kind]
        if mine:
            lines.append(
                [
                    kind,
                    str(len(mine)),
                    str(sum(c.by_ledger is not None and c.by_ledger <= 5 for c in mine)),
                    str(sum(c.found is not None and c.found <= 5 for c in mine)),
                    _median(c.by_ledger for c in mine),
                    _median(c.found for c in mine),
                    str(sum(c.by_verdict is not None and c.by_verdict <= 5 for c in mine)),
                ]
            )
    return _markdown(lines)


def honest_table(all_courses: list[Course]) -> str:
    """A row per size of honest clients: whom ledger and single rounds accuse."""
    heads = [
        "samples",
        "clients",
        "rounds",
        "convicted by the ledger",
        "contaminated in some round",
    ]
    heads += ["such rounds", "mean factor", "largest of a client"]
    lines = [heads, ["---"] * len(heads)]
    honest = [c for c in all_courses if not c.bad and c.federation.scenario == "honest"]
    for size in (*SAMPLES, None):
        mine = [c for c in honest if size in (None, SAMPLES[c.client % len(SAMPLES)])]
        if mine:
            means = [mean(c.factors) for c in mine if c.factors]
            lines.append(
                [
                    "all" if size is None else str(size),
                    str(len(mine)),
                    str(sum(c.rounds for c in mine)),
                    str(sum(c.by_ledger is not None for c in mine)),
                    str(sum(c.flagged > 0 for c in mine)),
                    str(sum(c.flagged for c in mine)),
                    f"{mean(means):.2f}",
                    f"{max(means):.2f}",
                ]
            )
    return _markdown(lines)


def persistent() -> str:
    """What would be convicted of the benchmark's honest clients that scored the same in every round."""
    known, parts = honest_scores(), []
    for name, scores in (("even", known.even), ("uneven", known.uneven)):
        pairs = list(zip(scores.scores, scores.clients, strict=True))
        hit = sum(n for s, n in pairs if _repeated(s))
        parts.append(f"{hit} of {sum(n for _, n in pairs)} of {name} cohorts")
    return " and ".join(parts)


def bound() -> str:
    """The same in a sentence."""
    stuck = "Were every honest client of the benchmark to score the same in every round of a year, "
    return f"{stuck}{persistent()} would be convicted."


def _repeated(score: float) -> bool:
    """Whether 50 rounds of this score convict."""
    evidence = 0.0
    for k in range(HISTORY.year):
        evidence = after(evidence, k, HISTORY, factor(score))
    return evidence >= HISTORY.limit


def _median(rounds: Iterator[int | None]) -> str:
    """The median, of which never is the largest."""
    found = median(r if r is not None else 10**6 for r in rounds)
    return "never" if found >= 10**5 else f"{found:g}"


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(all_courses: list[Course], given: argparse.Namespace) -> str:
    """What is printed: how it was made, both tables, and the standing bound."""
    facts = f"clair {__version__}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    bad_honest = [c for c in all_courses if not c.bad and c.federation.scenario != "honest"]
    beside = sum(c.by_ledger is not None for c in bad_honest)
    return "\n\n".join(
        [
            f"`python -m benchmarks.history --work DIR --seeds {given.seeds}`; {facts}.",
            found_table(all_courses),
            honest_table(all_courses),
            f"Beside attackers the ledger convicted {beside} of {len(bad_honest)} honest clients.",
            bound(),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="rounds are kept in DIR/rounds")
    add("--seeds", choices=SEEDS, default="reported")
    add("--rounds", type=int, default=ROUNDS, help="of honest federations")
    add("--bad-rounds", type=int, default=BAD_ROUNDS, help="of federations with attackers")
    add("--kept", action="store_true", help="take the rounds that are there, and train none")
    given = parser.parse_args()
    print(document(measured(given), given))


if __name__ == "__main__":
    main()
