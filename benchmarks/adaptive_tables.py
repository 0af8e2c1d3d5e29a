"""The summary and the tables of adaptive.py. Pure functions of its rows, one per cohort and attack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.adaptive_search import ATTACKERS, CLIENTS, FAMILIES, GRID, OPEN, TASKS, Row, Said
from examples.text_copy import evaluate

GOALS = ("unseen", "limit", "open")
LEGEND = f"""\
Three values in a cell are: unseen / under the limit / t = {OPEN:g}, where nobody hides. *score*: the
highest of the attackers. *poison*: what the attackers' changes add to a mean, relative to the norm of
the benign mean; *along*: its part along the way they pull together, unseen; *most*: the most poison
of the unseen t, which the attackers search for, since they know the weights that bound them; *worst*:
the most poison in clair's global adapter of all t tried, seen or not. *error*: distance to what is
written, or averaged,
without the attackers, relative to its norm; *change*: the same for the refined adapters, mean of the
benign clients. Honest clients in the attackers' place make an error too: it stands in the rows
`honest`, beside `left out`, the benign clients alone. *global* and *refined* are clair's, *average* is
the plain one over all clients. Loss in nats per token on held-out text of {TASKS} benign clients, with
the share of tokens guessed right; a client for which clair writes nothing goes on with its own adapter.
*lost*: the most honest clients not benign at any t tried; *no verdict*: where clair gave none. *obeyed*:
share of tokens as the attack wants them, where its goal is a trained one."""


def as_json(rows: list[Row], facts: str) -> str:
    """What is kept of a run."""
    return json.dumps({"facts": facts, "rows": rows}, default=asdict) + "\n"


def from_json(text: str) -> tuple[list[Row], str]:
    """The rows and the facts of `as_json`."""
    found = json.loads(text, object_hook=_restored)
    return found["rows"], found["facts"]


def _restored(row: Row) -> Row:
    """A mapping as it was, its values already being so."""
    for name, value in row.items():
        if name == "said":
            row[name] = Said(**value)
        elif name.endswith("quality") and value is not None:
            row[name] = evaluate.Quality(*value)
    return row


def document(rows: list[Row], facts: str) -> str:
    """Markdown: what it comes to in words, then two tables for each pool."""
    lines = ["# An attacker that knows clair", "", facts, ""]
    lines += [*(f"- {line}" for line in summary(rows)), "", LEGEND]
    for pool in dict.fromkeys(r["pool"] for r in rows):
        mine = [r for r in rows if r["pool"] == pool]
        lines += ["", f"## {pool}", "", *updates_table(mine), "", *text_table(mine)]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row]) -> Iterator[str]:
    """The worst of everything, in words."""
    found = [r for r in rows if r["attack"]]
    unseen = [r for r in found if r["unseen"]]
    starts = {(r["pool"], r["m"]): r for r in rows if not r["attack"]}
    count = len(found)
    yield (
        f"{count} searches: {len(FAMILIES)} attacks by m = {', '.join(map(str, ATTACKERS))} of "
        f"{CLIENTS} clients, {len({r['pool'] for r in rows})} pools, t up to {GRID[-1]:g}, "
        f"{median(r['tried'] for r in found):g} rounds judged per search (median)."
    )
    yield (
        "Whoever is unseen is averaged like everybody, so clair only bounds t: the largest unseen t is "
        f"{median(r['unseen']['t'] for r in unseen):.2f} in the median, {OPEN:g} or more in "
        f"{sum(r['unseen']['t'] >= OPEN for r in unseen)} of {count} searches, none in "
        f"{count - len(unseen)}. {_more_than_average(unseen)}"
    )
    yield " ".join(_poison(m, [r for r in unseen if r["m"] == m]) for m in ATTACKERS)
    out = {
        goal: sum(bool(r[goal]) and "benign" not in r[goal]["said"].verdicts for r in found)
        for goal in GOALS
    }
    kept = max(found, key=lambda r: r["open"]["poison"] or 0.0)
    yield (
        "clair averages benign clients only: every attacker is left out just under the limit in "
        f"{out['limit']} of {count} searches, at t = {OPEN:g} in {out['open']}, where the most poison "
        f"that stays is {kept['open']['poison'] or 0:.0%} ({_where(kept)}). {_given_up(found)}"
    )
    yield " ".join(
        _loss(name, key, unseen, starts)
        for name, key in (("global adapter", "quality"), ("refined adapters", "refined quality"))
    )
    yield " ".join(
        _reached(family.name, these, starts)
        for family in FAMILIES
        if family.kind and (these := [r for r in unseen if r["attack"] == family.name])
    )
    yield f"{_lost(found)} {_denied(found)}"


def _poison(m: int, these: list[Row]) -> str:
    """Of m attackers, unseen and where nobody hides."""
    if not these:
        return f"m = {m} is never unseen."
    worst = max(these, key=lambda r: r["most"]["poison"])
    plain = [r["open"]["average poison"] for r in these]
    return (
        f"m = {m}, unseen: poison in the global adapter at most {worst['most']['poison']:.0%} "
        f"({_where(worst)}), median {median(r['most']['poison'] for r in these):.0%}; in the plain "
        f"average at t = {OPEN:g} at most {max(plain):.0%}, median {median(plain):.0%}."
    )


def _more_than_average(unseen: list[Row]) -> str:
    """Where clair does worse than no defence."""
    more = [r for r in unseen if r["unseen"]["poison"] > 1.01 * r["unseen"]["average poison"]]
    if not more:
        return (
            "Nowhere does its global adapter hold more poison than the plain average at the same t."
        )
    worst = max(more, key=lambda r: r["unseen"]["poison"] / r["unseen"]["average poison"])
    lost = worst["unseen"]["said"].honest.count(False)
    return (
        f"In {len(more)} its global adapter holds more poison than the plain average at the same t, "
        f"because honest clients are left out: {worst['unseen']['poison']:.0%} instead of "
        f"{worst['unseen']['average poison']:.0%} ({_where(worst)}, {lost} lost)."
    )


def _given_up(found: list[Row]) -> str:
    """Whether giving up some attackers lets the others do more."""
    worse = [
        r for r in found if r["worst"]["poison"] > 1.01 * ((r["unseen"] or {}).get("poison") or 0.0)
    ]
    if not worse:
        return "No t tried, seen or not, puts more poison there than the largest unseen one."
    top = max(worse, key=lambda r: r["worst"]["poison"])
    free = top["worst"]["said"].verdicts.count("benign")
    return (
        f"Another t than the largest unseen puts more poison there in {len(worse)} searches, "
        f"{top['worst']['poison']:.0%} at most ({_where(top)}, t = {top['worst']['t']:.2f}, {free} of "
        f"{top['m']} attackers unseen)."
    )


def _loss(name: str, key: str, unseen: list[Row], starts: dict[tuple[str, int], Row]) -> str:
    """Of one kind of adapter at its worst."""

    def start(row: Row) -> float:
        quality: evaluate.Quality = starts[row["pool"], row["m"]]["honest"][key]
        return quality.loss

    worst = max(unseen, key=lambda r: r["unseen"][key].loss - start(r))
    there, hidden = (worst[goal]["average quality"].loss for goal in ("open", "unseen"))
    return (
        f"Held-out loss, {name}, unseen: at worst {worst['unseen'][key].loss:.3f} where honest clients "
        f"in the attackers' place give {start(worst):.3f} ({_where(worst)}; the plain average at the "
        f"same t: {hidden:.3f}, at t = {OPEN:g}: {there:.3f})."
    )


def _reached(name: str, these: list[Row], starts: dict[tuple[str, int], Row]) -> str:
    """How far a trained target is."""
    worst = max(these, key=lambda r: r["unseen"]["obeyed"])
    start = starts[worst["pool"], worst["m"]]["obeyed"][name]
    plain = max(r["open"]["average obeyed"] for r in these)
    return (
        f"`{name}`, unseen: the global adapter obeys in at most {worst['unseen']['obeyed']:.0%} of the "
        f"tokens ({_where(worst)}; without attackers {start['without']:.0%}, a contaminated adapter "
        f"itself {start['itself']:.0%}), the plain average at t = {OPEN:g} in {plain:.0%}."
    )


def _lost(found: list[Row]) -> str:
    """Honest clients that an attack drives out."""
    lost = [r for r in found if r["lost"][0]]
    line = f"Honest clients not benign any more at some t tried: in {len(lost)} of {len(found)} searches"
    if lost:
        most = max(lost, key=lambda r: r["lost"][0])
        clients, t = most["lost"]
        line += f", {clients} of {CLIENTS - most['m']} at most ({_where(most)}, t = {t:.2f})"
    return line + "."


def _denied(found: list[Row]) -> str:
    """Rounds in which an attack stops clair from saying anything."""
    denied = [r for r in found if r["denied"]]
    line = f"No verdict at some t tried, hence nothing written: in {len(denied)}"
    if denied:
        least = min(denied, key=lambda r: (r["m"], r["denied"][0]))
        line += (
            f", by {least['m']} attackers or more ({_where(least)}, t = {least['denied'][0]:.2f})"
        )
    return line + "."


def _where(row: Row) -> str:
    return f"{row['attack']}, m = {row['m']}, {row['pool']}"


def updates_table(mine: list[Row]) -> list[str]:
    """The search, and what it does to updates."""
    columns = {
        "t": ("t", _number, ("unseen", "limit")),
        "score": ("score", _short, GOALS),
        "global: poison": ("poison", _percent, GOALS),
        "along": ("along", _percent, ("unseen",)),
        "average: poison": ("average poison", _percent, GOALS),
        "global: error": ("error", _percent, ("unseen", "limit")),
        "average: error": ("average error", _percent, GOALS),
        "refined: change": ("refined", _percent, ("unseen", "limit")),
    }
    body = []
    for r in (r for r in mine if r["attack"]):
        worst = f"{_percent(r['worst']['poison'])} at {_number(r['worst']['t'])}"
        top = r["most"]
        most = f"{_percent(top['poison'])} at {_number(top['t'])}" if top else "-"
        lost = f"{r['lost'][0]} at {_number(r['lost'][1])}" if r["lost"][0] else ""
        silent = f"{_number(r['denied'][0])} to {_number(r['denied'][-1])}" if r["denied"] else ""
        cells = _cells(r, columns.values())
        body.append([r["attack"], str(r["m"]), *cells, most, worst, lost, silent])
    return table(["attack", "m", *columns, "most", "worst", "lost", "no verdict"], body)


def text_table(mine: list[Row]) -> list[str]:
    """What it does to held-out text."""
    columns = {
        "global": ("quality", _quality, ("unseen", "limit")),
        "refined": ("refined quality", _quality, ("unseen", "limit")),
        "average": ("average quality", _quality, GOALS),
        "obeyed: global": ("obeyed", _percent, ("unseen", "limit")),
        "obeyed: average": ("average obeyed", _percent, GOALS),
    }
    body = []
    for r in mine:
        if r["attack"]:
            body.append([r["attack"], str(r["m"]), *_cells(r, columns.values())])
            continue
        alone, honest = r["without"], r["honest"]
        bare = [_quality(alone[k]) for k in ("quality", "refined quality")]
        body.append(["left out", str(r["m"]), *bare, "", "", ""])
        cells = [_quality(honest[k]) for k in ("quality", "refined quality", "average quality")]
        error = f"error {_percent(honest['error'])}, change {_percent(honest['refined'])}"
        body.append([f"honest ({error})", str(r["m"]), *cells, "", ""])
    return table(["attack", "m", *columns], body)


def _cells(
    row: Row, columns: Iterable[tuple[str, Callable[[Any], str], Iterable[str]]]
) -> list[str]:
    """One cell per column: the values of its goals; a dash where there is none."""
    cells = []
    for key, shown, goals in columns:
        values = [(row[goal] or {}).get(key) for goal in goals]
        some = any(v is not None for v in values)
        cells.append(" / ".join("-" if v is None else shown(v) for v in values) if some else "")
    return cells


def _number(t: float) -> str:
    return f">= {t:g}" if t == GRID[-1] else f"{t:.2f}"


def _short(score: float) -> str:
    return f"{score:.1f}"


def _percent(share: float) -> str:
    return f"{share + 0.0:.0%}"


def _quality(quality: evaluate.Quality) -> str:
    return f"{quality.loss:.3f} ({quality.accuracy:.0%})"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
