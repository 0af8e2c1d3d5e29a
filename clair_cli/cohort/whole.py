"""Which full matrices can be compared, and which client has them otherwise or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from clair_cli.cohort.records import Adapter, natural_key
from clair_cli.report import Reason

Full = dict[str, tuple[int, ...]]
"""Name -> shape of a full matrix."""


def align_full(clients: list[Adapter]) -> tuple[Full, list[Adapter], list[Reason]]:
    """The full matrices that most clients have with one shape; the clients, each with a note on those
    of its own that are not compared; and remarks on who has them otherwise.
    """
    names = sorted({n for a in clients for n in a.full}, key=natural_key)
    found: Full = {}
    remarks: dict[str, list[str]] = {}
    lacking: dict[str, list[str]] = {a.client: [] for a in clients}
    for name in names:
        shapes = {a.client: a.shape_of(name) for a in clients}
        usual, votes = Counter(s for s in shapes.values() if s is not None).most_common(1)[0]
        common = 2 * votes > len(clients)
        if common:
            found[name] = usual
        odd = {c: s for c, s in shapes.items() if s != usual} if common else _without_none(shapes)
        for client, shape in odd.items():
            lacking[client].append(f"{name} ({_dimensions(shape)})")
        if odd:
            who = few([f"{c} ({_dimensions(s)})" for c, s in odd.items()])
            why = "compared without" if common else "not judged, being no majority's in one shape:"
            remarks.setdefault(f"{why} {who}", []).append(name)
    noted = [_noted(a, lacking[a.client]) for a in clients]
    return found, noted, [Reason("CLR304", f"{few(n)}: {t}") for t, n in remarks.items()]


def _without_none(
    shapes: Mapping[str, tuple[int, ...] | None],
) -> dict[str, tuple[int, ...] | None]:
    return {client: shape for client, shape in shapes.items() if shape is not None}


def _noted(adapter: Adapter, lacking: list[str]) -> Adapter:
    """With a note on the full matrices that are not compared in it."""
    if not lacking:
        return adapter
    note = Reason("CLR304", f"trained whole, but not compared here: {few(lacking)}")
    return replace(adapter, notes=(*adapter.notes, note))


def _dimensions(shape: tuple[int, ...] | None) -> str:
    """A shape in words."""
    return "has none" if shape is None else " x ".join(map(str, shape)) or "one number"


def few(names: list[str]) -> str:
    """The first five of the names, for a message."""
    return ", ".join(names[:5]) + " ..." * (len(names) > 5)
