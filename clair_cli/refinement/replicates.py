"""Estimation error from replicates: what several adapters of one client do not agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clair_cli import formats
from clair_cli.cohort import Adapter
from clair_cli.detection.agreement import Array, levelled
from clair_cli.detection.changes import SentReader, change
from clair_cli.detection.solver import deviations
from clair_cli.refinement.blame import of_client
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration
from clair_cli.settings import DtypeName
from clair_cli.update import LowRankUpdate, combined, energy


def replicated(adapter: Adapter) -> bool:
    """Whether the client has two adapters to compare."""
    return len(adapter.replicates) + (not adapter.only_replicates) >= 2 and bool(adapter.replicates)


def errors(
    adapter: Adapter,
    module: str,
    dtype: DtypeName,
    device: str,
    numbers: RefinementCalibration = REFINEMENT,
) -> list[LowRankUpdate]:
    """Updates whose energies sum to the error expected of the client's, from its replicates' spread.

    R replicates D_r have the variance s^2 = sum ||D_r - mean||^2 / (R - 1); their mean has s^2 / R. An
    adapter trained on all data beside replicates on parts of it has less than s^2 and more than that.
    """
    return _errors(adapter, _compared(adapter, module, dtype, device), numbers.whole_noise)


def _compared(adapter: Adapter, module: str, dtype: DtypeName, device: str) -> list[LowRankUpdate]:
    """The client's replicates; a single one beside an adapter, and that adapter. What was sent is not in
    them."""
    both = len(adapter.replicates) == 1 and not adapter.only_replicates
    whose = (*adapter.replicates, adapter) if both else adapter.replicates
    sent = SentReader(module, dtype, device).read(adapter)
    return [change(formats.read_update(a, module, dtype, device), sent) for a in whose]


def _errors(
    adapter: Adapter, found: Sequence[LowRankUpdate], whole_noise: float
) -> list[LowRankUpdate]:
    """As `errors`, of what `_compared` gave."""
    if adapter.only_replicates:
        share = 1 / len(found)
    else:
        share = 1.0 if len(adapter.replicates) == 1 else whole_noise
    factor = (share / (len(found) - 1)) ** 0.5
    return [_scaled_difference(found, r, factor) for r in range(len(found))]


@dataclass(frozen=True, slots=True)
class Noise:
    """What the replicates of at least two clients say; the median client speaks for all.

    `share` of the deviations is estimation error. `agreed` is what two replicates have in common over
    the energy of the client's adapter, None where no client has two besides it. `scales` are what to
    multiply a client's errors by, so that none has more of them than the median.
    """

    share: float
    agreed: float | None
    scales: Mapping[str, float]


def noise_of(
    giving: Sequence[Adapter],
    inner: Array,
    modules: Sequence[str],
    dtype: DtypeName,
    device: str,
    numbers: RefinementCalibration = REFINEMENT,
) -> Noise | None:
    """From the replicates of the clients `giving`, whose updates have the tables `inner`
    (modules, K, K); None without two replicated clients.
    """
    telling = [k for k, a in enumerate(giving) if replicated(a)]
    if len(telling) < 2:
        return None
    units = np.median(np.einsum("mkk->mk", inner), axis=1)
    units = np.where(units > 0, units, np.inf)
    noise, common, whole = np.zeros((3, len(giving)))
    for module, unit in zip(modules, units, strict=True):
        for k in telling:
            with of_client(giving[k].client):
                found = _compared(giving[k], module, dtype, device)
                noise[k] += sum(map(energy, _errors(giving[k], found, numbers.whole_noise))) / unit
                if len(giving[k].replicates) > 1:
                    both, size = _in_common(found)
                    if not giving[k].only_replicates:
                        sent = SentReader(module, dtype, device).read(giving[k])
                        own = formats.read_update(giving[k], module, dtype, device)
                        size = energy(change(own, sent))
                    common[k] += both / unit
                    whole[k] += size / unit
    count = len(giving)
    off = deviations(levelled(inner).sum(axis=0), np.full(count, 1 / count))
    usual = float(np.median(noise[telling]))
    deviation = float(off[telling].mean()) * count / max(count - 1, 1)
    scales = {giving[k].client: min(1.0, (usual / max(noise[k], 1e-300)) ** 0.5) for k in telling}
    pairs = [k for k in telling if whole[k] > 0]
    agreed = float(np.median(common[pairs] / whole[pairs])) if pairs else None
    return Noise(min(usual / max(deviation, 1e-300), 1.0), agreed, scales)


def _in_common(replicates: Sequence[LowRankUpdate]) -> tuple[float, float]:
    """Mean inner product of two of at least two replicates, and their mean energy."""
    count, energies = len(replicates), sum(map(energy, replicates))
    pairs = energy(combined(replicates, [1.0] * count)) - energies
    return pairs / (count * (count - 1)), energies / count


def _scaled_difference(
    updates: Sequence[LowRankUpdate], which: int, factor: float
) -> LowRankUpdate:
    share = [factor * ((r == which) - 1 / len(updates)) for r in range(len(updates))]
    return combined(updates, share)
