"""The report for a person: a table of verdicts, one line each, and the bottom line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.text import Text

from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, Verdict, failing

STYLES = {
    "contaminated": "bold red",
    "broken": "bold magenta",
    "suspicious": "yellow",
    "benign": "green",
    "no verdict": "bold yellow",
}
ORDER = ("contaminated", "broken", "suspicious", "benign")
FEW = 3
"""Broken clients of one reason that are listed by name."""
NARROWEST = 24
"""Columns below which folding would help nobody."""
COLUMNS = ("verdict", "client", "score", "limit", "why")


def render(
    report: Report, color: bool = False, verbose: bool = False, width: int | None = None
) -> str:
    """The report as lines of text; `verbose` gives every benign client a line of its own.

    `width` is that of a terminal, to fold the last column; without it no line is broken.
    """
    lines = [_headline(report), Text()]
    lines += _table(report, verbose, width)
    lines += _notes(report)
    lines += [Text(), *_refinement(report), _accounted(report), _bottom(report)]
    out = StringIO()
    console = Console(
        file=out, force_terminal=color, color_system="standard" if color else None, width=10**6
    )
    for line in lines:
        console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
    return out.getvalue()


def verdict_line(report: Report) -> str:
    """The one line that says it all: for stderr when stdout is for a machine."""
    return _bottom(report).plain


def _headline(report: Report) -> Text:
    ranks = sorted({m.shared_rank for m in report.modules})
    environment = report.run.get("environment", {})
    parts = [_many(len(report.clients), "client"), _many(len(report.modules), "module")]
    if ranks:
        span = f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        parts.append(f"shared rank {span}")
    if report.consensus and report.consensus["initialisation"] != "none":
        parts.append(f"{report.consensus['initialisation']} initialisation")
    parts += [str(environment.get("device", "?")), f"{report.run.get('duration_s', 0):.1f} s"]
    return Text(safe_text(", ".join(parts)))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _table(report: Report, verbose: bool, width: int | None) -> list[Text]:
    shown = [c for c in report.clients if verbose or c.verdict != "benign"]
    shown.sort(key=lambda c: (ORDER.index(c.verdict) if c.verdict else 0, -(c.score or 0)))
    rows = [_row(client) for client in shown]
    if not verbose:
        rows = _alike(rows)
        rows += _benign([c for c in report.clients if c.verdict == "benign"])
    widths = [max(len(r[i]) for r in [COLUMNS, *rows]) for i in range(4)]
    room = width - sum(widths) - 2 - 4 * 3 if width else None
    folded = [part for row in [COLUMNS, *rows] for part in _folded(row, room)]
    return [_line(row, widths, STYLES.get(row[0])) for row in folded]


def _folded(row: tuple[str, ...], room: int | None) -> list[tuple[str, ...]]:
    """The row with its last cell broken into lines of `room` characters, if there is room at all."""
    parts = wrap(row[4], room) if room is not None and room >= NARROWEST else [row[4]]
    first, *more = parts or [""]
    return [(*row[:4], first), *(("", "", "", "", part) for part in more)]


def _row(client: Verdict) -> tuple[str, ...]:
    score = "-" if client.score is None else f"{client.score:.1f}"
    limit = "-" if client.limit is None else f"{client.limit:.1f}"
    why = "; ".join(safe_text(r.message) for r in client.reasons)
    if client.depends_on and client.stability is not None and client.stability < 0.5:
        names = ", ".join(map(safe_text, client.depends_on))
        why += f"; would not hold without any one of {names}"
    return (client.verdict or "no verdict", safe_text(client.client), score, limit, why)


def _alike(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Many broken clients with the same reason take one row; -v gives each its own."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for verdict, client, *rest in rows:
        key = (verdict, *rest) if verdict == "broken" else (verdict, *rest, client)
        groups.setdefault(key, []).append(client)
    found: list[tuple[str, ...]] = []
    for (verdict, score, limit, why, *_), who in groups.items():
        few = who if len(who) <= FEW else [f"{who[0]} and {len(who) - 1} more"]
        found += [(verdict, client, score, limit, why) for client in few]
    return found


def _benign(clients: list[Verdict]) -> list[tuple[str, ...]]:
    if not clients:
        return []
    scores = [c.score for c in clients if c.score is not None]
    span = f"{min(scores):.1f} - {max(scores):.1f}" if scores else "-"
    notes: dict[str, list[str]] = {}
    for client in clients:
        for reason in client.reasons:
            notes.setdefault(safe_text(reason.message), []).append(safe_text(client.client))
    named = [
        ("", who[0] if len(who) == 1 else f"{len(who)} of them", "", "", note)
        for note, who in notes.items()
    ]
    return [("benign", _many(len(clients), "client"), span, "", ""), *named]


def _line(row: tuple[str, ...], widths: list[int], style: str | None) -> Text:
    cells = [
        cell.rjust(w) if i in (2, 3) else cell.ljust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=False))
    ]
    line = Text("  ")
    line.append(cells[0], style=style or "")
    line.append("   " + "   ".join([*cells[1:], row[4]]))
    line.rstrip()
    return line


def _notes(report: Report) -> list[Text]:
    notes = [Text(f"note: {safe_text(f'{r.code} {r.message}')}") for r in report.findings]
    return [Text(), *notes] if notes else []


def _refinement(report: Report) -> list[Text]:
    done = report.refinement
    if not done:
        return []
    names = {c["id"] for c in done["clients"]}
    path = report.settings.get("path") or []
    said = f"refined {_many(len(names), 'client')}: "
    if path:
        listed = ", ".join(safe_text(p) if isinstance(p, str) else f"{p:.6g}" for p in path)
        said += f"a folder for each of the strengths {listed}; choose with clair select"
    else:
        said += (
            f"strength {done['strength']:.2g}{_inside(done)}, subspace rank "
            f"{_span(done['subspace_ranks'])}, {done['averaged_away']:.0%} of the benign clients' "
            "deviations averaged away"
        )
    if "knowledge" in done:
        said += f" (knowing {safe_text(str(done['knowledge']))})"
    lost = max((c["truncation_error"] for c in done["clients"]), default=0.0)
    written = f"written at the ranks asked for; relative truncation error at most {lost:.2g}"
    if done.get("max_lora_rank"):
        written += f"; serve with --max-lora-rank {done['max_lora_rank']}"
    lines = [said, written]
    lines += [f"note: {safe_text(str(w))}" for w in done.get("warnings", [])]
    if same := sum(bool(c.get("unchanged")) for c in done["clients"]):
        lines.append(f"{same} of {len(done['clients'])} written as they were, byte for byte")
    renamed = [c for c in done["clients"] if c["id"] != c["path"].rpartition("/")[2]]
    lines += [f"{safe_text(c['id'])} is in {safe_text(c['path'])}/" for c in renamed]
    left = [
        safe_text(c.client)
        for c in report.clients
        if c.verdict == "suspicious" and c.client not in names
    ]
    if left:
        lines.append(f"not refined, because suspicious: {', '.join(left)}")
    return [*map(Text, lines), Text()]


def _inside(done: Mapping[str, Any]) -> str:
    """What a strength leaves to be said: how much of it reaches the kept directions, and the gain."""
    parts = []
    if done.get("inside"):
        parts.append(f"{done['inside']:.2g} in the kept directions")
    if done.get("gain"):
        parts.append(f"mean times {1 + done['gain']:.2f}")
    return f" ({', '.join(parts)})" if parts else ""


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values)) or [0]
    return f"{found[0]}-{found[-1]}" if len(found) > 1 else f"{found[0]}"


def _accounted(report: Report) -> Text:
    counts = report.counts
    said = sum(counts[v] for v in ORDER)
    parts = [f"{counts[v]} {v}" for v in ("benign", "suspicious", "contaminated", "broken")]
    if said < counts["clients"]:
        parts.append(f"{counts['clients'] - said} without a verdict")
    total = counts["clients"]
    return Text(f"{total} of {total} clients accounted for: {', '.join(parts)}.")


def _bottom(report: Report) -> Text:
    if report.status == "no_verdict":
        why = safe_text(report.findings[-1].message) if report.findings else "not identifiable"
        return Text(f"NO VERDICT: {why}", style=STYLES["no verdict"])
    fail_on = str(report.settings.get("fail_on", "contaminated"))
    if report.exit_code == 1:
        found = _many(len(failing(report, fail_on)), "client")
        return Text(f"FAIL: {found} at or above --fail-on {fail_on}", style="bold red")
    if fail_on == "never":
        return Text("PASS: --fail-on never", style="bold green")
    return Text(f"PASS: no client at or above --fail-on {fail_on}", style="bold green")
