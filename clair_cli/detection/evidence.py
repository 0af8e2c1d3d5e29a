"""One distance of every client: its value, its score, its code and the words for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from clair_cli.detection.agreement import Array


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One distance of every client: its value, its score, its code and the words for it.

    Evidence that is not `decisive` makes a client suspicious at most. `parts` are what joint
    evidence is made of; it carries the code of the part that says most. Against several groups values
    and scores are (B, K), and scores that are only bounded have `most` above them.
    """

    code: str
    values: Array
    scores: Array
    limit: tuple[float, float]
    words: Callable[[int], str]
    decisive: bool = True
    parts: tuple[Evidence, ...] = ()
    most: Array | None = None

    def code_of(self, k: int) -> str:
        """The code under which this speaks of client k."""
        return max(self.parts, key=lambda p: p.scores[k]).code if self.parts else self.code

    def said_by_a_part(self, k: int, limit: float) -> bool:
        """Whether one part of joint evidence says it alone."""
        return any(p.scores[k] >= limit for p in self.parts)

    @property
    def bound(self) -> float | None:
        """The limit that is finite, the upper one where both are."""
        finite = [x for x in self.limit if math.isfinite(x)]
        return finite[-1] if finite else None


def at_most(evidence: Evidence | None, bound: Array) -> Evidence | None:
    """The same evidence with no score above `bound` (K,)."""
    if evidence is None:
        return None
    most = None if evidence.most is None else np.minimum(evidence.most, bound)
    return replace(evidence, scores=np.minimum(evidence.scores, bound), most=most)


def single(evidence: Evidence) -> Evidence:
    """The evidence against one group, (1, K), as (K,)."""
    return replace(
        evidence,
        values=evidence.values[0],
        scores=evidence.scores[0],
        parts=tuple(map(single, evidence.parts)),
    )
