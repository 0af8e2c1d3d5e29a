"""How rare a score is among honest clients: counted in a benchmark whose truth is known.

The table honest_scores.json lies in the package. `python -m benchmarks.rarity` makes it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from clair_cli.constants import Constants
from clair_cli.records import decode
from clair_cli.report import Rarity, Rate, Verdict

TABLE = Path(__file__).with_name("honest_scores.json")
DIGITS = 2
"""After the point of a score, in the table and where one is looked up."""
BESIDE_SCORES = {"opposing", "round_likeness", "sent_kept"}
"""Constants that say who is judged, what is remarked, or in which words, and change no score."""
RULE_OF_THREE = 3.0
"""Over n is the rate that 95 % are sure of where none of n did: Hanley and Lippman-Hand, JAMA 1983."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Distinct scores in ascending order, and how many honest clients had each."""

    scores: tuple[float, ...]
    clients: tuple[int, ...]

    def rate(self, score: float) -> Rate:
        """How many had at least this score."""
        above = list(accumulate(reversed(self.clients), initial=0))[::-1]
        return Rate(above[bisect_left(self.scores, round(score, DIGITS))], above[0])


@dataclass(frozen=True, slots=True)
class Table:
    """Scores of honest clients, of even cohorts and of uneven ones; `made_from` says of which.

    `constants` is the digest of the constants that the scores rest on.
    """

    made_from: tuple[Mapping[str, Any], ...]
    constants: str
    even: Scores
    uneven: Scores

    def rarity(self, score: float) -> Rarity:
        """How many honest clients scored as high."""
        even, uneven = self.even.rate(score), self.uneven.rate(score)
        as_high, of = even.as_high + uneven.as_high, even.of + uneven.of
        return Rarity(as_high, of, None if as_high else RULE_OF_THREE / of, even, uneven)


def counted(scores: Iterable[float]) -> Scores:
    """The scores of clients as a table holds them."""
    found = sorted(Counter(round(score, DIGITS) for score in scores).items())
    return Scores(tuple(s for s, _ in found), tuple(n for _, n in found))


def digest(constants: Constants) -> str:
    """Tells apart constants with which scores are not comparable."""
    said = {name: v for name, v in constants.as_dict().items() if name not in BESIDE_SCORES}
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def rated(
    verdicts: Iterable[Verdict], constants: Constants, copied: Collection[str] = ()
) -> tuple[Verdict, ...]:
    """The verdicts with how rare each score is, where the table rests on the same constants.

    Nothing is said of those who are suspicious as copies alone, `copied`: the table has no copies.
    """
    if table().constants != digest(constants):
        return tuple(verdicts)
    return tuple(
        v if v.score is None or v.client in copied else replace(v, rarity=table().rarity(v.score))
        for v in verdicts
    )


@cache
def table() -> Table:
    """The table of the package."""
    return decode(Table, json.loads(TABLE.read_text(encoding="utf-8")))
