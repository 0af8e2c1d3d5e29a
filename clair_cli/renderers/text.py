"""The report for a person: a table of verdicts, what was done, and the bottom line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO

from rich.console import Console
from rich.text import Text

from clair_cli.errors import NoAdapter
from clair_cli.renderers import baseline, history
from clair_cli.renderers.clients import NARROWEST, ORDER, STYLES, table
from clair_cli.renderers.refinement import sentences
from clair_cli.renderers.safe import safe_text, visible
from clair_cli.renderers.words import aligned, folded, many, percent, span
from clair_cli.report import VERDICTS, Reason, Report, Verdict, failing, gate

FEW = 3
"""Entries without an adapter that are noted by name."""
WORST = 3
"""Modules of a client that are listed with -vv."""
SAID = {"minority": "in a minority"}
"""Verdicts that the bottom line calls by another name."""


def render(report: Report, color: bool = False, verbose: int = 0, width: int | None = None) -> str:
    """The report as lines of text.

    `verbose` 1 gives every client a line of its own, 2 adds every client's worst modules and a table
    of all modules. `width` is that of a terminal: lines are broken to fit it. Without it no line is
    broken, and what is said of a client is on one line.
    """
    room = width if width is not None and width >= NARROWEST else None
    lines = _prose([headline(report)], room)
    if report.clients:
        lines += [Text(), *table(report, verbose > 0, room)]
    if notes := _notes(report, verbose > 0):
        lines += [Text(), *_prose(notes, room)]
    if verbose > 1:
        lines += map(Text, _modules(report))
    if since := baseline.sentences(report, verbose > 0):
        lines += [Text(), *_prose(since, room)]
    if over := history.sentences(report, verbose > 0):
        lines += [Text(), *_prose(over, room)]
    lines.append(Text())
    if done := sentences(report, verbose > 0):
        lines += [*_prose(done, room), Text()]
    lines += _prose([accounted(report)], room)
    lines += _prose([verdict_line(report)], room, _style(report))
    return _drawn(lines, color)


def verdict_line(report: Report) -> str:
    """The one line that says it all: for stderr when stdout is for a machine."""
    if report.status == "no_verdict":
        findings = report.population.findings
        return f"NO VERDICT: {safe_text(findings[-1].message) if findings else 'not identifiable'}"
    fail_on = str(report.settings.get("fail_on", "contaminated"))
    new = "" if report.baseline is None else "new "
    if report.exit_code == 1:
        since = ", new since the baseline" if new else ""
        return f"FAIL: {', '.join(counted(failing(report, fail_on)))}{since}"
    if fail_on == "never":
        return _done(report)
    at = "of" if "," in fail_on else "at or above"
    return f"PASS: no {new}client {at} --fail-on {fail_on}{_decided(report, fail_on)}"


def _decided(report: Report, fail_on: str) -> str:
    """How many the gate is about that somebody has decided about."""
    included = report.settings.get("include") or ()
    about = [c for c in gate(report, fail_on) if c.client not in included]
    benign, accepted = len(gate(report, fail_on)) - len(about), sum(map(_is_accepted, about))
    rest = len(about) - accepted
    but = f" but {benign} that --include counts as benign" if benign else ""
    but += f"{',' if but else ' but'} {accepted} accepted" if accepted else ""
    return f"{but}, and {rest} known from the baseline" if rest else but


def _is_accepted(client: Verdict) -> bool:
    return client.accepted is not None


def _style(report: Report) -> str:
    return {1: "bold red", 3: STYLES["no verdict"]}.get(report.exit_code, "bold green")


def _drawn(lines: Sequence[Text], color: bool) -> str:
    out = StringIO()
    console = Console(
        file=out, force_terminal=color, color_system="standard" if color else None, width=10**6
    )
    for line in lines:
        if (plain := visible(line.plain)) != line.plain:
            line = Text(plain)
        console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
    return out.getvalue()


def _prose(said: Sequence[str] | Iterator[str], room: int | None, style: str = "") -> list[Text]:
    """Sentences, one a line, or broken into lines of `room` characters."""
    lines: list[str] = []
    for text in said:
        lines += folded(text, room) if room else [text]
    return [Text(line, style=style) for line in lines]


def headline(report: Report) -> str:
    """How much was compared, and of which group of the folder, where it was split."""
    group = report.inputs.get("group")
    return f"{safe_text(str(group))}: {_size(report)}" if group else _size(report)


def _size(report: Report) -> str:
    modules, environment = report.population.modules, report.run.get("environment", {})
    usable = len(report.clients) - report.counts["broken"]
    if not usable:
        entries = len(report.clients) + len(_empty(report))
        if not entries:
            return "no clients"
        return f"{many(entries, 'entry', 'entries')}, none readable"
    parts = [many(len(report.clients), "client")]
    if since := report.inputs.get("since"):
        parts.append(f"since {since.get('root')}")
    parts.append(many(len(modules), "module") if modules else f"{usable} usable")
    if modules:
        parts.append(f"shared rank {span(m.shared_rank for m in modules)}")
    if report.population.consensus and report.population.consensus.initialisation != "none":
        parts.append(f"{report.population.consensus.initialisation} initialisation")
    device = str(environment.get("device", "?"))
    parts += [] if device == "none" else [device]
    return safe_text(", ".join([*parts, f"{report.run.get('duration_s', 0):.1f} s"]))


def _empty(report: Report) -> list[Reason]:
    """The findings on entries of the folder that hold no adapter, one an entry."""
    return [r for r in report.population.findings if r.code == NoAdapter.code]


def _notes(report: Report, verbose: bool) -> list[str]:
    """The findings, but of many entries without an adapter only the first unless `verbose`."""
    empty, findings = _empty(report), list(report.population.findings)
    if len(empty) > FEW and not verbose:
        findings = [r for r in findings if r not in empty[1:]]
    notes = [safe_text(f"note: {r.code} {r.message}") for r in findings]
    if len(findings) < len(report.population.findings):
        notes.append(f"note: {NoAdapter.code} {len(empty) - 1} more like that, which -v names")
    return notes


def _modules(report: Report) -> list[str]:
    """Every client's worst modules, then all modules over the clients; nothing without a verdict."""
    if not report.population.modules:
        return []
    worst = [
        (c.client, m.name, f"{m.residual:.2f}", f"{m.norm:.4g}", f"{m.score:.1f}")
        for c in report.clients
        for m in sorted(c.modules, key=lambda m: -m.score)[:WORST]
    ]
    every = [
        (m.name, f"{m.shape[0]}x{m.shape[1]}", str(m.shared_rank), percent(m.explained))
        for m in report.population.modules
    ]
    head = ("client", "worst modules", "residual", "norm", "score")
    lines = ["", *aligned([head, *worst], right=(2, 3, 4))]
    return [*lines, "", *aligned([("module", "shape", "shared rank", "explained"), *every], (2, 3))]


def timings(report: Report) -> list[str]:
    """What the seconds of the run were spent on, the most first; nothing of a report without it."""
    spent = [(str(t["what"]), float(t["seconds"])) for t in report.run.get("timings") or ()]
    whole = sum(seconds for _, seconds in spent) or 1.0
    most = sorted(spent, key=lambda row: -row[1])
    rows = [(what, f"{seconds:.2f} s", percent(seconds / whole)) for what, seconds in most]
    return aligned(rows, right=(1, 2)) if rows else []


def accounted(report: Report) -> str:
    """How many clients there are, and of which verdict."""
    counts = report.counts
    total, said = counts["clients"], sum(counts[v] for v in ORDER)
    shown = [v for v in VERDICTS if v != "minority" or counts[v]]
    parts = [f"{counts[v]} {v}" for v in shown]
    if said < total:
        parts.append(f"{total - said} without a verdict")
    decided = sum(map(_is_accepted, report.clients))
    said_so = f"{', '.join(parts)}{f'; {decided} of them accepted' if decided else ''}"
    return f"{total} of {total} clients accounted for: {said_so}.{apart(report)}"


def apart(report: Report) -> str:
    """A sentence on entries that are no clients, with a blank before it; nothing without such."""
    empty = len(_empty(report))
    return f" {many(empty, 'entry', 'entries')} without an adapter." if empty else ""


def counted(clients: Sequence[Verdict]) -> list[str]:
    """How many there are of each verdict, worst last named: 39 contaminated, 158 broken."""
    count = Counter(c.verdict for c in clients)
    return [f"{count[v]} {SAID.get(v, v)}" for v in VERDICTS if count[v]]


def _done(report: Report) -> str:
    """The bottom line where nothing is gated: who was found, or left out."""
    refined = {c.client for c in report.refinement.clients} if report.refinement else set()
    found = [c for c in report.clients if c.verdict in ("contaminated", "broken")]
    found = [c for c in found if c.client not in refined]
    text = " and ".join(counted(found)) if found else "no contaminated"
    noun = "client" if len(found) == 1 or not found else "clients"
    left = " left out" if found and report.refinement else ""
    return f"done: {text} {noun}{left}; no gate set"
