"""Which clients have labels of their own: by what moves the frequencies of labels in their heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clair_cli import formats
from clair_cli.cohort import Adapter
from clair_cli.detection.agreement import Array
from clair_cli.detection.frequencies import few_outputs, leading, unit_deviations
from clair_cli.linalg import eigh
from clair_cli.refinement.blame import of_client
from clair_cli.refinement.calibration import REFINEMENT, RefinementCalibration

FEWEST = 4
"""Clients with a head, below which the direction of the others means nothing."""
MOST_ELEMENTS = 2**24
"""Of all clients' heads together that are looked at."""


def own_labels(
    clients: Sequence[Adapter], names: Sequence[str], numbers: RefinementCalibration = REFINEMENT
) -> Array | None:
    """How much of each client's deviation, in its heads among the full matrices `names`, lies in the
    direction that the others' deviations share, (K,) in [0, 1]; the largest over its heads.

    Zero for clients without a head, None where no head can be looked at. Raises AdapterError.
    """
    found, looked = np.zeros(len(clients)), False
    for name in names:
        who = [k for k, a in enumerate(clients) if name in a.full]
        if len(who) < FEWEST or not _is_head([clients[k] for k in who], name, numbers):
            continue
        heads = [_head(clients[k], name) for k in who]
        found[who] = np.maximum(found[who], in_shared_direction(torch.stack(heads)))
        looked = True
    return found if looked else None


def _head(adapter: Adapter, name: str) -> Tensor:
    with of_client(adapter.client):
        return formats.read_full_tensor(adapter, name, "float64")


def _is_head(clients: Sequence[Adapter], name: str, numbers: RefinementCalibration) -> bool:
    """A matrix of few outputs, alike in all of them."""
    shapes = {a.full[name].shape for a in clients}
    if len(shapes) > 1 or not few_outputs(shape := shapes.pop(), numbers.label_rows):
        return False
    return len(clients) * math.prod(shape) <= MOST_ELEMENTS


def in_shared_direction(heads: Tensor) -> Array:
    """Share of every head's deviation (K, C, d) in the leading input direction of the others', (K,)."""
    unit = unit_deviations(heads)
    whole = torch.einsum("kcd,kce->de", unit, unit) if heads.shape[2] <= 512 else None
    shares = []
    start = torch.ones(heads.shape[2], dtype=heads.dtype)
    for k, own in enumerate(unit):
        others = torch.cat([unit[:k], unit[k + 1 :]]).flatten(0, 1)
        if whole is not None:
            direction = eigh(whole - own.T @ own)[1][:, -1]
        else:
            direction = start = leading(others, start)
        shares.append(float((own @ direction).square().sum()))
    return np.array(shares)
