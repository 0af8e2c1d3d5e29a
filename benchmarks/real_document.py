"""What real.py writes: all tables in one document, and the picture. Pure functions of its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import real_pictures as pictures
from benchmarks import real_refine_tables as refined
from benchmarks import real_tables as tables
from benchmarks.real_cohorts import HELD_OUT, SET
from benchmarks.real_judges import Judged
from benchmarks.real_pictures import Curves, Scores

TITLES = {True: "Seeds that nothing was set on", False: "Seeds that things were set on"}


@dataclass(frozen=True, slots=True)
class Results:
    """`before`: what another clair says; `synthetic`: what is said of the synthetic cohorts.

    `peers`: cohort -> peer -> client -> score.
    """

    facts: str
    now: list[Judged]
    before: list[Judged]
    synthetic: list[Judged]
    peers: dict[str, dict[str, dict[str, float]]]
    refined: list[refined.Row]


def as_markdown(found: Results, picture: str) -> str:
    """Everything; `picture` is the name of its file."""
    parts = [head(found)]
    if found.refined:
        parts.append(f"## What is wanted of refinement\n\n{refined.targets(found.refined)}\n")
    parts.append(areas(found, picture))
    for held, title in TITLES.items():
        if these := [j for j in found.now if j.cohort.held_out == held]:
            parts.append(f"## {title}: verdicts\n\n{tables.verdict_tables(these)}\n")
        if rows := [r for r in found.refined if r.cohort.held_out == held]:
            parts.append(f"## {title}: refinement\n\n{refined.as_markdown(rows)}\n")
    return "\n".join(parts)


def head(found: Results) -> str:
    """What was measured, and how the figures compare with those wanted."""
    return f"""# Real models: {len(found.now)} cohorts

{found.facts}

Clients are LoRA adapters of one pretrained model of 656 k parameters, trained on real text: language
modelling on plays, news, messages and bank questions; spam or not; 8 banking intents. Cohorts of one
pool share clients.

Everything that was set was set on the pools of seeds {SET} to {SET + 5}. Nothing was set or tried on
those of seeds {HELD_OUT} to {HELD_OUT + 5}.

{(tables.__doc__ or "").partition(chr(10) * 2)[2].strip()}
An honest client is a minority that it is not, where its domain, classes and training length are those of
the majority.

## What is wanted

{tables.targets(found.now, beside(found))}
"""


def beside(found: Results) -> dict[str, list[Judged]]:
    """Further columns of what is wanted, by their title."""
    others = {
        "before, set on": [j for j in found.before if not j.cohort.held_out],
        "before, held out": [j for j in found.before if j.cohort.held_out],
        "synthetic": found.synthetic,
    }
    return {title: judged for title, judged in others.items() if judged}


def areas(found: Results, picture: str) -> str:
    """Area under the curves of the picture."""
    title, these = drawn(found)
    text = pictures.areas([j.cohort for j in these], curves(found, these))
    return f"""## Area under the ROC curve, {title.lower()}

Contaminated clients of a kind against the honest ones beside them, all cohorts together; without a
verdict clair's scores are 0. Multi-Krum is told how many are contaminated.

{text}

![ROC curves]({picture})
"""


def draw(found: Results, path: Path) -> None:
    """The picture."""
    title, these = drawn(found)
    pictures.draw([j.cohort for j in these], curves(found, these), title, path)


def drawn(found: Results) -> tuple[str, list[Judged]]:
    """The cohorts held out, or all where there are none."""
    held = [j for j in found.now if j.cohort.held_out]
    return TITLES[bool(held)], held or found.now


def curves(found: Results, these: list[Judged]) -> Curves:
    """Whose scores are compared."""
    names = {j.cohort.name for j in these}
    by: Curves = {"clair": scores_of(these)}
    if before := [j for j in found.before if j.cohort.name in names]:
        by["clair before"] = scores_of(before)
    for peer in dict.fromkeys(p for said in found.peers.values() for p in said):
        by[peer] = {c: said[peer] for c, said in found.peers.items() if c in names}
    return by


def scores_of(judged: list[Judged]) -> Scores:
    """Cohort -> client -> score, 0 without a verdict."""
    return {j.cohort.name: dict.fromkeys(j.scores, 0.0) if j.silent else j.scores for j in judged}
