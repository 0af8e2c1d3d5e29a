"""How good verdicts are: measures of one cohort, and the tables of many. Pure functions.

The tables are made of a document: `rows`, one per cohort as `row` makes them, `judges` (the field, in
the order of a row's `field`), `facts` (how it was made) and `adaptersentry`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

MEASURES = ("AUROC", "exact", "recall", "false alarms")
"""Of one judge and one cohort, in the order of `judged`; a fifth, seconds, stands behind them."""
INITS = ("shared", "own")
TRAINED = ("clean", "controls", "five", "strong", "medium", "weak", "mixed", "thin")
"""Groups of trained clients as they are, with an honest majority."""
COMPARED = (*TRAINED, "planted strong", "planted medium", "planted weak", "copies", "majority")
"""Groups on which clair stands beside the field."""
CONVICTED = ("contaminated", "broken")
Numbers = list[float | None]
Row = dict[str, Any]
Measure = Callable[[list[Row]], float | None]


# Of one cohort


def auroc(scores: Sequence[float], bad: Sequence[bool]) -> float | None:
    """How often a contaminated client scores above an honest one; ties count half."""
    values, is_bad = np.asarray(scores, float), np.asarray(bad, bool)
    if is_bad.all() or not is_bad.any():
        return None
    high, low = values[is_bad][:, None], values[~is_bad]
    return float((high > low).mean() + (high == low).mean() / 2)


def share(marked: Sequence[bool], among: Sequence[bool] | None = None) -> float | None:
    """Which part is marked, of all or of `among`; None of nobody."""
    chosen = np.asarray(marked, bool)
    chosen = chosen if among is None else chosen[np.asarray(among, bool)]
    return float(chosen.mean()) if chosen.size else None


def f1(found: set[Any], true: set[Any]) -> float | None:
    """Harmonic mean of precision and recall; None where there is nothing to find."""
    return 2 * len(found & true) / (len(found) + len(true)) if true else None


def judged(scores: Sequence[float], flagged: Sequence[bool], bad: Sequence[bool]) -> Numbers:
    """AUROC, exact set (0 or 1), recall, false alarms per honest client."""
    exact = float(list(map(bool, flagged)) == list(map(bool, bad)))
    return [auroc(scores, bad), exact, share(flagged, bad), share(flagged, [not b for b in bad])]


def localisation(clients: Iterable[dict[str, Any]]) -> float | None:
    """F1 of (attacker, module): modules named against modules poisoned.

    None where nobody poisoned some modules and left others, or nobody has module scores.
    """
    scored = [c for c in clients if c["poisoned"] and c["modules"] is not None]
    found = {(c["client"], m) for c in scored for m in c["modules"]}
    return f1(found, {(c["client"], m) for c in scored for m in c["poisoned"]})


def copies_seen(clients: Sequence[dict[str, Any]]) -> bool | None:
    """Whether every copy, and who was copied, is suspicious or worse; None without copies."""
    if all(c["copied"] is None for c in clients):
        return None
    return all(c["verdict"] not in (None, "benign") for c in clients if c["bad"] or c["copied"])


def score(client: dict[str, Any]) -> float:
    """A client's score: 100 when broken, 0 without one."""
    return 100.0 if client["verdict"] == "broken" else client["score"] or 0.0


def row(result: dict[str, Any]) -> Row:
    """What is published of one cell.

    Of clair, broken is contaminated with score 100, and no verdict flags nobody. Where the attackers
    are copies, which convict nobody, suspicious counts as flagged, and who was copied does not count.
    A minority counts as flagged, but for who is the only contaminated client of its kind.
    """
    clients = result["clients"]
    copies = copies_seen(clients)
    worst = CONVICTED if copies is None else ("suspicious", *CONVICTED)
    kept = [k for k, c in enumerate(clients) if not c["copied"]]
    bad = [clients[k]["bad"] for k in kept]
    kinds = Counter(c["kind"] for c in clients if c["bad"])
    flagged = [
        c["verdict"] in worst
        or (c["verdict"] == "minority" and (not c["bad"] or kinds[c["kind"]] > 1))
        for c in (clients[k] for k in kept)
    ]
    own = [score(clients[k]) for k in kept], flagged
    codes = {code for c in clients for code in c["codes"]} | set(result["findings"])
    names = ("pool", "init", "kind", "samples", "group", "what", "attack", "status", "findings")
    return {
        **{name: result[name] for name in names},
        "clair": [*judged(*own, bad), result["seconds"]],
        "localisation": localisation(clients),
        "copies": copies,
        "named": bool(codes & {"CLR208", "CLR303"}),
        "clients": [
            [kind, int(c["bad"]), c["verdict"], c["score"], " ".join(c["codes"])]
            for c in clients
            for kind in ["copied" if c["copied"] else c["kind"]]
        ],
        "field": [said and _peer(said, kept, bad) for said in result["field"]],
    }


def _peer(said: dict[str, Any], kept: list[int], bad: list[bool]) -> Numbers:
    """The measures and seconds of one rule."""
    scores, flagged = ([said[name][k] for k in kept] for name in ("scores", "flagged"))
    return [*judged(scores, flagged, bad), said["seconds"]]


# Of many


def mean(values: Iterable[float | None]) -> float | None:
    """Of what is not None; None of nothing."""
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else None


def median(values: Iterable[float | None]) -> float | None:
    """Of what is not None; None of nothing."""
    numbers = [v for v in values if v is not None]
    return float(np.median(numbers)) if numbers else None


def mean_of(name: str) -> Measure:
    """Mean over cohorts of one of clair's measures."""
    number = MEASURES.index(name)
    return lambda rows: mean(r["clair"][number] for r in rows)


def honest_share(*verdicts: str) -> Measure:
    """Which part of all honest clients got one of the verdicts."""
    return lambda rows: share(
        [verdict in verdicts for r in rows for _, bad, verdict, *_ in r["clients"] if not bad]
    )


def false_convictions(rows: list[Row]) -> float | None:
    """How many honest clients are convicted."""
    said = [verdict for r in rows for _, bad, verdict, *_ in r["clients"] if not bad]
    return float(sum(v in CONVICTED for v in said)) if said else None


def of(rows: Iterable[Row], *groups: str) -> list[Row]:
    """The rows of some groups."""
    return [r for r in rows if r["group"] in groups]


def from_init(rows: Iterable[Row], init: str) -> list[Row]:
    """The rows of one init."""
    return [r for r in rows if r["init"] == init]


def compared_groups(doc: Row) -> list[str]:
    """Those of COMPARED that there are."""
    return [g for g in COMPARED if of(doc["rows"], g)]


def judgements(doc: Row, group: str) -> dict[str, Numbers]:
    """Judge -> its measures, means over the cohorts of a group that it can read."""
    rows = of(doc["rows"], group)
    said = {"clair": [r["clair"] for r in rows]}
    said |= {j["name"]: [r["field"][n] for r in rows] for n, j in enumerate(doc["judges"])}
    return {
        judge: [mean(j and j[n] for j in these) for n in range(len(MEASURES))]
        for judge, these in said.items()
    }


# Tables


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    parts = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(part) + " |" for part in parts)


def shown(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def as_markdown(doc: Row) -> str:
    """All tables."""
    rows, facts = doc["rows"], doc["facts"]
    silent = sum(r["status"] == "no_verdict" for r in rows)
    drawn_from = len({r["pool"] for r in rows})
    return f"""# Detection: {len(rows)} cohorts, {sum(len(r["clients"]) for r in rows)} clients

`{facts["command"]}`, on {facts["machine"]}; {facts["versions"]}.

Clients are drawn from {drawn_from} pools trained for text copying. The clients of a cohort share a base
model and train alone; all start from one A (shared init) or each from its own. *Exact*: the
contaminated clients and nobody else are flagged. *Recall*: contaminated clients flagged. *False
alarms*: honest clients flagged. clair flags who is contaminated or broken; without a verdict
({silent} cohorts) nobody is flagged.

## Targets

{targets(rows)}

## clair beside the field

Means over cohorts: AUROC / exact / recall / false alarms, or false alarms where nobody is contaminated.
Rules with * are told how many clients are contaminated. Copies: clair's suspicious count as flagged, and
who was copied does not count. `-`: cannot be run.

{beside(doc)}

{sentry_says(doc["adaptersentry"])}

## clair by kind of client

In clean, control, five, strong, medium, weak, mixed and thin cohorts.

{kinds(rows)}

## clair by planted attack

Shares of the attackers called contaminated (recall), and suspicious. Localisation: F1 of the modules
named in the report, for attackers that poison some modules only.

{attacks(rows)}

## Few clients, and colluding majorities

{borders(rows)}

## Highest scores of honest clients

{worst_honest(rows)}
"""


def targets(rows: list[Row]) -> str:
    """Each target: what is wanted, what was measured, whether it is met with both inits."""
    honest = of(rows, "clean", "controls")
    alike = [r for r in of(rows, "clean") if r["kind"] != "personal"]
    attacked = [r for r in rows if r["group"] not in ("clean", "controls", "few", "majority")]
    exact, recall, seen = (
        mean_of("exact"),
        mean_of("recall"),
        lambda r: mean(x["copies"] for x in r),
    )
    most, least = _at_most, _at_least
    lines = [
        most("clean and controls: contaminated", honest, honest_share(*CONVICTED), 0.01),
        most("clean and controls: suspicious", honest, honest_share("suspicious"), 0.05),
        most("clean, equal tasks or a family: convicted", alike, false_convictions, 0),
        most("beside a contaminated minority: convicted", attacked, honest_share(*CONVICTED), 0.01),
        least("strong, 8 and more clients: exact", of(rows, "strong"), exact, 0.98),
        least("planted strong: exact", of(rows, "planted strong"), exact, 0.98),
        least("medium: recall", of(rows, "medium"), recall, 0.9, 0.7),
        least("planted medium: recall", of(rows, "planted medium"), recall, 0.9, 0.7),
        least("copies: all at least suspicious", of(rows, "copies"), seen, 1),
        least("1 of 5 clients: recall", of(rows, "five"), recall, 1),
        least("mixed: exact", of(rows, "mixed"), exact, 0.95),
        least("thin majorities: exact", of(rows, "thin"), exact, 0.95),
    ]
    return table(["target", "cohorts", "wanted", "shared init", "own init", "all", "met"], lines)


def _at_most(name: str, rows: list[Row], measure: Measure, limit: float) -> list[str]:
    values = [measure(from_init(rows, init)) for init in INITS]
    met = all(v <= limit for v in values if v is not None)
    return _target(name, rows, f"<= {limit:g}", [*values, measure(rows)], met)


def _at_least(
    name: str, rows: list[Row], measure: Measure, shared: float, own: float | None = None
) -> list[str]:
    limits = (shared, shared if own is None else own)
    values = [measure(from_init(rows, init)) for init in INITS]
    met = all(v >= limit for v, limit in zip(values, limits, strict=True) if v is not None)
    wanted = f">= {shared:g}" + (f" shared, {own:g} own" if own is not None else "")
    return _target(name, rows, wanted, [*values, measure(rows)], met)


def _target(name: str, rows: list[Row], wanted: str, values: Numbers, met: bool) -> list[str]:
    said = ("yes" if met else "**no**") if rows else "-"
    return [name, str(len(rows)), wanted, *map(shown, values), said]


def beside(doc: Row) -> str:
    """clair and every peer, on every group."""
    groups = compared_groups(doc)
    said = {g: judgements(doc, g) for g in groups}
    clair = {"name": "clair", "code": "clair", "told": False}
    lines = []
    for n, judge in enumerate([clair, *doc["judges"]]):
        taken = (r["field"][n - 1] if n else r["clair"] for r in doc["rows"])
        name, seconds = judge["name"], median(t and t[-1] for t in taken)
        cells = [_four(said[g][name]) for g in groups]
        lines.append([name + " *" * judge["told"], judge["code"], *cells, shown(seconds)])
    return table(["judge", "code", *groups, "median s"], lines)


def _four(values: Numbers) -> str:
    """AUROC / exact / recall / false alarms, or the last alone."""
    area, exact, recall, alarms = values
    if recall is None:
        return shown(alarms)
    return " / ".join([*(shown(v, 2) for v in (area, exact, recall)), shown(alarms)])


def sentry_says(said: dict[str, Any] | None) -> str:
    """AdapterSentry's actions in a sentence."""
    if said is None:
        return "AdapterSentry was not run."
    parts = [
        f"{sum(said[who].values())} {who} clients: "
        + ", ".join(f"{n} {action}" for action, n in sorted(said[who].items()))
        for who in ("honest", "contaminated")
    ]
    return f"AdapterSentry judges each file alone. On {said['pool']}: {'; '.join(parts)}."


def kinds(rows: list[Row]) -> str:
    """Each kind of trained client, by init."""
    used = of(rows, *TRAINED)
    lines = []
    for kind in dict.fromkeys(c[0] for r in used for c in r["clients"]):
        for init in INITS:
            clients = [c for r in from_init(used, init) for c in r["clients"] if c[0] == kind]
            if not clients:
                continue
            middle = shown(median(c[3] for c in clients), 2)
            lines.append([kind, init, str(len(clients)), *_verdicts(clients), middle])
    head = ["kind", "init", "clients", "contaminated", "minority", "suspicious", "median score"]
    return table(head, lines)


def _verdicts(clients: list[list[Any]]) -> list[str]:
    """Which part is contaminated (or broken), which a minority, and which suspicious."""
    return [
        shown(share([c[2] in CONVICTED for c in clients])),
        shown(share([c[2] == "minority" for c in clients])),
        shown(share([c[2] == "suspicious" for c in clients])),
    ]


def attacks(rows: list[Row]) -> str:
    """Each planted attack."""
    lines = []
    for attack, group in dict.fromkeys((r["attack"], r["group"]) for r in rows if r["attack"]):
        these = [r for r in rows if r["attack"] == attack]
        by_init = [
            text
            for init in INITS
            for text in _verdicts([c for r in from_init(these, init) for c in r["clients"] if c[1]])
        ]
        where = shown(mean(r["localisation"] for r in these), 2)
        lines.append([attack, group.removeprefix("planted "), *by_init, where])
    head = [f"{what}, {init}" for init in INITS for what in ("recall", "suspicious")]
    return table(["attack", "strength", *head, "localisation F1"], lines)


def borders(rows: list[Row]) -> str:
    """What clair says where no verdict, or a wrong one, must be expected."""
    used = of(rows, "few", "majority")
    lines = []
    for what, init in dict.fromkeys((r["what"], r["init"]) for r in used):
        these = [r for r in from_init(used, init) if r["what"] == what]
        counts = Counter(c[2] or "none" for r in these for c in r["clients"])
        lines.append(
            [
                what,
                init,
                f"{sum(r['status'] == 'no_verdict' for r in these)} of {len(these)}",
                ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())),
                shown(mean_of("exact")(these), 2),
                shown(mean_of("recall")(these), 2),
                shown(honest_share(*CONVICTED)(these), 2),
                f"{sum(r['named'] for r in these)} of {len(these)}",
            ]
        )
    head = ["cohort", "init", "no verdict", "clients", "exact", "recall", "honest convicted"]
    return table([*head, "second cluster named (CLR208, CLR303)"], lines)


def worst_honest(rows: list[Row], count: int = 20) -> str:
    """The honest clients with the highest scores, majorities of colluders left out."""
    honest = [
        (points or 0, str(verdict), kind, codes, f"{r['group']}: {r['what']}", r["pool"])
        for r in rows
        if r["group"] != "majority"
        for kind, bad, verdict, points, codes in r["clients"]
        if not bad
    ]
    honest.sort(key=lambda h: -h[0])
    lines = [[shown(points, 2), *texts] for points, *texts in honest[:count]]
    return table(["score", "verdict", "kind", "reasons", "cohort", "pool"], lines)
