"""Which clients have labels of their own, from planted heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.refinement.calibration import REFINEMENT as R
from clair_cli.refinement.labels import in_shared_direction

CLIENTS, LABELS, WIDTH = 10, 5, 64


def heads(priors: int, size: float = 3.0, width: int = WIDTH) -> Any:
    """Heads with noise, of which the first `priors` moved along one input direction, too."""
    draw = torch.Generator().manual_seed(1)
    found = torch.randn(1, LABELS, width, generator=draw, dtype=torch.float64).expand(
        CLIENTS, -1, -1
    )
    noise = 0.3 * (WIDTH / width) ** 0.5
    found = found + noise * torch.randn(CLIENTS, LABELS, width, generator=draw, dtype=torch.float64)
    mean = torch.randn(width, generator=draw, dtype=torch.float64)
    prior = torch.randn(CLIENTS, LABELS, 1, generator=draw, dtype=torch.float64)
    prior[priors:] = 0
    if priors:  # what some have more of others have less of
        prior[:priors] -= prior[:priors].mean(dim=0)
    return found + size * prior * mean / mean.norm()


@pytest.mark.parametrize("width", [WIDTH, 700])
def test_labels_of_their_own_are_seen_and_noise_is_not(width: int) -> None:
    found = in_shared_direction(heads(4, 6.0, width))
    assert found[:4].min() > R.label_prior > found[4:].max()
    assert in_shared_direction(heads(0, width=width)).max() < R.label_prior


def test_heads_that_are_all_the_same_have_no_direction() -> None:
    assert in_shared_direction(torch.ones(6, 3, 8, dtype=torch.float64)) == pytest.approx(
        np.zeros(6)
    )
