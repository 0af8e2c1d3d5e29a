"""The page of calibration.py. Pure functions of what it keeps."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.measures import table


@dataclass(frozen=True, slots=True)
class Row:
    """All cohorts with the constant `name` at `value`. Counts of clients: `changed` have another
    verdict, `honest` are honest and convicted, `found` contaminated and convicted. Counts of cohorts:
    `asked` ask for the constant, `exact` convict the contaminated and nobody else, `remarks` have other
    remarks, `inits` name the start rightly, `ranks` have another shared rank in some module.
    """

    name: str
    value: float
    asked: int
    changed: int
    honest: int
    found: int
    exact: int
    remarks: int
    inits: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Told:
    """One cohort: how many clients, how many of them contaminated, and whether there is no verdict."""

    clients: int
    contaminated: int
    kind: str
    init: str
    silent: bool


@dataclass(frozen=True, slots=True)
class Run:
    """What is kept: the cohorts, the rows with the delivered numbers first, those numbers by name, and
    how all of it was made."""

    cohorts: list[Told]
    rows: list[Row]
    delivered: dict[str, float]
    facts: str


def as_json(run: Run) -> str:
    """The run as it is kept."""
    return json.dumps(asdict(run)) + "\n"


def from_json(text: str) -> Run:
    """The run of `as_json`."""
    kept = json.loads(text)
    cohorts, rows = [Told(**c) for c in kept["cohorts"]], [Row(**r) for r in kept["rows"]]
    return Run(cohorts, rows, kept["delivered"], kept["facts"])


def document(run: Run) -> str:
    """Markdown: what the cohorts are, what the constants do in words, and the table."""
    first, *others = run.rows
    cohorts = run.cohorts
    clients = [c.clients for c in cohorts]
    bad = sum(c.contaminated for c in cohorts)
    silent = sum(c.silent for c in cohorts)
    return f"""# What each constant changes

{run.facts}

{made(cohorts)}

As delivered, clair convicts {first.found} of the {bad} contaminated clients.
Those in minorities are not counted.
It convicts {first.honest} of the {sum(clients) - bad} honest ones.
In {first.exact} of {len(cohorts)} cohorts the convicted are exactly the contaminated.
In {silent} clair gives no verdict, and so convicts nobody.

{summary(others)}

Each row has one constant at another value, and all others as delivered. *at* is half or double the
delivered value, or between it and the bound of what is allowed. *verdicts* counts the clients with
another verdict than usual, *other remarks* the cohorts with other remarks, *init named* those whose
start (one first A for all, or each its own) is named rightly, and *ranks* those with another shared rank
in some module. *asked* counts the cohorts in which clair looks at the constant.

{results(run)}
"""


def made(cohorts: Sequence[Told]) -> str:
    """How many cohorts, clients and contaminations there are."""
    sizes = [c.clients for c in cohorts]
    inits = Counter(c.init for c in cohorts)
    kinds = Counter(c.kind for c in cohorts)
    named = "; ".join(f"{kind} ({n})" for kind, n in sorted(kinds.items()))
    return f"""\
The {len(cohorts)} cohorts have {min(sizes)} to {max(sizes)} clients, {sum(sizes)} in all.
In {inits["shared"]} cohorts all clients began with the same A, in {inits["own"]} each with its own.
Clients are LoRA adapters of a small Transformer, trained to copy text as in pools.py.
Contaminated ones were trained on other data, or changed afterwards as in attacks.py.

{textwrap.fill(f"Kinds of cohort, and how many of each: {named}.", 105)}"""


def summary(found: Sequence[Row]) -> str:
    """Which constants matter here, and which do not."""
    names = dict.fromkeys(r.name for r in found)
    of = {name: [r for r in found if r.name == name] for name in names}
    moved = {n: max(r.changed for r in of[n]) for n in names}
    silent = [n for n in names if not any(r.asked for r in of[n])]
    still = [n for n in names if not moved[n] and n not in silent]
    strong = sorted((n for n in names if moved[n]), key=lambda n: -moved[n])
    lines = [
        ("Change verdicts, most first", [f"{n} ({moved[n]})" for n in strong]),
        ("Change no verdict", still),
        ("Never asked for in these cohorts", silent),
    ]
    return "\n".join(
        textwrap.fill(f"- {what}: {', '.join(which) or 'none'}.", 105, subsequent_indent="  ")
        for what, which in lines
    )


def results(run: Run) -> str:
    """The table; the first row is that of the delivered values."""
    first, *others = run.rows
    head = ["constant", "value", "at", "verdicts", "honest convicted", "found", "exact"]
    head += ["other remarks", "init named", "ranks", "asked"]
    body = [["as delivered", "", "", *_counts(first), ""]]
    for r in others:
        value = f"{run.delivered[r.name]:g}"
        body.append([r.name, value, f"{r.value:g}", *_counts(r), str(r.asked)])
    return table(head, body)


def _counts(r: Row) -> list[str]:
    shown = (r.changed, r.honest, r.found, r.exact, r.remarks, r.inits, r.ranks)
    return [str(n) for n in shown]
