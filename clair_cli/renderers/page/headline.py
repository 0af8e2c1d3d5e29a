"""The first screen: the verdict in a sentence, whom it covers, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clair_cli.reasons import RULES, plain
from clair_cli.renderers import history
from clair_cli.renderers.page.looks import LOOKS, Look, number, worst_first
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.text import apart, verdict_line
from clair_cli.renderers.words import as_high, few, many, span
from clair_cli.report import Reason, Report, Verdict, over_rounds


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, why, and the look of whom it is about."""

    do: str
    why: str
    look: Look


@dataclass(frozen=True, slots=True)
class Headline:
    """`look` is the worst one, by which the page is coloured."""

    look: Look
    sentence: str
    gate: str
    failed: bool
    coverage: str
    counts: tuple[tuple[Look, int], ...]
    facts: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    notes: tuple[tuple[str, str], ...]


def headline(report: Report) -> Headline:
    """That of one report, in which whom the rounds convict is contaminated."""
    report = replace(report, clients=over_rounds(report))
    counts = [(w, sum(LOOKS[c.verdict] is w for c in report.clients)) for w in LOOKS.values()]
    present = tuple((w, n) for w, n in counts if n)
    findings, total = report.population.findings, len(report.clients)
    return Headline(
        look=LOOKS[None] if report.status == "no_verdict" or not present else present[0][0],
        sentence=_sentence(report),
        gate=_gate(report),
        failed=report.exit_code == 1,
        coverage=f"{total} of {total} clients accounted for.{apart(report)}",
        counts=present,
        facts=_facts(report),
        steps=tuple(_steps(report)),
        notes=(
            *((r.code, safe_text(r.message)) for r in findings),
            *(("", line) for line in history.sentences(report, verbose=False)),
        ),
    )


def _of(report: Report, verdict: str, decided: bool | None = None) -> list[Verdict]:
    """Clients of a verdict, worst first; with `decided` only those that are accepted, or are not."""
    found = [c for c in report.clients if c.verdict == verdict]
    found = [c for c in found if decided in (None, c.accepted is not None)]
    return sorted(found, key=worst_first)


def _named(report: Report, verdict: str, decided: bool | None = None) -> list[str]:
    return [safe_text(c.client) for c in _of(report, verdict, decided)]


def _sentence(report: Report) -> str:
    if report.status == "no_verdict":
        return f"No verdict: {_why(report.population.findings)}."
    total = len(report.clients)
    bad, lost = _named(report, "contaminated"), _named(report, "broken")
    group, odd = _named(report, "minority"), _named(report, "suspicious")
    if bad:
        are = "is" if len(bad) == 1 else "are"
        return f"{len(bad)} of {total} clients {are} contaminated: {few(bad)}."
    if group:
        return f"{len(group)} of {total} clients stand apart from the majority: {few(group)}."
    if odd:
        are = "is" if len(odd) == 1 else "are"
        return f"No client is contaminated; {len(odd)} of {total} {are} suspicious: {few(odd)}."
    if lost:
        return f"{len(lost)} of {total} clients cannot be used; the others agree with each other."
    return f"All {total} clients agree with each other; none stands out."


def _why(findings: Sequence[Reason]) -> str:
    """The first clause of the last finding, which the notes have whole."""
    said = safe_text(findings[-1].message) if findings else "not identifiable"
    return said.partition("; ")[0].rstrip(".")


def _gate(report: Report) -> str:
    if report.status == "no_verdict":
        return f"No verdict, exit code {report.exit_code}"
    word, _, why = verdict_line(report).partition(": ")
    return f"{GATE.get(word, word)}: {why}"


def _facts(report: Report) -> tuple[tuple[str, str], ...]:
    modules, consensus = report.population.modules, report.population.consensus
    facts = [("folder", safe_text(str(report.inputs.get("root", ""))))]
    if since := report.inputs.get("since"):
        facts.append(("changes since", safe_text(str(since.get("root")))))
    if modules:
        facts.append(("compared", many(len(modules), "module")))
        facts.append(("shared rank", span(m.shared_rank for m in modules)))
    if consensus is not None:
        facts.append(("consensus", many(consensus.clients, "client")))
        if consensus.margin is not None:
            facts.append(("gap to the next client", f"{number(consensus.margin)} in score"))
    facts.append(("run", safe_text(str(report.run.get("started_at", "")))[:16].replace("T", " ")))
    return tuple(facts)


def _steps(report: Report) -> list[Step]:
    if report.status == "no_verdict":
        rules = [RULES[f.code] for f in report.population.findings[-1:] if f.code in RULES]
        why = " ".join(plain(rule.do) for rule in rules)
        return [
            Step("Do not average these adapters on the strength of this report.", why, LOOKS[None])
        ]
    refined = {c.client for c in report.refinement.clients} if report.refinement else set()
    steps = [
        Step(
            f"{do} {few(names)}.",
            f"{why}{_sure(_of(report, verdict, decided=False))}",
            LOOKS[verdict],
        )
        for verdict, do, why in ADVICE
        if (names := _named(report, verdict, decided=False))
    ]
    if accepted := [n for v, *_ in ADVICE for n in _named(report, v, decided=True)]:
        text = "Somebody has decided that; the card of each says why, and until when."
        steps.append(Step(f"Take {few(accepted)} as accepted.", text, LOOKS["benign"]))
    benign = len(_named(report, "benign"))
    if refined:
        text = f"Use the {many(len(refined), 'refined adapter')} in the output folder."
        why = "Test each on its own data first; the old ones are untouched."
        steps.append(Step(text, why, LOOKS["benign"]))
    elif benign:
        text = (
            f"Average the {many(benign, 'benign client')}, or refine: clair refine DIR --out OUT."
        )
        why = "Benign means like the others, and no more than that."
        steps.append(Step(text, why, LOOKS["benign"]))
    return steps


def _sure(clients: Sequence[Verdict]) -> str:
    """How rare the least rare of their scores is, as a sentence with a blank before it."""
    found = [c.rarity for c in clients if c.rarity is not None]
    if not found:
        return ""
    said = as_high(max(found, key=lambda r: r.as_high / max(r.of, 1)))
    whom = " as the least odd of them" if len(clients) > 1 else ""
    return f" {said[0].upper()}{said[1:]}{whom}."


GATE = {"FAIL": "The gate fails", "PASS": "The gate passes"}
ADVICE = (
    ("contaminated", "Leave out", "Ask what they were trained on before they take part again."),
    (
        "broken",
        "Ask for another upload from",
        "The card of each says what is wrong with its files.",
    ),
    ("minority", "Ask about", "They differ in the same way: another domain, or a plot."),
    ("suspicious", "Look at", "Odd, but too little to accuse; compare with the next round."),
)
"""Verdict, what to do about whom, and why."""
