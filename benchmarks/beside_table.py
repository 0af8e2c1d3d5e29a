"""The table of benchmarks.beside: what each costs, how often clair's cost that is, and whom it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.beside_commands import CLAIR, PEERS
from benchmarks.processes import TICK, Run

CLEAR = 1.5
"""Of its start-up alone: from here on a peer does something else, too."""


def rows(
    ran: Mapping[str, Sequence[Run]],
    starts: Mapping[str, Sequence[Run]],
    named: Mapping[str, Sequence[str] | None],
    bad: Sequence[str],
) -> list[dict[str, Any]]:
    """Per peer: medians of what it cost, how often clair's cost that is, and whom it names.

    `ran`, `starts` and `named` are by the name of the peer: whole runs, start-ups alone, the clients.
    """
    found = []
    for name, peer in (CLAIR | PEERS).items():
        runs = ran.get(name)
        if not runs:
            continue
        start = starts[name]
        row: dict[str, Any] = {
            "peer": peer.name,
            "dense": peer.dense,
            "answer": peer.answer,
            "runs": len(runs),
            "ended": runs[-1].ended,
            "memory": max(r.memory for r in runs),
            "named": hits(named.get(name), bad),
        }
        for kind in ("wall", "cpu"):
            row[kind] = median(getattr(r, kind) for r in runs)
            row[f"start_{kind}"] = median(getattr(r, kind) for r in start)
            for command in CLAIR:
                ours = median(getattr(r, kind) for r in ran[command])
                begun = median(getattr(r, kind) for r in starts[command])
                row[f"{command}_{kind}"] = row[kind] / ours
                work = max(row[kind] - row[f"start_{kind}"], 0.0)
                row[f"{command}_{kind}_work"] = work / max(ours - begun, TICK)
        found.append(row)
    return found


def hits(named: Sequence[str] | None, bad: Sequence[str]) -> str:
    """How many of the contaminated clients are named, and how many others."""
    if named is None:
        return "names nobody"
    right = len(set(named) & set(bad))
    return f"{right} of {len(bad)}, {len(named) - right} honest"


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown. A peer that did not end has `>` before what it had cost by then.

    What is left of a peer that does little but start is noise, and not told.
    """
    head = (
        "peer",
        "dense",
        "wall, s",
        "processor, s",
        "of it start-up, s",
        "peak, GB",
        "times detect, wall",
        "times detect, processor",
        "times refine, processor",
        "times detect, processor, less start-up",
        "answer",
        "contaminated named",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found:
        over = ">" if row["ended"] else ""
        numbers = [row["wall"], row["cpu"]]
        ratios = [row["detect_wall"], row["detect_cpu"], row["refine_cpu"], row["detect_cpu_work"]]
        cells = [
            row["peer"],
            "yes" if row["dense"] else "no",
            *(f"{over}{x:.1f}" for x in numbers),
            f"{row['start_cpu']:.1f}",
            f"{over}{row['memory']:.2f}",
            *(f"{over}{x:.1f}" if x < 10 else f"{over}{x:.0f}" for x in ratios[:3]),
            f"{over}{ratios[3]:.0f}" if row["cpu"] > CLEAR * row["start_cpu"] else "-",
            row["ended"] or row["answer"],
            "-" if row["ended"] else row["named"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
