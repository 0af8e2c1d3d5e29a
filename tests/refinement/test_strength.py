"""What the adapters tell, and the shrinkage chosen from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clair_cli.refinement.calibration import REFINEMENT as R
from clair_cli.refinement.strength import (
    Knowledge,
    Shrinkage,
    choose,
    client_mix,
    expected,
    kept_share,
    look,
)
from clair_cli.settings import Settings

SHARES = np.linspace(0, 1, 41)


def known(clients: int = 6, **changes: Any) -> Knowledge:
    """What a cohort of one task, trained from one A, might tell."""
    modes = np.linalg.qr(np.random.default_rng(0).standard_normal((clients, clients)))[0]
    flat = np.full(max(clients - 1, 0), 1 / max(clients - 1, 1))
    usual = Knowledge(clients, "shared", R.one_task + 0.01, 0.08, modes[:, 1:], flat, 1.0, 1)
    return replace(usual, **changes)


def related(**settings: Any) -> Settings:
    """What is in between, said so that nothing is guessed."""
    return Settings(tasks="related", **settings)


# --- choose


@pytest.mark.parametrize(("began", "outside"), [("shared", 0.5), ("independent", 0.3)])
def test_weak_directions_lose_what_their_beginning_allows(began: str, outside: float) -> None:
    found = choose(Settings(), known(initialisation=began, common_share=0.05))
    assert (found.side, found.outside, found.boost) == ("own", outside, R.boost)
    assert outside == R.weak(began)


@pytest.mark.parametrize(
    ("common_share", "inside"),
    [
        (0.0, 0.0),
        (R.one_task, 0.0),
        (R.one_task + 0.01, 0.01 * R.one_task_slope),
        (
            R.one_task + 0.5 * R.most_inside / R.one_task_slope,
            0.5 * R.most_inside,
        ),
        (0.9, 1.0),
    ],
)
def test_own_directions_lose_by_how_much_clients_look_like_one_task(
    common_share: float, inside: float
) -> None:
    assert choose(Settings(), known(common_share=common_share)).inside == pytest.approx(inside)


@pytest.mark.parametrize(
    "changes",
    [
        {"coherence": R.task_kinds},
        {"coherence": 0.3},
        {"own_labels": R.labels_differ},
        {"initialisation": "independent", "overlap": 0.9},
        {"initialisation": "mixed", "overlap": 0.9},
    ],
    ids=str,
)
def test_own_directions_lose_nothing_in_kinds_or_where_row_spaces_explain_what_is_common(
    changes: Any,
) -> None:
    assert choose(Settings(), known(common_share=0.9, **changes)).inside == 0
    assert choose(Settings(), known(common_share=0.9)).inside > 0


@pytest.mark.parametrize("began", ["independent", "mixed"])
def test_from_different_beginnings_what_is_common_beyond_row_spaces_counts(began: Any) -> None:
    about = known(
        initialisation=began, overlap=0.5, common_share=0.5 + 0.5 * (R.own_one_task + 0.02)
    )
    assert choose(Settings(), about).inside == pytest.approx(0.02 * R.own_one_task_slope)


def test_related_tasks_lose_half_of_their_own_directions_at_most() -> None:
    assert choose(related(), known(common_share=0.9)).inside == R.most_inside


def test_one_task_gets_the_mean_as_it_is() -> None:
    found = choose(Settings(tasks="same"), known(common_share=0.9))
    assert (found.inside, found.outside, found.boost) == (1, 1, 0)


def test_who_is_told_of_one_task_needs_less_in_common() -> None:
    about = known(common_share=R.one_task - R.told_same / 2)
    assert choose(Settings(tasks="same"), about).inside > choose(Settings(), about).inside == 0


@pytest.mark.parametrize("about", [known(common_share=0.9), known(initialisation="none")])
def test_own_tasks_are_kept_whole_but_for_each_client_s_own_error(about: Knowledge) -> None:
    found = choose(Settings(tasks="own"), about)
    assert (found.inside, found.outside, found.gain(1.0)) == (0, 0, 0)
    assert found.per_client


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"common_share": 0.9}, "same"),
        ({"common_share": 0.2}, "related"),
        ({"common_share": 0.9, "coherence": R.task_kinds}, "related"),
        ({"common_share": 0.9, "coherence": R.kinds_apart}, "own"),
        ({"common_share": 0.9, "own_labels": R.labels_differ}, "own"),
    ],
    ids=str,
)
def test_tasks_are_guessed_where_nobody_says(changes: Any, tasks: str) -> None:
    assert choose(Settings(), known(**changes)).tasks == tasks
    for said in ("same", "related", "own"):
        assert choose(Settings(tasks=said), known(**changes)).tasks == said


def test_plain_matrices_keep_shared_directions_without_a_gain() -> None:
    found = choose(Settings(), known(initialisation="none", common_share=0.9))
    assert found == Shrinkage("left", "auto", 0.0, R.weak_plain, noise_like=1.0, per_client=True)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("noise", [None, 0.5])
def test_a_strength_that_is_given_wins_over_all_that_is_known(
    strength: float, noise: float | None
) -> None:
    asked = Settings(strength=strength, side="right", subspace_rank=3)
    assert choose(asked, known(noise=noise)) == Shrinkage("right", 3, 0.0, strength)


@pytest.mark.parametrize(
    ("began", "boost"), [("shared", R.boost), ("mixed", R.boost), ("none", 0.0)]
)
def test_on_a_path_every_direction_moves_unless_some_are_asked_for(
    began: str, boost: float
) -> None:
    asked, about = Settings(strength=0.3), known(initialisation=began)
    assert choose(asked, about, on_path=True) == Shrinkage(
        "left" if began == "none" else "own", 0, 0.3, 0.3, boost
    )
    for kept in ({"side": "left"}, {"subspace_rank": 2}):
        chosen = replace(asked, **kept)
        assert choose(chosen, about, on_path=True) == choose(chosen, about)
    assert choose(Settings(), about, on_path=True) == choose(Settings(), about)


@pytest.mark.parametrize("strength", ["auto", 0.7])
@pytest.mark.parametrize("noise", [None, 0.9])
def test_one_client_alone_loses_nothing(strength: Any, noise: float | None) -> None:
    found = choose(Settings(strength=strength), known(1, noise=noise))
    assert (found.inside, found.outside, found.gain(1.0)) == (0, 0, 0)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.9, 1.0])
def test_replicates_decide_over_the_initialisation(noise: float) -> None:
    for began in ("shared", "independent", "mixed"):
        found = choose(Settings(), known(noise=noise, initialisation=began))
        assert found.inside == found.outside == pytest.approx(1 - kept_share(noise))
        assert not found.by_direction
    assert choose(Settings(side="left"), known(noise=noise)).by_direction


@pytest.mark.parametrize("side", ["own", "left", "right", "client"])
def test_the_side_that_is_asked_for_is_taken(side: Any) -> None:
    for about in (known(), known(noise=0.4), known(initialisation="none"), known(1)):
        assert choose(Settings(side=side, subspace_rank=2), about).side == side
        assert choose(Settings(side=side, subspace_rank=2), about).rank == 2


# --- kept_share and expected


@pytest.mark.parametrize(("common", "share"), [(0.3, 1), (0.5, 1), (0.75, 0.5), (1.0, 0)])
def test_who_differs_in_little_loses_little_and_is_enlarged_by_little(
    common: float, share: float
) -> None:
    found = choose(Settings(), known(common_share=common, coherence=R.task_kinds))
    assert found.boost == pytest.approx(R.boost * share)
    assert found.gain(1.0) == pytest.approx(min(R.boost * share, 0.25))


@pytest.mark.parametrize(
    ("agreed", "lack"), [(None, 1), (0.1, 1), (0.34, 1), (0.36, 0.5), (0.38, 0), (0.9, 0)]
)
def test_what_replicates_agree_on_is_taken_from_nobody(agreed: float | None, lack: float) -> None:
    about = known(noise=0.9, agreed=agreed)
    assert about.lack == pytest.approx(lack)
    taken = (1 - kept_share(0.9)) * lack
    assert choose(Settings(), about).outside == pytest.approx(taken)
    linear = known(noise=0.9, agreed=agreed, initialisation="none")
    assert choose(Settings(), linear).outside == pytest.approx(1 - kept_share(0.9))


def test_kept_share_falls_from_one_to_zero_with_the_noise() -> None:
    kept = [kept_share(x) for x in SHARES]
    assert (kept[0], kept[-1]) == (1, 0)
    assert (np.diff(kept) < 0).all()
    assert (kept_share(-1), kept_share(7)) == (1, 0)


@pytest.mark.parametrize("noise", [0.1, 0.5, 0.8, 0.95])
def test_kept_share_minimises_the_cost_it_states(noise: float) -> None:
    def cost(w: np.ndarray | float) -> Any:
        return R.difference_cost * (1 - w) ** 2 * (1 - noise) + w**2 * noise

    grid = np.linspace(0, 1, 2001)
    assert grid[cost(grid).argmin()] == pytest.approx(kept_share(noise), abs=1e-3)
    assert cost(kept_share(noise)) <= cost(grid).min() + 1e-12


@pytest.mark.parametrize("noise", [0.1, 0.5, 0.9])
def test_of_very_many_clients_kept_share_promises_most(noise: float) -> None:
    about = replace(known(noise=noise), clients=10**9)
    gains = [expected(w, about).gain for w in np.linspace(0, 1, 201)]
    best = expected(kept_share(noise), about).gain
    assert best >= max(gains) - 1e-9
    assert best > 0


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.8, 0.99])
def test_at_break_even_nothing_is_gained(kept: float) -> None:
    even = expected(kept, known()).break_even
    assert 0 < even < 1
    for noise, sign in [(even, 0), (even + 0.01, 1), (even - 0.01, -1)]:
        gain = expected(kept, known(noise=noise)).gain
        assert gain == pytest.approx(0, abs=1e-12) if sign == 0 else gain * sign > 0


def test_without_replicates_nothing_is_promised_and_keeping_all_costs_nothing() -> None:
    assert expected(0.5, known()).gain is None
    assert expected(1.0, known(noise=0.5)).gain == 0
    assert expected(1.0, known()).break_even == 0


# --- look


def cohort(kinds: int = 1, apart: float = 0.0, seed: int = 0, clients: int = 12) -> np.ndarray:
    """Updates (modules 3, K, 400): a mean, `kinds` of clients `apart` from it, and noise of norm 1."""
    draw = np.random.default_rng(seed)
    kind = draw.standard_normal((3, kinds, 400)) / 20
    own = draw.standard_normal((3, clients, 400)) / 20
    common = 2 * draw.standard_normal((3, 1, 400)) / 20
    return np.asarray(common + apart * kind[:, np.arange(clients) % kinds] + own)


def tables(updates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """inner, rows of clients that began alike, and all of them as members."""
    count = updates.shape[1]
    inner = updates @ updates.transpose(0, 2, 1)
    return inner, np.ones_like(inner), np.ones(count, bool)


def test_the_spectrum_shares_out_the_deviations_over_orthonormal_modes() -> None:
    updates = cohort(seed=3)
    found = look(*tables(updates))
    assert found.modes.shape == (12, 11)
    np.testing.assert_allclose(found.modes.T @ found.modes, np.eye(11), atol=1e-10)
    assert found.spectrum.sum() == pytest.approx(1)
    assert (np.diff(found.spectrum) <= 0).all()
    inner = tables(updates)[0]
    scaled = updates / np.sqrt(np.median(np.einsum("mkk->mk", inner), axis=1))[:, None, None]
    flat = scaled.transpose(1, 0, 2).reshape(12, -1)
    values = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(found.spectrum, (values / values.sum())[:11], atol=1e-10)


@pytest.mark.parametrize("kinds", [2, 3, 4])
def test_planted_kinds_show_as_a_gap_after_one_mode_less(kinds: int) -> None:
    found, flat = look(*tables(cohort(kinds, 2.0))), look(*tables(cohort(kinds, 0.0)))
    assert found.gap_after == kinds - 1
    assert found.gap > 3 > 1.5 > flat.gap
    assert found.spread > R.task_kinds > flat.spread


def test_the_common_share_and_the_beginning_are_those_of_the_members() -> None:
    """||M|| is 2 against noise of 1; one client is somebody else's, ten times as large."""
    updates = cohort()
    updates[:, 5] = 10 * np.random.default_rng(9).standard_normal((3, 400)) / 20
    inner, rows, members = tables(updates)
    rows[:, 5] = rows[:, :, 5] = 0.0
    members[5] = False
    found = look(inner, rows, members)
    assert found.clients == 11
    assert found.common_share == pytest.approx(0.8, abs=0.03)
    assert found.initialisation == "shared"
    assert look(inner, 0 * rows, members).initialisation == "independent"
    assert look(inner, None, members).initialisation == "none"
    everybody = look(inner, rows, np.ones(12, bool))
    assert everybody.common_share < 0.5


def test_order_of_clients_does_not_matter() -> None:
    updates, order = cohort(3, 1.0), np.random.default_rng(1).permutation(12)
    one, other = look(*tables(updates)), look(*tables(updates[:, order]))
    np.testing.assert_allclose(one.spectrum, other.spectrum, atol=1e-12)
    for name in ("common_share", "spread", "gap", "gap_after"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    how = Shrinkage("client", 2, 0.2, 0.7)
    first, second = (client_mix(how, k, np.ones(12, bool)) for k in (one, other))
    np.testing.assert_allclose(first[np.ix_(order, order)], second, atol=1e-10)


@pytest.mark.parametrize("factors", [[1e4] * 3, [1e-4] * 3, [1e-3, 1.0, 1e3]], ids=str)
def test_scale_does_not_matter_of_all_and_of_single_modules(factors: list[float]) -> None:
    updates = cohort(2, 1.0)
    one, other = look(*tables(updates)), look(*tables(np.array(factors)[:, None, None] * updates))
    np.testing.assert_allclose(one.spectrum, other.spectrum, atol=1e-10)
    for name in ("common_share", "spread", "gap", "gap_after"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


@pytest.mark.parametrize("count", [1, 2])
def test_few_clients_are_no_kinds_and_zero_updates_no_trouble(count: int) -> None:
    found = look(*tables(cohort()[:, :count]))
    assert (found.spread, found.modes.shape) == (0, (count, count - 1))
    nothing = look(*tables(np.zeros((3, 5, 7))))
    assert (nothing.common_share, nothing.spread, nothing.spectrum.sum()) == (0, 0, 0)


# --- client_mix


@pytest.mark.parametrize("s", [0, 1, 3])
def test_full_strength_projects_onto_the_leading_modes(s: int) -> None:
    about = known()
    mix = client_mix(Shrinkage("client", s, 0.0, 1.0), about, np.ones(6, bool))
    np.testing.assert_allclose(mix, about.modes[:, :s] @ about.modes[:, :s].T, atol=1e-12)
    np.testing.assert_allclose(mix @ mix, mix, atol=1e-12)


def test_auto_takes_the_modes_before_the_gap() -> None:
    about = look(*tables(cohort(3, 2.0)))
    everybody = np.ones(12, bool)
    found = client_mix(Shrinkage("client", "auto", 0.1, 0.8), about, everybody)
    np.testing.assert_allclose(
        found, client_mix(Shrinkage("client", 2, 0.1, 0.8), about, everybody), atol=1e-12
    )


def test_nothing_taken_is_the_identity_also_around_a_weighted_mean() -> None:
    mix = client_mix(Shrinkage("client", 2, 0.0, 0.0), known(), np.ones(6, bool))
    np.testing.assert_allclose(mix, np.eye(6), atol=1e-12)


def test_who_gives_nothing_is_mixed_with_nobody() -> None:
    members = np.array([True, False, True, True, False])
    mix = client_mix(Shrinkage("client", 1, 0.0, 0.4), known(3), members)
    assert mix[1].tolist() == [0, 0.6, 0, 0, 0]
    assert (mix[:, 4] == [0, 0, 0, 0, 0.6]).all()
    inner = client_mix(Shrinkage("client", 1, 0.0, 0.4), known(3), np.ones(3, bool))
    np.testing.assert_allclose(mix[np.ix_(members, members)], inner)


def test_noise_spread_over_the_modes_takes_the_weak_ones_first() -> None:
    spectrum = np.array([0.6, 0.3, 0.05, 0.03, 0.02])
    about = known(spectrum=spectrum, noise=0.4)
    how = Shrinkage("client", "auto", 0.1, 0.1, by_direction=True)
    mix = client_mix(how, about, np.ones(6, bool))
    kept = np.diag(about.modes.T @ mix @ about.modes)
    np.testing.assert_allclose(kept, [kept_share(0.08 / x) for x in spectrum], atol=1e-12)
    assert abs(kept[2]) < 1e-12 < kept[1] < kept[0] < 1
