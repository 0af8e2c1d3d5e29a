"""Which full matrices can be compared, and which client has them otherwise or not at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clair_cli.cohort.records import WHOLE, Adapter, natural_key, once
from clair_cli.report import Reason

Full = dict[str, tuple[int, ...]]
"""Name -> shape of a full matrix."""
Shape = tuple[int, ...] | None
"""Of one client's, None where it has none."""


def align_full(clients: list[Adapter]) -> tuple[Full, list[Adapter], list[Reason]]:
    """The full matrices that most clients have with one shape; the clients, each with a note on those
    of its own that are not compared; and remarks on who has them otherwise. Among sketches only those
    are compared that a sketch keeps.
    """
    found: Full = {}
    odd: dict[str, Mapping[str, Shape]] = {}
    voters = once(clients)
    names = sorted({n for a in clients for n in a.full}, key=natural_key)
    large = [n for n in names if _too_large(n, clients)]
    for name in (n for n in names if n not in large):
        shapes = {a.client: a.shape_of(name) for a in clients}
        said = [s for a in voters if (s := shapes[a.client]) is not None]
        usual, votes = Counter(said).most_common(1)[0]
        if 2 * votes > len(voters):
            found[name] = usual
        left_out = usual if name in found else None
        odd[name] = {client: s for client, s in shapes.items() if s != left_out}
    remarks = _remarks(found, odd)
    if large:
        text = f"{few(large)}: trained whole, and larger than what a sketch keeps: not compared"
        remarks.append(Reason("CLR304", text))
    return found, [_noted(a, odd) for a in clients], remarks


def _too_large(name: str, clients: list[Adapter]) -> bool:
    """Whether the sketches among the clients cannot have it."""
    shapes = [s for a in clients if (s := a.shape_of(name)) is not None]
    return any(a.sketch is not None for a in clients) and max(map(math.prod, shapes)) > WHOLE


def _remarks(found: Full, odd: Mapping[str, Mapping[str, Shape]]) -> list[Reason]:
    """On the matrices that some clients have otherwise than most: one for all of the same clients."""
    groups: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    for name, shapes in odd.items():
        if shapes:
            groups.setdefault((name in found, tuple(shapes)), []).append(name)
    remarks = []
    for (common, who), names in groups.items():
        them = "it" if len(names) == 1 else "them"
        unlike = f"not judged, because most do not have {them} in one and the same shape; found in"
        text = "compared without" if common else unlike
        said = [f"{c} ({_dimensions(odd[names[0]][c])})" for c in who] if len(names) == 1 else who
        remarks.append(Reason("CLR304", f"{few(names)}: {text} {few(said)}"))
    return remarks


def _noted(adapter: Adapter, odd: Mapping[str, Mapping[str, Shape]]) -> Adapter:
    """With a note on the full matrices that are not compared in it."""
    own = {name: shapes for name, shapes in odd.items() if adapter.client in shapes}
    if not own:
        return adapter
    said = [f"{name} ({_dimensions(shapes[adapter.client])})" for name, shapes in own.items()]
    note = Reason("CLR304", f"trained whole, but not compared here: {few(said)}")
    return replace(adapter, notes=(*adapter.notes, note))


def _dimensions(shape: Shape) -> str:
    """A shape in words."""
    return "has none" if shape is None else " x ".join(map(str, shape)) or "one number"


def few(names: Sequence[str]) -> str:
    """The first five of the names, for a message."""
    return ", ".join(names[:5]) + " ..." * (len(names) > 5)
