"""Agreement is 1 for the same subspace, 0 on average for strangers, and blind to sign and gauge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli import agreement
from clair_cli.decompose import tables
from clair_cli.stack import LowRankUpdate, stack_module


def strangers(count: int, shape: tuple[int, int], rank: int, seed: int) -> list[LowRankUpdate]:
    draw = torch.Generator().manual_seed(seed)
    return [
        LowRankUpdate(
            torch.randn(shape[0], rank, generator=draw, dtype=torch.float64),
            torch.randn(rank, shape[1], generator=draw, dtype=torch.float64),
        )
        for _ in range(count)
    ]


def of(updates: list[list[LowRankUpdate]]) -> np.ndarray:
    """Agreement averaged over modules of updates[module][client]."""
    return agreement.agreement(*tables([stack_module("m", u) for u in updates])).mean(axis=0)


@pytest.mark.parametrize(("shape", "rank"), [((64, 96), 8), ((200, 50), 4), ((30, 40), 1)])
def test_strangers_agree_by_chance_and_as_much_as_said(shape: tuple[int, int], rank: int) -> None:
    modules = 40
    found = of([strangers(8, shape, rank, seed) for seed in range(modules)])
    pairs = found[np.triu_indices(8, 1)]
    said = agreement.chance_deviation(np.full(modules, float(shape[0])))
    assert abs(pairs.mean()) < said
    assert 0.5 * said < pairs.std() < 2 * said


def test_sign_and_size_do_not_matter_to_agreement_but_to_the_cosine() -> None:
    (a, b) = strangers(2, (20, 15), 3, 0)
    stack = stack_module("m", [a, LowRankUpdate(a.up, a.down, -5.0), b])
    inner, overlap, d_out = tables([stack])
    found = agreement.agreement(inner, overlap, d_out)[0]
    assert found[0, 1] == pytest.approx(1)
    assert agreement.cosines(inner)[0, 0, 1] == pytest.approx(-1)
    assert abs(found[0, 2]) < 0.5


def test_a_zero_update_agrees_with_nobody_and_divides_by_nothing() -> None:
    a, b = strangers(2, (20, 15), 3, 0)
    inner, overlap, d_out = tables([stack_module("m", [a, b, LowRankUpdate(a.up * 0, a.down)])])
    found = agreement.agreement(inner, overlap, d_out)
    assert np.isfinite(found).all()
    assert found[0, 0, 2] <= 0
    assert agreement.effective_ranks(inner, overlap)[0, 2] == 0


def test_effective_rank_counts_equal_singular_values() -> None:
    eye = torch.eye(10, dtype=torch.float64)
    stack = stack_module("m", [LowRankUpdate(eye[:, :r], eye[:r]) for r in (1, 3, 7)])
    inner, overlap, _ = tables([stack])
    assert agreement.effective_ranks(inner, overlap)[0] == pytest.approx([1, 3, 7])


def block_kernel(sizes: list[int], within: list[float], between: float) -> np.ndarray:
    owner = np.repeat(np.arange(len(sizes)), sizes)
    kernel = np.where(owner[:, None] == owner, np.array(within)[owner][:, None], between)
    np.fill_diagonal(kernel, 1.0)
    return kernel


def test_the_split_finds_the_larger_group() -> None:
    group, ratio = agreement.split(block_kernel([7, 6], [0.4, 0.4], 0.1))
    assert group.tolist() == [True] * 7 + [False] * 6
    assert ratio > 1.3
    assert agreement.split(block_kernel([13], [0.4], 0.4))[1] < 1.3


def test_a_tight_minority_does_not_win_by_filling_up_with_strangers() -> None:
    """Five colluders at 0.95 and six honest ones at 0.3: the majority is the honest six."""
    kernel = block_kernel([6, 5], [0.3, 0.95], 0.05)
    assert agreement.coherent(kernel, 6).tolist() == [True] * 6 + [False] * 5


def test_support_leaves_the_client_itself_out() -> None:
    kernel = block_kernel([3, 2], [0.4, 0.8], 0.1)
    group = np.array([True, True, True, False, False])
    assert agreement.support(kernel, group) == pytest.approx([0.4, 0.4, 0.4, 0.1, 0.1])
