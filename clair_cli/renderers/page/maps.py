"""The map of the clients: who is near whom in two dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clair_cli.renderers.page.looks import LOOKS, Look, look, share, short, worst_first
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, Verdict

SIDE, MARGIN = 380, 34
NAMED = 14
"""Clients that have their name beside their mark."""
FAR = 10.0
"""No two clients are further apart than 2."""
LETTER, LINE = 6.2, 13.0


@dataclass(frozen=True, slots=True)
class Mark:
    """One client on the map, and where its name is, if it has one there."""

    name: str
    look: Look
    x: float
    y: float
    text: str = ""
    text_x: float = 0.0
    text_y: float = 0.0
    end: bool = False


@dataclass(frozen=True, slots=True)
class Map:
    """Marks on a square of `side`, what its distances are worth, and which looks are on it."""

    side: int
    marks: tuple[Mark, ...]
    stress: str
    kept: str
    rough: bool
    looks: tuple[Look, ...]


Box = tuple[float, float, float, float]


def client_map(report: Report) -> Map | None:
    """The map, None where the report has no places."""
    agrees = report.population.agreement
    if agrees is None or not agrees.places or len(agrees.places) != len(agrees.clients):
        return None
    by_name = {c.client: c for c in report.clients}
    clients = [by_name.get(n, Verdict(n, None)) for n in agrees.clients]
    places = _scaled(agrees.places)
    marks = tuple(_marked(list(zip(clients, places, strict=True))))
    return Map(
        SIDE,
        marks,
        f"{agrees.stress:.2f}",
        share(agrees.kept),
        agrees.stress > 0.2,
        tuple(w for w in LOOKS.values() if any(m.look is w for m in marks)),
    )


def _scaled(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Into the square, both axes by the same factor."""
    places = [(min(max(x, -FAR), FAR), min(max(y, -FAR), FAR)) for x, y in places]
    xs, ys = [p[0] for p in places], [p[1] for p in places]
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    width = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    unit = (SIDE - 2 * MARGIN) / width
    half = SIDE / 2
    return [
        (round(half + unit * (x - middle[0]), 1), round(half - unit * (y - middle[1]), 1))
        for x, y in places
    ]


def _marked(found: list[tuple[Verdict, tuple[float, float]]]) -> Iterator[Mark]:
    """Benign ones first, so that the others lie on top; names only where they hide nothing."""
    found = sorted(found, key=lambda f: worst_first(f[0]))
    odd = [f for f in found if f[0].verdict != "benign"]
    named = found if len(found) <= NAMED else odd[:NAMED]
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for _, (x, y) in found] if named else []
    words = {id(f): _word(f[0], f[1], taken) for f in named}
    for f in reversed(found):
        client, (x, y) = f
        text = words.get(id(f))
        mark = Mark(safe_text(client.client), look(client), x, y)
        yield mark if text is None else Mark(mark.name, mark.look, x, y, *text)


def _word(
    client: Verdict, at: tuple[float, float], taken: list[Box]
) -> tuple[str, float, float, bool] | None:
    """The name to the right or left of the mark, a line up or down where there is no room."""
    text, (x, y) = short(client.client), at
    width = LETTER * len(text)
    for down in (4.0, 4.0 - LINE, 4.0 + LINE, 4.0 - 2 * LINE, 4.0 + 2 * LINE):
        for end in (False, True):
            left = x - 9 - width if end else x + 9
            box = (left, y + down - 10, left + width, y + down + 3)
            if box[0] < 0 or box[2] > SIDE or any(_meet(box, other) for other in taken):
                continue
            taken.append(box)
            return text, round(x - 9 if end else x + 9, 1), round(y + down, 1), end
    return None


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
