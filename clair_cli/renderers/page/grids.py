"""Pictures of tables: module scores of all clients, and how much every two clients agree.

A grid is a PNG of levels. Where scripts are on, the page reads the levels out of that PNG again, draws
them on a canvas and says what is under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from clair_cli.renderers.page.looks import Look, kind_of, layer_of, look, number, short, worst_first
from clair_cli.renderers.page.png import Colour, data_uri, picture
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, Verdict

LEVELS = 96
"""Shades of the heat map, even in the logarithm of 1 + score."""
TOP = 100.0
NAMED = 40
"""Rows up to which each has its name beside it."""
HEADS = 40
"""Groups of columns up to which each has its name above it."""
INK = (29, 78, 137)
AGAINST = (176, 80, 20)
LEGEND = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
MATRIX_TOP = 480


@dataclass(frozen=True, slots=True)
class Label:
    """Text at the middle of some rows or columns: `at` and `size` in percent of the side."""

    at: float
    size: float
    text: str
    full: str
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture with its labels; `names`, `heads` and `values` are what a pointer is told.

    A byte of `rows` is the level of one cell, a place in `values`; `looks` are those of the rows.
    """

    key: str
    rows: tuple[bytes, ...]
    looks: tuple[Look, ...]
    uri: str
    width: int
    height: int
    labels: tuple[Label, ...]
    heads: tuple[Label, ...]
    slanted: bool
    names: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]


# --- module scores


def heat(report: Report) -> Grid | None:
    """Clients, worst first, by modules in the order of kind and layer; None without module scores."""
    clients = sorted((c for c in report.clients if c.modules), key=worst_first)
    if not clients:
        return None
    modules = _by_kind(dict.fromkeys(m.name for c in clients for m in c.modules))
    rows = []
    for client in clients:
        found = {m.name: level(m.score) for m in client.modules}
        rows.append(bytes(found.get(m, 0) for m in modules))
    palette = _ramp(INK, LEVELS)
    heads = _heads(modules)
    few = len(clients) <= NAMED
    height = 18 * len(clients) if few else min(max(2 * len(clients), 320), 640)
    return Grid(
        key="heat",
        rows=tuple(rows),
        looks=tuple(map(look, clients)),
        uri=data_uri(picture(rows, palette)),
        width=len(modules),
        height=max(height, 36),
        labels=_names(clients) if few else _runs(clients),
        heads=heads,
        slanted=any(6.5 * len(h.text) > 7 * h.size for h in heads),
        names=tuple(safe_text(c.client) for c in clients),
        columns=tuple(safe_text(m) for m in modules),
        values=tuple(number(_score(k)) for k in range(LEVELS)),
        legend=tuple((_swatch(palette[level(s)]), f"{s:g}") for s in LEGEND),
    )


def level(score: float) -> int:
    """The shade of a module's score in the heat map."""
    within = min(max(score, 0.0), TOP)
    return round((LEVELS - 1) * math.log1p(within) / math.log1p(TOP))


def _score(level: int) -> float:
    return math.expm1(level / (LEVELS - 1) * math.log1p(TOP))


def _by_kind(modules: Sequence[str] | dict[str, None]) -> list[str]:
    """Kinds in the order in which they come first, and the layers of each in order."""
    kinds: dict[str, int] = {}
    for module in modules:
        kinds.setdefault(kind_of(module), len(kinds))
    return sorted(modules, key=lambda m: (kinds[kind_of(m)], layer_of(m), m))


def _heads(modules: Sequence[str]) -> tuple[Label, ...]:
    groups = [(kind, len(list(same))) for kind, same in groupby(modules, kind_of)]
    found, before = [], 0
    for kind, count in groups:
        middle = 100 * (before + count / 2) / len(modules)
        size = round(100 * count / len(modules), 2)
        found.append(Label(round(middle, 2), size, short(kind), safe_text(kind)))
        before += count
    return tuple(found) if len(found) <= HEADS else ()


def _names(clients: Sequence[Verdict]) -> tuple[Label, ...]:
    one = 100 / len(clients)
    return tuple(
        Label(
            round(one * (k + 0.5), 2), round(one, 2), short(c.client), safe_text(c.client), look(c)
        )
        for k, c in enumerate(clients)
    )


def _runs(clients: Sequence[Verdict]) -> tuple[Label, ...]:
    """One label for neighbours of one verdict."""
    found, before = [], 0
    for which, same in groupby(clients, look):
        count = len(list(same))
        middle = round(100 * (before + count / 2) / len(clients), 2)
        size = round(100 * count / len(clients), 2)
        found.append(Label(middle, size, f"{count} {which.word}", f"{count} {which.word}", which))
        before += count
    return tuple(found)


# --- who agrees with whom


def matrix(report: Report) -> Grid | None:
    """Every two clients, those that are alike together; None where the report does not list them."""
    agrees = report.population.agreement
    if agrees is None or not agrees.percent:
        return None
    by_name = {c.client: c for c in report.clients}
    table = _square(agrees.percent, len(agrees.clients))
    order = [k for k in agrees.order if 0 <= k < len(agrees.clients)]
    clients = [by_name.get(agrees.clients[k], Verdict(agrees.clients[k], None)) for k in order]
    if not clients:
        return None
    rows = [bytes(100 + table[i][j] for j in order) for i in order]
    palette = (*_ramp(AGAINST, 101)[:0:-1], *_ramp(INK, 101))
    names = tuple(safe_text(c.client) for c in clients)
    few = len(clients) <= NAMED
    return Grid(
        key="matrix",
        rows=tuple(rows),
        looks=tuple(map(look, clients)),
        uri=data_uri(picture(rows, palette)),
        width=len(clients),
        height=min(max(18 * len(clients), 120), MATRIX_TOP if not few else 18 * NAMED),
        labels=_names(clients) if few else (),
        heads=(),
        slanted=False,
        names=names,
        columns=names,
        values=tuple(f"{v / 100:.2f}" for v in range(-100, 101)),
        legend=tuple(
            (_swatch(palette[100 + v]), f"{v / 100:g}") for v in (-50, -25, 0, 25, 50, 100)
        ),
    )


def _square(rows: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The whole table (K, K) of the triangle below its diagonal; what is missing or no percent is 0."""
    table = [[100 * (i == j) for j in range(count)] for i in range(count)]
    for i, row in enumerate(rows[: max(count - 1, 0)], start=1):
        for j, value in enumerate(row[:i]):
            table[i][j] = table[j][i] = min(max(value, -100), 100)
    return table


def _ramp(colour: tuple[int, int, int], count: int) -> tuple[Colour, ...]:
    """From nothing to the colour, by opacity, so that it is as good on black as on white."""
    steps = (k / (count - 1) for k in range(count))
    return tuple((*colour, round(255 * step**0.8)) for step in steps)


def _swatch(colour: Colour) -> str:
    return data_uri(picture([b"\0"], [colour]))
