"""Who of a group is how well trained, and how much each counts: from inner products of whole adapters.

With W the inner products of K clients, content a_k is what client k has of what the others share, and
its error what no combination of the others explains, over a_k^2: the squared tangent of the angle
between the client and what is shared. The smallest usual error of a group is honest variation; what a
client has beyond it is estimation error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.agreement import Array, Mask
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration
from clair_cli.refinement.spectra import leading_eigenpair

MANY = 100
"""Clients from which on the search for weights takes fewer steps, each being slower."""
RIDGE = 1e-9
"""Of the mean energy: what is below it counts as rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """K clients of one group: `content`, `error` in units of the usual one (>= 1), both (K,).

    `company` (K,) is the largest cosine of what a client has beside the common part with that of
    another one: error is like nobody's, another task or other labels may be like somebody's. `short`
    (K,) are the clients whose small size says that they were trained too little; what they have for
    themselves says nothing.

    `weights` (K,) sum to one over the clients that give, and are zero for the others. `common` is the
    share of energy that all have in common, each client counted by its precision; `coherence` the root
    mean square of the cosines of two clients' residuals.
    """

    content: Array
    error: Array
    company: Array
    short: Mask
    weights: Array
    common: float
    coherence: float

    def strengths(self, sure: bool, numbers: RefinementCalibration = REFINEMENT) -> Array:
        """What each client keeps of what a usual one would keep of its own, in (0, 1], (K,).

        Unless it is `sure` that tasks are alike, or labels are, as little data looks another task.
        """
        usual = numbers.usual_error if sure else numbers.unsure_error
        beyond = usual / np.maximum(self.error, usual)
        return np.asarray(beyond**numbers.error_power)

    def as_at(self, place: NDArray[np.intp]) -> Standing:
        """The same, but of each client what is said of the one at `place` (K,); weights stay."""
        return replace(
            self,
            content=self.content[place],
            error=self.error[place],
            company=self.company[place],
            short=self.short[place],
        )


def even(givers: Mask) -> Standing:
    """All alike: where nothing is known of what the clients share."""
    count = len(givers)
    ones = np.ones(count)
    return Standing(ones, ones, 0 * ones, ones < 1, givers / max(givers.sum(), 1), 0.0, 0.0)


def standing(
    kernel: Array,
    givers: Mask,
    numbers: RefinementCalibration = REFINEMENT,
    whole: Array | None = None,
) -> Standing:
    """Of the clients with inner products `kernel` (K, K); `givers` (K,) define what is shared.

    `whole` (K, K) are those of the full matrices, which weights are bounded by, too.
    """
    size = np.sqrt(kernel.diagonal().clip(min=0))
    usual = float(np.median(size[givers]))
    if givers.sum() < 2 or usual <= 0:
        return even(givers)
    cut = np.minimum(1, numbers.largest_size * usual / np.maximum(size, 1e-12 * usual))
    table = kernel * np.outer(cut, cut)
    content, common = _content(table, givers)
    if common <= RIDGE * usual**2:
        return even(givers)
    own = _unexplained(table, givers) / common
    error = own / np.maximum(content, numbers.least_content) ** 2
    least = max(float(np.quantile(error[givers], numbers.usual_quantile)), RIDGE)
    grown = size / (numbers.trained_size * usual)
    error = np.maximum(error / least, 1) / np.clip(grown, RIDGE, 1) ** 2
    error = np.minimum(error, numbers.most_error)
    if whole is not None:
        table = table + whole * np.outer(cut, cut)
        own = _unexplained(table, givers) / common
    weights = np.zeros(len(kernel))
    here = np.ix_(givers, givers)
    shared = (table[here] - np.diag(own[givers] * common)) / common
    weights[givers] = bounded(shared, error[givers], numbers) * _by_size(
        size[givers], usual, cut[givers]
    )
    trained = givers & (grown >= 1)
    cosines = _residual_cosines(kernel, trained)
    factor = _factor(kernel[here])
    return Standing(
        content,
        error,
        company=cosines.max(axis=1),
        short=grown < 1,
        weights=weights / weights.sum(),
        common=_common(kernel[here].diagonal(), factor, 1 / error[givers]),
        coherence=_rms(cosines[np.ix_(trained, trained)]),
    )


def _by_size(size: Array, usual: float, cut: Array) -> Array:
    """Less for clients that are larger than usual, and for those that are smaller."""
    return np.asarray(np.minimum(size / usual, 1) * cut)


def _content(table: Array, givers: Mask) -> tuple[Array, float]:
    """a (K,), and ||M||^2: medians over pairs, which a minority that agrees with itself cannot lift."""
    others = np.where(np.eye(len(table), dtype=bool) | ~givers, np.nan, table)
    alike = np.nanmedian(others, axis=1)
    common = float(np.median(alike[givers]))
    return (alike / common if common > 0 else np.zeros(len(table))), common


def _unexplained(table: Array, givers: Mask) -> Array:
    """Squared distance (K,) of each client to the span of the givers other than itself."""
    theirs = table[np.ix_(givers, givers)]
    ridge = RIDGE * max(float(np.trace(theirs)) / len(theirs), 1e-300)
    inverse = np.linalg.inv(theirs + ridge * np.eye(len(theirs)))
    found = np.empty(len(table))
    found[givers] = 1 / inverse.diagonal()
    across = table[np.ix_(~givers, givers)]
    found[~givers] = table.diagonal()[~givers] - (across @ inverse * across).sum(axis=1)
    return np.asarray(found.clip(min=ridge))


def _factor(table: Array, rounds: int = 50) -> Array:
    """x (K,) with x_i x_j nearest to the inner products of two different clients."""
    off = table - np.diag(table.diagonal())
    own = np.full(len(table), off.sum() / max(len(table) * (len(table) - 1), 1))
    factor = np.zeros(len(table))
    for _ in range(rounds):
        value, vector = leading_eigenpair(off + np.diag(own), factor)
        factor = vector * np.sqrt(max(value, 0))
        before, own = own, np.minimum(factor**2, table.diagonal())
        if np.abs(own - before).max() <= 1e-6 * max(float(own.max()), 1e-300):
            break
    return np.asarray(np.abs(factor) if factor.sum() == 0 else factor * np.sign(factor.sum()))


def _residual_cosines(kernel: Array, who: Mask) -> Array:
    """Cosines (K, K) of what any two of `who` (K,) have beside the common part; zero for all others, and
    on the diagonal."""
    table = kernel[np.ix_(who, who)]
    cosines = np.zeros(kernel.shape)
    if len(table) < 3:
        return cosines
    factor = _factor(table)
    rest = table - np.outer(factor, factor)
    length = np.sqrt(rest.diagonal().clip(min=RIDGE * table.diagonal().mean()))
    cosines[np.ix_(who, who)] = (rest / np.outer(length, length)).clip(-1, 1)
    np.fill_diagonal(cosines, 0)
    return cosines


def _rms(cosines: Array) -> float:
    """Root mean square over pairs of different clients."""
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    return float(np.sqrt(np.mean(pairs**2))) if len(pairs) else 0.0


def _common(energy: Array, factor: Array, precision: Array) -> float:
    """Share of the energy that all have in common, each client counted by its precision."""
    total = float(precision @ energy)
    return min(float(precision @ factor**2) / total, 1.0) if total > 0 else 0.0


def bounded(shared: Array, error: Array, numbers: RefinementCalibration = REFINEMENT) -> Array:
    """Weights (K,) that sum to one and leave least error in the mean, none above the largest.

    They minimise  sum_k w_k^2 e_k + c max_v var_w(v): the error that the clients' own noise leaves, and
    the variance in the direction in which the weighted clients differ most, as a minority that pulls
    one way makes it. `shared` (K, K) are inner products without the clients' own noise in units of
    ||M||^2, `error` (K,) is e in units of the usual. Exponentiated gradients from equal weights: the
    start gives nobody more than its share.
    """
    count = len(error)
    cap = 1 / ((1 - numbers.most_left_out) * count)
    weights = best = capped(np.ones(count), cap)
    least, vector = np.inf, np.zeros(count)
    for step in range(max(numbers.weight_steps * MANY // max(count, MANY), 1)):
        value, vector = leading_eigenpair(_spread(shared, weights), vector)
        top = max(value, 0.0)
        loss = float(weights**2 @ error) + numbers.direction_cost * top
        if loss < least:
            least, best = loss, weights
        distance = top * vector**2 / np.maximum(weights, 1e-12)
        slope = 2 * weights * error + numbers.direction_cost * distance
        slope = slope - weights @ slope
        largest = float(np.abs(slope).max())
        if largest <= 1e-12:
            break
        rate = numbers.weight_rate / (1 + step / 20)
        weights = capped(weights * np.exp(-rate * slope / largest), cap)
    return best


def _spread(shared: Array, weights: Array) -> Array:
    """The clients' inner products around their weighted mean, each by the root of its weight."""
    mean, root = shared @ weights, np.sqrt(weights)
    around = shared - mean[:, None] - mean + weights @ mean
    return np.asarray(root[:, None] * around * root)


def capped(weights: Array, cap: float) -> Array:
    """Proportional to `weights`, summing to one, none above `cap` (at least 1 / K)."""
    weights = weights / weights.sum()
    full = np.zeros(len(weights), bool)
    while (over := (weights > cap * (1 + 1e-12)) & ~full).any():
        full |= over
        left, free = 1 - cap * full.sum(), float(weights[~full].sum())
        if left <= 0 or free <= 0:
            return np.where(full, 1 / full.sum(), 0.0)
        weights = np.where(full, cap, weights * (left / free))
    return np.asarray(weights)
