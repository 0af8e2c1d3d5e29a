"""A later round is told by how alike its adapters are; what trained apart is not taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.later import likeness
from tests.helpers.cohorts import Array, drawn, truths


def inner(updates: Array) -> Array:
    """(modules, K, K) of updates (K, modules, d_out, d_in)."""
    flat = updates.reshape(*updates.shape[:2], -1)
    return np.einsum("kmx,lmx->mkl", flat, flat)


def test_the_likeness_is_the_usual_cosine() -> None:
    pair = np.zeros((3, 1, 2, 2))
    pair[:, 0, 0, 0] = 1
    pair[:, 0, 1] = [[0.0, 0.0], [0.0, 0.1], [0.1, 0.0]]
    near, far = 1 / np.sqrt(1.01), 1 / 1.01
    assert likeness(inner(pair)) == pytest.approx((near + far) / 2)


def test_what_all_were_sent_makes_a_later_round_and_training_apart_does_not() -> None:
    first = truths(8)
    sent = first.mean(axis=0)
    assert likeness(inner(first)) < DETECTION.round_likeness < likeness(inner(sent + 0.1 * first))


def test_size_modules_and_copies_do_not_count() -> None:
    first = truths(8)
    usual = likeness(inner(first))
    sizes = np.arange(1, 9)[:, None, None, None] * np.array([1.0, 1000.0])[None, :, None, None]
    assert likeness(inner(first * sizes)) == pytest.approx(usual, abs=0.02)
    copied = np.concatenate([first, first[:1], np.zeros_like(first[:1])])
    assert likeness(inner(copied)) == pytest.approx(usual, abs=0.02)
    assert likeness(inner(np.repeat(first[:1], 4, axis=0))) == 0


def test_few_strangers_do_not_hide_a_later_round() -> None:
    first = truths(9)
    later = first.mean(axis=0) + 0.1 * first
    later[:3] = drawn(5, 3, *first.shape[1:])
    assert likeness(inner(later)) > DETECTION.round_likeness
