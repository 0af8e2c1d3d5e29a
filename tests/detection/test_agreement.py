"""Agreement is 1 for the same subspace, 0 on average for strangers, and blind to sign and gauge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.detection import agreement
from clair_cli.detection.coherence import coherent, split
from clair_cli.detection.stacks import stack_module, tables
from clair_cli.update import LowRankUpdate


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
    return agreement.agreement(*tables([stack_module("m", u) for u in updates])[:3]).mean(axis=0)


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
    inner, overlap, d_out, _ = tables([stack])
    found = agreement.agreement(inner, overlap, d_out)[0]
    assert found[0, 1] == pytest.approx(1)
    assert agreement.cosines(inner)[0, 0, 1] == pytest.approx(-1)
    assert abs(found[0, 2]) < 0.5


def test_a_zero_update_agrees_with_nobody_and_divides_by_nothing() -> None:
    a, b = strangers(2, (20, 15), 3, 0)
    inner, overlap, d_out, _ = tables([stack_module("m", [a, b, LowRankUpdate(a.up * 0, a.down)])])
    found = agreement.agreement(inner, overlap, d_out)
    assert np.isfinite(found).all()
    assert found[0, 0, 2] <= 0
    assert agreement.effective_ranks(inner, overlap)[0, 2] == 0


def test_effective_rank_counts_equal_singular_values() -> None:
    eye = torch.eye(10, dtype=torch.float64)
    stack = stack_module("m", [LowRankUpdate(eye[:, :r], eye[:r]) for r in (1, 3, 7)])
    inner, overlap, *_ = tables([stack])
    assert agreement.effective_ranks(inner, overlap)[0] == pytest.approx([1, 3, 7])


def block_kernel(sizes: list[int], within: list[float], between: float) -> np.ndarray:
    owner = np.repeat(np.arange(len(sizes)), sizes)
    kernel = np.where(owner[:, None] == owner, np.array(within)[owner][:, None], between)
    np.fill_diagonal(kernel, 1.0)
    return kernel


def test_the_split_finds_the_larger_group() -> None:
    group, ratio = split(block_kernel([7, 6], [0.4, 0.4], 0.1))
    assert group.tolist() == [True] * 7 + [False] * 6
    assert ratio > 1.3
    assert split(block_kernel([13], [0.4], 0.4))[1] < 1.3


def test_a_tight_minority_does_not_win_by_filling_up_with_strangers() -> None:
    """Five colluders at 0.95 and six honest ones at 0.3: the majority is the honest six."""
    kernel = block_kernel([6, 5], [0.3, 0.95], 0.05)
    assert coherent(kernel, 6).tolist() == [True] * 6 + [False] * 5


def test_support_leaves_the_client_itself_out() -> None:
    kernel = block_kernel([3, 2], [0.4, 0.8], 0.1)
    group = np.array([True, True, True, False, False])
    assert agreement.support(kernel, group) == pytest.approx([0.4, 0.4, 0.4, 0.1, 0.1])


# --- what the clients have in common


def energies_of(clients: np.ndarray) -> np.ndarray:
    """The table of inner products (1, K, K) of updates given as vectors (K, d)."""
    return (clients @ clients.T)[None]


def test_identical_clients_have_all_their_energy_in_common() -> None:
    one = np.random.default_rng(0).standard_normal((1, 50))
    for count in (2, 3, 9):
        inner = energies_of(np.repeat(one, count, axis=0))
        assert agreement.common_share(inner) == pytest.approx(1)
        assert agreement.common_share(np.repeat(inner, 4, axis=0)) == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 3, 6, 20])
def test_independent_clients_have_nothing_in_common_though_their_mean_has_energy(
    count: int,
) -> None:
    clients = np.random.default_rng(count).standard_normal((count, 100_000))
    mean = (clients.mean(axis=0) ** 2).sum() / (clients**2).sum(axis=1).mean()
    assert mean == pytest.approx(1 / count, rel=0.1)
    assert agreement.common_share(energies_of(clients)) < 0.01


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_the_common_share_does_not_depend_on_the_number_of_clients(share: float) -> None:
    """Common energy `share`, own energy the rest; the energy of a plain mean is larger, for few."""
    draw, width = np.random.default_rng(1), 400
    for count in (2, 3, 5, 12):
        found = []
        for _ in range(60):
            common = draw.standard_normal(width) * np.sqrt(share)
            own = draw.standard_normal((count, width)) * np.sqrt(1 - share)
            found.append(agreement.common_share(energies_of(common + own)))
        assert np.mean(found) == pytest.approx(share, abs=0.02)
        assert share + (1 - share) / count > np.mean(found) + 0.01


def test_the_common_share_is_that_of_all_modules_together_and_none_of_nothing() -> None:
    """One module all in common, one of nine times the energy with nothing in common."""
    same = np.ones((4, 4))
    assert agreement.common_share(np.stack([same, 9 * np.eye(4)])) == pytest.approx(0.1)
    assert agreement.common_share(np.eye(3)[None] - 0.1) == 0  # never below
    assert agreement.common_share(np.zeros((2, 5, 5))) == 0
    assert agreement.common_share(np.ones((2, 1, 1))) == 0


# --- where the clients started


def started(owners: list[int], seed: int = 0) -> np.ndarray:
    """`rows` of 5 modules: clients of one owner have its first A, moved a little by training."""
    draw, tables_ = torch.Generator().manual_seed(seed), []
    for _ in range(5):
        first = {o: torch.randn(4, 48, generator=draw, dtype=torch.float64) for o in set(owners)}
        moved = [
            first[o] + 0.2 * torch.randn(4, 48, generator=draw, dtype=torch.float64) for o in owners
        ]
        up = torch.ones(6, 4, dtype=torch.float64)
        tables_.append(stack_module("m", [LowRankUpdate(up, a) for a in moved]).rows.numpy())
    return np.stack(tables_)


ALL = np.ones(6, bool)


def test_one_first_a_is_shared_and_own_ones_are_independent() -> None:
    name, overlap = agreement.initialisation(started([0] * 6), ALL)
    assert (name, overlap > 0.8) == ("shared", True)
    name, overlap = agreement.initialisation(started([0, 1, 2, 3, 4, 5]), ALL)
    assert name == "independent"
    assert overlap == pytest.approx(4 / 48, abs=0.03)


@pytest.mark.parametrize("owners", [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 2]])
def test_two_first_as_are_mixed(owners: list[int]) -> None:
    assert agreement.initialisation(started(owners), ALL)[0] == "mixed"


def test_only_members_say_where_clients_started() -> None:
    rows = started([0, 0, 0, 0, 1, 2])
    members = np.array([True] * 4 + [False] * 2)
    assert agreement.initialisation(rows, members)[0] == "shared"
    others = np.array([False] * 3 + [True] * 3)
    assert agreement.initialisation(rows, others)[0] == "independent"


# --- the most coherent subset


def coherent_slowly(kernel: np.ndarray, size: int) -> list[int]:
    """Grown from every seed by whoever agrees most on average; best is the strongest weakest."""
    best, most = [0], -np.inf
    for seed in range(len(kernel)):
        group = [seed]
        while len(group) < size:
            rest = [k for k in range(len(kernel)) if k not in group]
            group.append(max(rest, key=lambda k: np.mean([kernel[k, j] for j in group])))
        weakest = min(np.mean([kernel[i, j] for j in group if j != i]) for i in group)
        if weakest > most:
            best, most = group, weakest
    return sorted(best)


@pytest.mark.parametrize("count", range(5, 13))
def test_the_coherent_subset_is_that_of_the_slow_loop(count: int) -> None:
    draw, seen = np.random.default_rng(count), set()
    for _ in range(12):
        kernel = draw.standard_normal((count, count))
        kernel = kernel + kernel.T
        for size in (2, count // 2 + 1, count - 1):
            wanted = coherent_slowly(kernel, size)
            assert np.flatnonzero(coherent(kernel, size)).tolist() == wanted
            seen.add(tuple(wanted))
    assert len(seen) > 12
