"""Who agrees with whom: gauge-invariant comparisons of clients from K x K tables, in numpy.

All tables are (modules, K, K) float64: `inner` holds <Delta_i, Delta_j>, `overlap` holds
||Delta_i' Delta_j||_F^2. The output-side agreement is blind to signs and to how each client's A was
initialised; the cosine is not. Both are averaged over modules, which is what makes them decisive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clair_cli.detection.blocks import blocks
from clair_cli.detection.calibration import DETECTION, DetectionCalibration
from clair_cli.report import InitialisationName

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def cosines(inner: Array) -> Array:
    """Cosine of Delta_i and Delta_j per module, (modules, K, K); 0 where an update is zero."""
    norm = np.sqrt(np.einsum("mkk->mk", inner).clip(min=0))
    return _over(inner, norm[:, :, None] * norm[:, None, :])


def effective_ranks(inner: Array, overlap: Array) -> Array:
    """(sum s^2)^2 / sum s^4 over the singular values s of each update, (modules, K); 0 for zero."""
    energy, fourth = np.einsum("mkk->mk", inner), np.einsum("mkk->mk", overlap)
    return _over(energy**2, fourth)


def agreement(inner: Array, overlap: Array, d_out: Array) -> Array:
    """Output-side agreement per module, (modules, K, K): 1 is identical, 0 is chance.

    a_ij = ||D_i' D_j||^2 / (||D_i D_i'|| ||D_j D_j'||); for independent column spaces its mean is
    sqrt(rank_i rank_j) / d_out with the effective ranks, and that chance level is taken off.
    """
    fourth = np.sqrt(np.einsum("mkk->mk", overlap).clip(min=0))
    raw = _over(overlap, fourth[:, :, None] * fourth[:, None, :])
    rank = np.sqrt(effective_ranks(inner, overlap))
    return beyond_chance(raw, rank[:, :, None] * rank[:, None, :] / d_out[:, None, None])


def beyond_chance(raw: Array, chance: Array) -> Array:
    """The overlaps `raw` on the scale on which `chance` is 0 and 1 remains 1."""
    chance = chance.clip(max=1 - 1e-6)
    return np.asarray((raw - chance) / (1 - chance))


def levelled(inner: Array, members: Mask | None = None) -> Array:
    """`inner` with every module in units of the median energy of `members`, else of all clients; zero
    where that is zero."""
    energies = np.einsum("mkk->mk", inner)
    given = energies if members is None else energies[:, members]
    units = np.median(given, axis=1)[:, None, None]
    return _over(inner, np.broadcast_to(units, inner.shape))


def common_share(inner: Array) -> float:
    """Share in [0, 1] of the clients' energy that their mean carries, freed of the noise of a mean.

    That is the mean inner product of two different clients over the mean squared norm.
    """
    whole = inner.sum(axis=0)
    count, energy = len(whole), float(np.trace(whole))
    if count < 2 or energy <= 0:
        return 0.0
    return min(max((float(whole.sum()) - energy) / (count - 1) / energy, 0.0), 1.0)


def initialisation(
    rows: Array, members: Mask, numbers: DetectionCalibration = DETECTION
) -> tuple[InitialisationName, float]:
    """`shared`, `independent` or `mixed` first A of the members, and the median overlap of two.

    `rows` (modules, K, K) as in ModuleStack. Training moves A little: one first A leaves a mean squared
    cosine of 0.8 to 0.99, and strangers overlap by r / d_in.
    """
    both = pairs(rows.mean(axis=0), members)
    same = float((both > numbers.same_rows).mean()) if len(both) else 0.0
    name: InitialisationName = "mixed"
    if same > numbers.mostly_same:
        name = "shared"
    elif same < numbers.rarely_same:
        name = "independent"
    return name, float(np.median(both)) if len(both) else 0.0


def pairs(kernel: Array, members: Mask) -> Array:
    """The entries of a symmetric kernel (K, K) for every two different members, each pair once."""
    return pairs_of(kernel, np.flatnonzero(members))


def pairs_of(kernel: Array, who: NDArray[np.intp]) -> Array:
    """The same for the clients at positions `who`, which are in order."""
    found = np.empty(len(who) * (len(who) - 1) // 2, kernel.dtype)
    end = 0
    for i, k in enumerate(who):
        found[end : end + i] = kernel[k, who[:i]]
        end += i
    return found


def chance_deviation(d_out: Array) -> float:
    """Standard deviation of the agreement of two strangers, averaged over modules of these d_out.

    In one module the agreement sums r^2 squared cosines of variance 2 / d_out^2 and divides by r:
    sqrt(2) / d_out, whatever the rank r.
    """
    return float(np.sqrt((2 / d_out**2).sum()) / len(d_out))


def support(kernel: Array, group: Mask) -> Array:
    """Mean kernel value of each client with the members of `group` other than itself, (K,)."""
    return np.asarray(rows_support(kernel[None], group)[0])


def rows_support(kernels: Array, group: Mask) -> Array:
    """`support` for a stack of kernels (modules, K, K): (modules, K)."""
    own, weights = np.einsum("mkk->mk", kernels) * group, group.astype(float)
    found = np.empty(kernels.shape[:-1])
    for m, kernel in enumerate(kernels):
        for rows in blocks(len(kernel)):  # float32 is widened a few rows at a time
            found[m, rows] = kernel[rows] @ weights
    return np.asarray((found - own) / np.maximum(group.sum() - weights, 1))


def _over(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
