"""A card per client: why, in plain words, its worst modules, what was done to it, its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clair_cli.reasons import RULES, plain
from clair_cli.refined import RefinedClient
from clair_cli.renderers.page.looks import Look, look, number, share, worst_first
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import as_high, decision, few
from clair_cli.report import Cause, Reason, Report, Verdict

WORST = 5
"""Modules that are listed."""
CAUSES = {
    "lacks": "most of what the others share is missing",
    "opposes": "what the others share is turned round",
    "adds": "something is added that the others do not have",
    "head": "the full matrices differ from the others'",
    "noisy": "much more error than usual: little data, or a large learning rate",
    "size": "an unusual size",
    "copy": "a copy of another client",
}


@dataclass(frozen=True, slots=True)
class Said:
    """One reason: its code, whether the page explains it, the sentence, and its number."""

    code: str
    explained: bool
    text: str
    number: str


@dataclass(frozen=True, slots=True)
class Code:
    """A reason code in plain words: what was seen, how to take it, what to do."""

    code: str
    title: str
    words: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class File:
    """One file that was read."""

    name: str
    size: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Card:
    """One client. `client` is its id as the report has it, and is never shown; `name` is."""

    client: str
    anchor: str
    name: str
    look: Look
    score: str
    limit: str
    stability: str
    order: tuple[int, float, float]
    first: str
    reasons: tuple[Said, ...]
    facts: tuple[tuple[str, str], ...]
    modules: tuple[tuple[str, str], ...]
    files: tuple[File, ...]


def cards(report: Report) -> tuple[Card, ...]:
    """Worst first."""
    done = report.refinement.clients if report.refinement else ()
    refined = {c.client: c for c in reversed(done)}
    listed = report.inputs.get("clients") or ()
    files = {str(entry.get("id")): entry.get("files") or () for entry in listed}
    found = sorted(report.clients, key=worst_first)
    return tuple(
        _card(k, c, refined.get(c.client), files.get(c.client, ())) for k, c in enumerate(found)
    )


def _card(place: int, client: Verdict, refined: RefinedClient | None, files: Any) -> Card:
    reasons = tuple(_said(r) for r in client.reasons)
    return Card(
        client=client.client,
        anchor=f"client-{place}",
        name=safe_text(client.client),
        look=look(client),
        score=number(client.score),
        limit=number(client.limit),
        stability=share(client.stability),
        order=(
            look(client).rank,
            -1.0 if client.score is None else round(client.score, 6),
            -1.0 if client.stability is None else round(client.stability, 6),
        ),
        first=_first(client, reasons),
        reasons=reasons,
        facts=tuple(_facts(client, refined)),
        modules=_worst(client),
        files=tuple(_file(f) for f in files),
    )


def _first(client: Verdict, reasons: tuple[Said, ...]) -> str:
    """What stands on the closed card."""
    if client.accepted is not None:
        return f"accepted: {safe_text(client.accepted.reason)}"
    return reasons[0].text if reasons else ""


def _said(reason: Reason) -> Said:
    value = number(reason.value, 2) if reason.value is not None else ""
    if value and reason.limit is not None:
        value += f", limit {number(reason.limit, 2)}"
    return Said(safe_text(reason.code), reason.code in RULES, safe_text(reason.message), value)


def codes(report: Report) -> tuple[Code, ...]:
    """Every code that the report names and clair knows, explained once."""
    said = {r.code for c in report.clients for r in c.reasons}
    said |= {f.code for f in report.population.findings}
    return tuple(
        Code(code, rule.title, (plain(rule.seen), plain(rule.means), plain(rule.do)))
        for code, rule in RULES.items()
        if code in said
    )


def _facts(client: Verdict, refined: RefinedClient | None) -> list[tuple[str, str]]:
    facts = []
    if client.accepted is not None:
        facts.append(("accepted", decision(client.accepted, str(client.verdict))))
    if client.stability is not None:
        text = f"the same without {share(client.stability)} of the others, one at a time"
        if client.depends_on:
            text += f"; would change without {few([safe_text(n) for n in client.depends_on])}"
        facts.append(("verdict holds", text))
    if client.rarity is not None:
        facts.append(("how rare", as_high(client.rarity)))
    if client.cause is not None:
        facts += _cause(client.cause)
    if client.rank is not None:
        facts.append(("largest rank", str(client.rank)))
    if refined is not None:
        facts += _refined(refined)
    return facts


def _cause(cause: Cause) -> list[tuple[str, str]]:
    said = [("what is odd", CAUSES[cause.kind])] if cause.kind else []
    parts = [f"{share(cause.content)} of what the others share"]
    parts.append(f"{number(cause.error)} times the usual error")
    parts.append(f"{number(cause.size, 2)} times the usual size")
    return [*said, ("it has", ", ".join(parts))]


def _refined(done: RefinedClient) -> list[tuple[str, str]]:
    if done.unchanged:
        return [("refined", f"written as it was, to {safe_text(done.path)}")]
    parts = [f"changed by {share(done.change)} of its norm"]
    if done.averaged_away is not None:
        parts.append(f"{share(done.averaged_away)} of its difference averaged away")
    parts.append(f"written at rank {done.rank} to {safe_text(done.path)}")
    return [("refined", ", ".join(parts))]


def _worst(client: Verdict) -> tuple[tuple[str, str], ...]:
    if client.verdict == "benign":
        return ()
    worst = sorted(client.modules, key=lambda m: -m.score)[:WORST]
    return tuple((safe_text(m.name), number(m.score)) for m in worst)


def _file(file: Mapping[str, Any]) -> File:
    size = file.get("size", 0)
    return File(
        safe_text(str(file.get("name", ""))),
        f"{size:,}".replace(",", " "),
        safe_text(str(file.get("sha256", ""))),
    )
