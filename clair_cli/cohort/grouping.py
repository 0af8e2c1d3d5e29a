"""A folder of strangers as the cohorts in it: clients of one base whose modules have the same shapes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clair_cli.cohort.alignment import base_name
from clair_cli.cohort.records import Adapter, Entries, natural_key
from clair_cli.settings import MIN_CLIENTS

By = Literal["base", "shapes"]
UNKNOWN = "unknown base"
"""The name of a group whose adapters do not say their base."""
Module = tuple[str, int, int]
"""Name, d_out, d_in."""
Shapes = frozenset[Module]
"""The modules of an adapter."""


@dataclass(frozen=True, slots=True)
class Group:
    """Clients that can be compared with each other, under a name that no other group has."""

    name: str
    entries: Entries


@dataclass(frozen=True, slots=True)
class Groups:
    """The cohorts of a folder, largest first, the clients that are comparable with too few others, and
    what could not be opened."""

    groups: tuple[Group, ...]
    apart: tuple[Adapter, ...]
    rest: Entries


def grouped(entries: Entries, by: By = "base", min_shared: float = 0.5) -> Groups:
    """Split the adapters by base model, unless `by` is "shapes", and then by the shapes of modules.

    A group grows from the most common set of modules: everyone joins who has at least `min_shared` of
    them, in the same shapes. Linear in clients, for as long as groups share no module.
    """
    bases: dict[str, list[Adapter]] = defaultdict(list)
    for adapter in sorted(entries.adapters, key=lambda a: natural_key(a.client)):
        bases[_base(adapter) if by == "base" else ""].append(adapter)
    found: list[tuple[str, list[Adapter]]] = []
    for base, adapters in bases.items():
        found += [(base or _usual_base(alike), alike) for alike in _alike(adapters, min_shared)]
    found.sort(key=lambda named: -len(named[1]))
    large = [(name, alike) for name, alike in found if len(alike) >= MIN_CLIENTS]
    names = _numbered([name for name, _ in large])
    groups = (Group(n, Entries(tuple(a))) for n, (_, a) in zip(names, large, strict=True))
    apart = [a for _, alike in found if len(alike) < MIN_CLIENTS for a in alike]
    apart.sort(key=lambda a: natural_key(a.client))
    return Groups(tuple(groups), tuple(apart), Entries((), entries.broken, entries.findings))


def _base(adapter: Adapter) -> str:
    return base_name(adapter.base) if adapter.base else UNKNOWN


def _usual_base(adapters: Sequence[Adapter]) -> str:
    return Counter(map(_base, adapters)).most_common(1)[0][0]


def _alike(adapters: Sequence[Adapter], min_shared: float) -> Iterator[list[Adapter]]:
    """Adapters with one set of modules, and those whose modules are enough like it; the most first."""
    having: dict[Shapes, list[Adapter]] = defaultdict(list)
    for adapter in adapters:
        having[frozenset((m, s.d_out, s.d_in) for m, s in adapter.updates.items())].append(adapter)
    holders: dict[Module, list[Shapes]] = defaultdict(list)
    for shapes in having:
        for module in shapes:
            holders[module].append(shapes)
    for seed in sorted(having, key=lambda shapes: (-len(having[shapes]), -len(shapes))):
        if seed in having:
            near = Counter(s for module in seed for s in holders[module] if s in having)
            joined = _joined(seed, [s for s, _ in near.most_common()], min_shared)
            yield [adapter for shapes in joined for adapter in having.pop(shapes)]


def _joined(seed: Shapes, near: Sequence[Shapes], min_shared: float) -> list[Shapes]:
    """The seed and those of `near` that leave enough modules to all, none of them in two shapes."""
    joined, shared = [seed], seed
    known = {name: (name, *shape) for name, *shape in seed}
    for shapes in near:
        if shapes == seed or len(shared & shapes) < min_shared * len(seed):
            continue
        if all(known.get(module[0], module) == module for module in shapes):
            joined.append(shapes)
            shared &= shapes
            known |= {module[0]: module for module in shapes}
    return joined


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, those that came before with a number: gpt2, gpt2 (2)."""
    found: list[str] = []
    for name in names:
        number = 1 + names[: len(found)].count(name)
        found.append(name if number == 1 else f"{name} ({number})")
    return found
