"""How much of what a client has for itself is taken away: chosen from the adapters, never from data.

    Delta~_k = (1 + g) M + F (Delta_k - M)

M is the mean of the benign clients. F keeps the share 1 - `inside` of what lies in the directions
that count as the client's own, 1 - `outside` of all else. Shrinking deviations also weakens the
function the updates carry, which the gain g makes up for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from clair_cli.detection import agreement
from clair_cli.detection.agreement import Array, Mask
from clair_cli.refined import Expected
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration
from clair_cli.refinement.uneven import Standing
from clair_cli.report import InitialisationName
from clair_cli.settings import Settings, Tasks

DEFAULTS = Settings()


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
    most_gain: float = REFINEMENT.most_gain
    cost: float = REFINEMENT.difference_cost
    """What a lost difference costs against as much noise that is kept."""
    by_direction: bool = False
    noise_like: float | None = None
    """`outside` of modules in which few directions stand out and the rest has the spectrum of noise."""
    tasks: Tasks = "related"
    """What the clients' tasks were taken for."""
    per_client: bool = False
    """Clients with more error than usual keep less, each by its own."""

    def gain(self, removed: float) -> float:
        """g, from the share of the deviations' amplitude that is removed."""
        return min(self.boost * removed, self.most_gain)


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What the adapters say about the benign clients' deviations from their mean.

    `modes` (K, K - 1) are the orthonormal client modes, `spectrum` their shares of energy,
    descending; `gap` is the largest ratio of two that follow each other, with `gap_after` modes before
    it. `noise` is the share of the deviations that is estimation error, None where no replicates tell;
    `agreed` is what two replicates of a client have in common, over its adapter's energy. `coherence` is
    that of `Standing`, `overlap` the median overlap of two clients' row spaces, `own_labels` the share
    of clients whose head says that they have labels of their own.
    """

    clients: int
    initialisation: InitialisationName
    common_share: float
    spread: float
    modes: Array
    spectrum: Array
    gap: float
    gap_after: int
    noise: float | None = None
    agreed: float | None = None
    numbers: RefinementCalibration = REFINEMENT
    coherence: float = 0.0
    overlap: float = 0.0
    own_labels: float = 0.0

    def one_task(self, told: float = 0.0) -> float:
        """How far what is common looks like one task, from 0 to 1; `told` lowers what is needed."""
        n = self.numbers
        if self.initialisation == "none":
            return 0.0
        if self.initialisation == "shared":
            beyond = n.one_task_slope * (self.common_share - n.one_task + told)
        else:
            common = (self.common_share - self.overlap) / max(1 - self.overlap, 1e-9)
            beyond = n.own_one_task_slope * (common - n.own_one_task + told)
        return min(max(beyond, 0.0), 1.0)

    @property
    def guess(self) -> Literal["same", "related", "own"]:
        """What the clients' tasks look like, from the adapters alone."""
        n = self.numbers
        if self.own_labels >= n.labels_differ or self.coherence >= n.kinds_apart:
            return "own"
        alike = self.coherence < n.task_kinds and self.one_task() >= n.most_inside
        return "same" if alike else "related"

    @property
    def lack(self) -> float:
        """Of data, by what replicates agree on: from 0, they teach the tasks, to 1, they do not."""
        if self.agreed is None or self.initialisation == "none":
            return 1.0
        least, enough = self.numbers.replicates_lack, self.numbers.replicates_enough
        return min(max((enough - self.agreed) / (enough - least), 0.0), 1.0)


def look(
    inner: Array,
    rows: Array | None,
    givers: Mask,
    settings: Settings = DEFAULTS,
    noise: tuple[float, float | None] | None = None,
    found: Standing | None = None,
    own_labels: float = 0.0,
) -> Knowledge:
    """Knowledge from tables (modules, K, K) of `givers` (K,); see `ModuleStack` for the tables.

    `rows` is None for plain matrices, which have no initialisation; `noise` is what replicates tell,
    as `Knowledge.noise` and `Knowledge.agreed`; `found` is the standing of the givers, each counted by
    its precision, and `own_labels` as in `Knowledge`.
    """
    whole = agreement.levelled(inner[:, givers][:, :, givers])
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
    gap, after = _gap(shares, settings.refinement.gap_floor)
    began: InitialisationName = "none"
    overlap = 0.0
    if rows is not None:
        began, overlap = agreement.initialisation(rows, givers, settings.detection)
    share, agreed = noise or (None, None)
    return Knowledge(
        clients=count,
        initialisation=began,
        common_share=agreement.common_share(whole) if found is None else found.common,
        spread=float(cosines[np.triu_indices(count, 1)].std()) if count > 2 else 0.0,
        modes=modes,
        spectrum=shares,
        gap=gap,
        gap_after=after,
        noise=share,
        agreed=agreed,
        numbers=settings.refinement,
        coherence=0.0 if found is None else found.coherence,
        overlap=overlap,
        own_labels=own_labels,
    )


def _gap(shares: Array, floor: float) -> tuple[float, int]:
    """The largest ratio of neighbours in the first half of a descending spectrum, and where."""
    head = shares[: len(shares) // 2 + 1]
    head = head[head > floor]
    if len(head) < 2:
        return 1.0, 0
    ratios = head[:-1] / head[1:]
    return float(ratios.max()), int(ratios.argmax()) + 1


def choose(settings: Settings, known: Knowledge, on_path: bool = False) -> Shrinkage:
    """The shrinkage that the settings ask for, or with "auto" the one the adapters justify.

    Between strengths that a client's own data choose from, `on_path`, every direction moves.
    """
    numbers, rank, asked = settings.refinement, settings.subspace_rank, settings.strength
    plain = known.initialisation == "none"  # linear, or whole weights: averages lose no function
    usual: Literal["left", "own"] = "left" if plain else "own"
    how = Shrinkage(
        usual if settings.side == "auto" else settings.side,
        rank,
        most_gain=numbers.most_gain,
        cost=numbers.difference_cost,
    )
    boost = 0.0
    if not plain:  # who differs in little loses little
        boost = numbers.boost * min((1 - known.common_share) / numbers.differing, 1.0)
    if known.clients < 2:
        return replace(how, inside=0.0, outside=0.0)
    if asked != "auto" and on_path and (settings.side, rank) == ("auto", "auto"):
        return replace(how, rank=0, inside=asked, outside=asked, boost=boost)
    if asked != "auto":
        return replace(how, outside=asked)
    how = replace(how, per_client=True)
    if known.noise is not None:
        taken = (1 - kept_share(known.noise, numbers.difference_cost)) * known.lack
        by_direction = settings.side != "auto"
        return replace(how, inside=taken, outside=taken, boost=boost, by_direction=by_direction)
    return _by_tasks(how, settings, known, boost)


def _by_tasks(how: Shrinkage, settings: Settings, known: Knowledge, boost: float) -> Shrinkage:
    """What is taken where all clients do one task, related ones, or each its own."""
    numbers = settings.refinement
    tasks = known.guess if settings.tasks == "auto" else settings.tasks
    how = replace(how, tasks=tasks)
    if tasks == "own":
        return replace(how, inside=0.0, outside=0.0)
    if known.initialisation == "none":
        if tasks == "same":
            return replace(how, inside=1.0, outside=1.0)
        return replace(how, outside=numbers.weak_plain, noise_like=1.0)
    alike = known.one_task(numbers.told_same if settings.tasks == "same" else 0.0)
    if tasks == "related":
        alike = min(alike, numbers.most_inside) if known.coherence < numbers.task_kinds else 0.0
    outside = max(numbers.weak(known.initialisation), alike)
    # the more clients look like one task, the less function their mean has lost
    return replace(how, inside=alike, outside=outside, boost=boost * (1 - alike))


def client_mix(how: Shrinkage, known: Knowledge, givers: Mask) -> Array:
    """F (K, K) of the side "client" over all clients that get something; `givers` (K,) define the mean.

    The modes before the gap are inside, or the `rank` first; with `by_direction` noise spreads evenly
    over the modes. Clients that give nothing keep the share 1 - `outside`.
    """
    count = len(known.spectrum)
    inside = known.gap_after if how.rank == "auto" else min(how.rank, count)
    factors = np.where(np.arange(count) < inside, 1 - how.inside, 1 - how.outside)
    if how.by_direction and known.noise is not None:
        noise = known.noise * known.lack / max(count, 1)
        ratios = np.divide(noise, known.spectrum.clip(min=1e-12))
        factors = np.array([kept_share(x, how.cost) for x in ratios])
    mix = np.eye(len(givers)) * (1 - how.outside)
    mix[np.ix_(givers, givers)] += (known.modes * (factors - (1 - how.outside))) @ known.modes.T
    return mix


def kept_share(noise: float, cost: float = REFINEMENT.difference_cost) -> float:
    """Of a deviation with this share of noise, how much to keep.

    cost s / (cost s + noise) with s = 1 - noise minimises cost (1 - w)^2 s + w^2 noise over w: a Wiener
    filter that minds what is lost.
    """
    noise = min(max(noise, 0.0), 1.0)
    return cost * (1 - noise) / (cost * (1 - noise) + noise)


def expected(kept: float, known: Knowledge) -> Expected:
    """What keeping the share `kept` of the deviations does to the error, in units of their energy.

    Noise falls by (1 - w^2)(1 - 1/n); real differences cost difference_cost (1 - w)^2.
    `break_even` is the share of noise above which the first outweighs the second. `gain` needs
    replicates.
    """
    cost = known.numbers.difference_cost
    averaged = (1 - kept**2) * (1 - 1 / max(known.clients, 1))
    lost = cost * (1 - kept) ** 2
    gain = None if known.noise is None else known.noise * averaged - (1 - known.noise) * lost
    return Expected(
        gain_if_noise=averaged,
        loss_if_difference=lost,
        break_even=lost / (lost + averaged) if lost + averaged > 0 else 0.0,
        noise=known.noise,
        gain=gain,
    )
