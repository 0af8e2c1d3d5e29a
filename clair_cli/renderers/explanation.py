"""A verdict, or a reason code, in plain words: what was seen, how rare it is, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from clair_cli._version import __version__
from clair_cli.reasons import Rule, plain
from clair_cli.records import encode
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import aligned, as_high, decision, folded, percent
from clair_cli.report import Reason, Verdict
from clair_cli.results import Explained, Explanation, Rules

MEANING = {
    "benign": "It agrees with the majority, within what honest clients differ by.",
    "suspicious": "It is odd enough to look at, and too little to accuse.",
    "minority": "With others it is far from the majority in the same way: another domain, or a plot.",
    "contaminated": "It is far from the majority, and alone; or it adds with a few others what nobody "
    "else does.",
    "broken": "It cannot be used. Nothing is said of what is in it.",
    None: "Nobody has a verdict in this report; its last note says why.",
}
"""What each verdict means, as in the README."""
WORST = 5
"""Modules of a client that are listed."""
HEAD = {"schema_version": "1.0", "tool": {"name": "clair", "version": __version__}}


def as_text(found: Explained, width: int | None = None) -> str:
    """One part per client, with an empty line between two; lines of at most `width`."""
    if not found.clients:
        return "every client is benign\n"
    return "\n".join(_joined(_client(one), width) for one in found.clients)


def as_json(found: Explained) -> str:
    """One JSON document: per client its part of the report, and the rules of its codes."""
    clients = [
        encode(one.verdict) | {"meaning": MEANING[one.verdict.verdict]}
        | {"baseline": encode(one.compared), "rules": list(map(_rule, one.rules))}
        for one in found.clients
    ]  # fmt: skip
    return json.dumps(HEAD | {"clients": clients}, indent=1) + "\n"


def rule_as_text(rule: Rule, width: int | None = None) -> str:
    """The rule of one code."""
    stands = f"severity {rule.severity}; makes a client {' or '.join(rule.standings)}"
    if not {"broken", "contaminated", "suspicious", "minority"} & set(rule.standings):
        stands = f"severity {rule.severity}; {' or '.join(rule.standings)}"
    return _joined([f"{rule.code} {rule.title}", f"  {stands}", *_words(rule)], width)


def rule_as_json(rule: Rule) -> str:
    """One JSON document of one rule."""
    return json.dumps(HEAD | {"rules": [_rule(rule)]}, indent=1) + "\n"


def rules_as_text(found: Rules) -> str:
    """A line per code."""
    rows = [(r.code, r.severity, ", ".join(r.standings), r.title) for r in found.rules]
    lines = aligned([("code", "severity", "can be", "what"), *rows])
    return "".join(f"{line}\n" for line in lines)


def rules_as_json(found: Rules) -> str:
    """One JSON document of all rules."""
    return json.dumps(HEAD | {"rules": list(map(_rule, found.rules))}, indent=1) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = encode(rule)
    return found | {"severity": rule.severity, "family": rule.family}


def _client(one: Explanation) -> Iterator[str]:
    said = one.verdict
    points = "" if said.score is None or said.limit is None else (
        f", score {said.score:.1f}, where {said.limit:.1f} is the limit"
    )  # fmt: skip
    yield f"{safe_text(said.client)}: {said.verdict or 'no verdict'}{points}"
    yield f"  {MEANING[said.verdict]}"
    if said.accepted is not None:
        yield f"  accepted: {decision(said.accepted, str(said.verdict))}"
    if said.rarity is not None:
        yield f"  how rare: {as_high(said.rarity)}"
    if said.stability is not None:
        yield f"  how stable: {_stability(said)}"
    if one.compared is not None:
        was = f"was {one.compared.was}" if one.compared.was else "was not there"
        yield f"  against the baseline: {one.compared.state}; {was}"
    rules = {rule.code: rule for rule in one.rules}
    for reason in said.reasons:
        yield from ("", *_reason(reason, rules.pop(reason.code, None)))
    if worst := sorted((m for m in said.modules if m.score > 0), key=lambda m: -m.score)[:WORST]:
        rows = [(m.name, f"{m.score:.1f}", f"{m.residual:.2f}", f"{m.norm:.4g}") for m in worst]
        yield from (
            "",
            *aligned([("worst modules", "score", "residual", "norm"), *rows], (1, 2, 3)),
        )


def _stability(said: Verdict) -> str:
    if said.stability == 1:
        same = "the same without any one of the others"
        copies = said.cause is not None and said.cause.kind == "copy"
        return f"{same}, but without what it is like it is no copy" if copies else same
    share = percent(said.stability or 0)
    but = ", ".join(map(safe_text, said.depends_on))
    return f"the same without one other, for {share} of the others; not without {but}"


def _reason(reason: Reason, rule: Rule | None) -> Iterator[str]:
    """What it says here, and what its code says; a code that was explained above is not again."""
    title = f" {rule.title}" if rule is not None else ""
    yield f"{safe_text(reason.code)}{title}"
    yield f"  here: {safe_text(reason.message)}"
    yield from _words(rule) if rule is not None else ()


def _words(rule: Rule) -> Iterator[str]:
    parts = (("seen", rule.seen), ("means", rule.means), ("sure", rule.sure), ("to do", rule.do))
    yield from (f"  {name}: {plain(text)}" for name, text in parts if text)


def _joined(lines: Iterator[str] | list[str], width: int | None) -> str:
    """The lines, and on a terminal no longer than it is wide."""
    found: list[str] = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        fits = width is None or len(line) <= width or not line
        found += [line] if fits else folded(line.strip(), width or 0, indent)
    return "".join(f"{line}\n" for line in found)
