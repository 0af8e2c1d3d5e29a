"""How much of what a client has for itself is taken away: chosen from the adapters, never from data.

    Delta~_k = (1 + g) M + F (Delta_k - M)

M is the mean of the benign clients. F keeps the share 1 - `inside` of what lies in the directions
that count as the client's own, 1 - `outside` of all else. Shrinking deviations also weakens the
function the updates carry, which the gain g makes up for. The constants are measured in
docs/method.md, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array
from clair_cli.settings import Settings

OUTSIDE = {"shared": 0.5, "independent": 0.3, "mixed": 0.3, "none": 0.5}
"""Share taken of the weak directions, by how the clients' A began; none: plain matrices."""
SAME_TASK, SLOPE, MOST = 0.37, 6.0, 0.5
"""Above this common share clients that began alike look like one task; different ones reach 0.38."""
KINDS = 0.1
"""Spread of the deviations' cosines from which on they come in kinds: 0.07 to 0.10 for equal tasks."""
BOOST, MOST_GAIN = 0.5, 0.25
DIFFERING = 0.5
"""Share of their energy in which clients differ from which on averaging weakens the function as
measured: 0.43 to 0.9 in trained cohorts. Below it the gain falls with it: who differs in little
loses little."""
COST = 8.0
"""What a lost difference costs against the same amount of noise kept: losses rise faster for it."""
AGREED = (0.34, 0.38)
"""What adapters from halves of a client's data have in common: up to 0.345 of the whole one's energy
where 8 samples do not teach the task, from 0.377 on where 16 to 48 do. Then the errors lie in directions
that cost nothing, and averaging takes differences away."""
HALVES = 0.85
"""Noise of an adapter trained on all data over that of its replicates on parts of it."""


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """F and g. `own` directions are per client, `left` and `right` shared per module, `client` for all.

    `rank` directions count as inside; "auto" takes as many as carry the deviations.
    With `by_direction` the replicates' noise weighs every direction by itself.
    """

    side: Literal["own", "left", "right", "client"] = "left"
    rank: int | Literal["auto"] = "auto"
    inside: float = 0.0
    outside: float = 1.0
    boost: float = 0.0
    by_direction: bool = False
    noise_like: float | None = None
    """`outside` of modules in which few directions stand out and the rest has the spectrum of noise."""

    def gain(self, removed: float) -> float:
        """g, from the share of the deviations' amplitude that is removed."""
        return min(self.boost * removed, MOST_GAIN)


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What the adapters say about the benign clients' deviations from their mean.

    `modes` (K, K - 1) are the orthonormal client modes, `spectrum` their shares of energy,
    descending; `gap` is the largest ratio of two that follow each other, with `gap_after` modes before
    it. `noise` is the share of the deviations that is estimation error, None where no replicates tell;
    `agreed` is what two replicates of a client have in common, over its adapter's energy.
    """

    clients: int
    initialisation: str
    common_share: float
    spread: float
    modes: Array
    spectrum: Array
    gap: float
    gap_after: int
    noise: float | None = None
    agreed: float | None = None

    @property
    def lack(self) -> float:
        """Of data, by what replicates agree on: from 0, they teach the tasks, to 1, they do not."""
        if self.agreed is None or self.initialisation == "none":
            return 1.0
        least, enough = AGREED
        return min(max((enough - self.agreed) / (enough - least), 0.0), 1.0)


def look(
    inner: Array,
    rows: Array | None,
    members: np.ndarray,
    noise: float | None = None,
    agreed: float | None = None,
) -> Knowledge:
    """Knowledge from tables (modules, K, K) of `members` (K,); see `ModuleStack` for the tables.

    `rows` is None for plain matrices, which have no initialisation.
    """
    whole = agreement.levelled(inner[:, members][:, :, members])
    count = len(whole[0])
    centre = np.eye(count) - 1 / count
    kernel = centre @ whole.sum(axis=0) @ centre
    energy = kernel.diagonal().clip(min=0)
    length = np.sqrt(energy[:, None] * energy)
    cosines = np.divide(kernel, length, out=np.zeros_like(kernel), where=length > 0)
    values, modes = np.linalg.eigh(kernel)
    values, modes = values[::-1][: count - 1].clip(min=0), modes[:, ::-1][:, : count - 1]
    total = float(values.sum())
    shares = values / total if total > 0 else values
    gap, after = _gap(shares)
    return Knowledge(
        clients=count,
        initialisation="none" if rows is None else agreement.initialisation(rows, members)[0],
        common_share=agreement.common_share(whole),
        spread=float(cosines[np.triu_indices(count, 1)].std()) if count > 2 else 0.0,
        modes=modes,
        spectrum=shares,
        gap=gap,
        gap_after=after,
        noise=noise,
        agreed=agreed,
    )


def _gap(shares: Array) -> tuple[float, int]:
    """The largest ratio of neighbours in the first half of a descending spectrum, and where."""
    head = shares[: len(shares) // 2 + 1]
    head = head[head > 1e-9]
    if len(head) < 2:
        return 1.0, 0
    ratios = head[:-1] / head[1:]
    return float(ratios.max()), int(ratios.argmax()) + 1


def choose(settings: Settings, known: Knowledge, on_path: bool = False) -> Shrinkage:
    """The shrinkage that the settings ask for, or with "auto" the one the adapters justify.

    Between strengths that a client's own data choose from, `on_path`, every direction moves.
    """
    plain = known.initialisation == "none"  # linear, or whole weights: averages lose no function
    usual: Literal["left", "own"] = "left" if plain else "own"
    side = usual if settings.side == "auto" else settings.side
    rank = settings.subspace_rank
    boost = 0.0 if plain else BOOST * min((1 - known.common_share) / DIFFERING, 1.0)
    if known.clients < 2:
        return Shrinkage(side, rank, 0.0, 0.0)
    if settings.strength != "auto" and on_path and (settings.side, rank) == ("auto", "auto"):
        return Shrinkage(side, 0, settings.strength, settings.strength, boost)
    if settings.strength != "auto":
        return Shrinkage(side, rank, 0.0, settings.strength)
    if known.noise is not None:
        taken = (1 - kept_share(known.noise)) * known.lack
        return Shrinkage(side, rank, taken, taken, boost, settings.side != "auto")
    inside, outside = 0.0, OUTSIDE[known.initialisation]
    if plain:
        return Shrinkage(side, rank, inside, outside, noise_like=1.0)
    if known.initialisation == "shared" and known.spread < KINDS:
        inside = min(max(SLOPE * (known.common_share - SAME_TASK), 0.0), MOST)
    return Shrinkage(side, rank, inside, outside, boost)


def client_mix(how: Shrinkage, known: Knowledge, members: np.ndarray) -> Array:
    """F (K, K) of the side "client" over all clients that get something; `members` (K,) define the mean.

    The modes before the gap are inside, or the `rank` first; with `by_direction` noise spreads evenly
    over the modes. Clients that give nothing keep the share 1 - `outside`.
    """
    count = len(known.spectrum)
    inside = known.gap_after if how.rank == "auto" else min(how.rank, count)
    factors = np.where(np.arange(count) < inside, 1 - how.inside, 1 - how.outside)
    if how.by_direction and known.noise is not None:
        noise = known.noise * known.lack / max(count, 1)
        ratios = np.divide(noise, known.spectrum.clip(min=1e-12))
        factors = np.array([kept_share(x) for x in ratios])
    mix = np.eye(len(members)) * (1 - how.outside)
    mix[np.ix_(members, members)] += (known.modes * (factors - (1 - how.outside))) @ known.modes.T
    return mix


def kept_share(noise: float) -> float:
    """Of a deviation with this share of noise, how much to keep.

    COST s / (COST s + noise) with s = 1 - noise minimises COST (1 - w)^2 s + w^2 noise over w: a Wiener
    filter that minds what is lost.
    """
    noise = min(max(noise, 0.0), 1.0)
    return COST * (1 - noise) / (COST * (1 - noise) + noise)


def expected(kept: float, known: Knowledge) -> Mapping[str, Any]:
    """What keeping the share `kept` of the deviations does to the error, in units of their energy.

    Noise falls by (1 - w^2)(1 - 1/n); differences that are real cost COST (1 - w)^2. `break_even` is
    the share of noise above which the first outweighs the second. `gain` needs replicates.
    """
    averaged = (1 - kept**2) * (1 - 1 / max(known.clients, 1))
    lost = COST * (1 - kept) ** 2
    gain = None if known.noise is None else known.noise * averaged - (1 - known.noise) * lost
    return {
        "gain_if_noise": averaged,
        "loss_if_difference": lost,
        "break_even": lost / (lost + averaged) if lost + averaged > 0 else 0.0,
        "noise": known.noise,
        "gain": gain,
    }
