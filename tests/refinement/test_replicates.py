"""Replicates of a client tell its estimation error: planted, and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clair_cli import Settings, detect, open_adapter, read_update, refine
from clair_cli.cohort import Adapter
from clair_cli.detection.forms import read_estimate
from clair_cli.formats import find_replicates, with_replicates
from clair_cli.refinement.calibration import REFINEMENT
from clair_cli.refinement.replicates import Noise, errors, noise_of, replicated
from clair_cli.update import energy
from tests.helpers.cohorts import SHAPE, Array, drawn, module, save_dense, truths

MODULES = [module(0), module(1)]
CLIENTS = 12


def plant(folder: Path, noise: float, count: int, main: float | None = None) -> list[Adapter]:
    """Clients of `count` replicates with error `noise`, and an own adapter with the error `main`."""
    for k, truth in enumerate(truths(CLIENTS)):
        place = folder / f"client-{k + 1}"
        if main is not None:
            save_dense(place, truth + main * drawn(100 + k, 2, *SHAPE))
        for r in range(count):
            save_dense(place / f"rep-{r + 1}", truth + noise * drawn(1000 + 50 * k + r, 2, *SHAPE))
    return opened(folder)


def opened(folder: Path) -> list[Adapter]:
    found = []
    for k in range(CLIENTS):
        place = folder / f"client-{k + 1}"
        others = [open_adapter(p) for p in find_replicates(place, Settings())]
        found.append(with_replicates(open_adapter(place), others, []))
    return found


def dense(adapter: Adapter) -> Array:
    return np.stack([read_update(adapter, m, "float64").dense().numpy() for m in MODULES])


def estimated(adapter: Adapter) -> Array:
    found = [read_estimate(adapter, m, "float64", "cpu") for m in MODULES]
    return np.stack([update.dense().numpy() for update in found])


def share(giving: list[Adapter]) -> float | None:
    """Of `said`."""
    found = said(giving)
    return None if found is None else found.share


def said(giving: list[Adapter]) -> Noise | None:
    """noise_of, with the table of what is judged."""
    flat = (
        np.stack([estimated(a) for a in giving]).transpose(1, 0, 2, 3).reshape(2, len(giving), -1)
    )
    return noise_of(giving, flat @ flat.transpose(0, 2, 1), MODULES, "float64", "cpu")


OWN = 0.36
"""Squared norm of what clients differ by, in truth."""


@pytest.mark.parametrize("noise", [0.2, 0.6, 1.2])
@pytest.mark.parametrize("count", [2, 4])
def test_of_clients_with_nothing_but_replicates_the_noise_of_their_mean_is_found(
    noise: float, count: int, tmp_path: Path
) -> None:
    giving = plant(tmp_path, noise, count)
    assert all(a.only_replicates and replicated(a) for a in giving)
    error = noise**2 / count
    assert share(giving) == pytest.approx(error / (error + OWN), rel=0.12)


@pytest.mark.parametrize("noise", [0.2, 0.6, 1.2])
def test_one_replicate_beside_the_adapter_shows_the_error_of_both(
    noise: float, tmp_path: Path
) -> None:
    giving = plant(tmp_path, noise, 1, main=noise)
    assert share(giving) == pytest.approx(noise**2 / (noise**2 + OWN), rel=0.12)


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_replicates_on_parts_of_the_data_err_more_than_the_adapter_on_all(
    noise: float, tmp_path: Path
) -> None:
    giving = plant(tmp_path, noise, 3, main=noise * REFINEMENT.whole_noise**0.5)
    error = REFINEMENT.whole_noise * noise**2
    assert share(giving) == pytest.approx(error / (error + OWN), rel=0.12)


def test_fewer_than_two_replicated_clients_tell_nothing(tmp_path: Path) -> None:
    giving = plant(tmp_path, 0.5, 1, main=0.5)
    alone = [giving[0], *(replace(a, replicates=()) for a in giving[1:])]
    assert [replicated(a) for a in alone] == [True] + [False] * (CLIENTS - 1)
    assert share(alone) is None
    assert share([*giving[:2], *alone[2:]]) == pytest.approx(share(giving), rel=0.25)


def test_a_single_replicate_that_is_all_there_is_tells_nothing(tmp_path: Path) -> None:
    giving = plant(tmp_path, 0.5, 1)
    assert [a.only_replicates for a in giving] == [True] * CLIENTS
    assert share(giving) is None


def test_wild_replicates_of_one_client_decide_nothing(tmp_path: Path) -> None:
    giving = plant(tmp_path, 0.5, 2, main=0.5)
    before = share(giving)
    assert before is not None
    for r in (1, 2):
        save_dense(tmp_path / "client-3" / f"rep-{r}", 100 * drawn(r, 2, *SHAPE))
    assert share(opened(tmp_path)) == pytest.approx(before, rel=0.1)


def test_the_estimate_is_the_adapter_or_the_mean_of_replicates(tmp_path: Path) -> None:
    for main in (None, 0.5):
        (adapter, *_) = plant(tmp_path / str(main), 0.5, 3, main)
        replicates = np.mean([dense(r) for r in adapter.replicates], axis=0)
        wanted = replicates if main is None else dense(adapter)
        for m, name in enumerate(MODULES):
            found = read_estimate(adapter, name, "float64", "cpu").dense().numpy()
            np.testing.assert_allclose(found, wanted[m], atol=1e-6)
        assert np.linalg.norm(wanted - dense(adapter.replicates[0])) > 0.1


@pytest.mark.parametrize(("main", "factor"), [(None, 1 / 3), (0.5, REFINEMENT.whole_noise)])
def test_errors_sum_to_the_energy_of_the_spread(
    main: float | None, factor: float, tmp_path: Path
) -> None:
    (adapter, *_) = plant(tmp_path, 0.5, 3, main)
    stack = np.stack([dense(r)[0] for r in adapter.replicates])
    variance = ((stack - stack.mean(axis=0)) ** 2).sum() / 2
    found = errors(adapter, MODULES[0], "float64", "cpu")
    assert sum(map(energy, found)) == pytest.approx(factor * variance, rel=1e-5)
    assert all(energy(u) == pytest.approx((u.dense() ** 2).sum().item(), rel=1e-9) for u in found)


# --- the whole way


def test_of_replicates_alone_the_mean_is_refined_and_written(tmp_path: Path) -> None:
    giving = plant(tmp_path / "in", 0.5, 2)
    exact = Settings(write_global=True, rank="exact", global_rank="exact")
    report = refine(tmp_path / "in", tmp_path / "out", exact)
    assert report.refinement is not None
    assert report.refinement.knowledge == "replicates"
    error = 0.125
    assert report.refinement.expected.noise == pytest.approx(error / (error + OWN), rel=0.12)
    weights = {c.client: c.weight for c in report.refinement.clients}
    means = {a.client: np.mean([dense(r) for r in a.replicates], axis=0) for a in giving}
    wanted = sum(weights[client] * mean for client, mean in means.items())
    found = dense(open_adapter(tmp_path / "out" / "global"))
    assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_what_is_averaged_is_what_was_judged(tmp_path: Path) -> None:
    """Poison in the second replicate of a client that has no other adapter."""
    plant(tmp_path, 0.5, 2)
    save_dense(tmp_path / "client-3" / "rep-2", 20 * drawn(2, 2, *SHAPE))
    found = {c.client: c.verdict for c in detect(tmp_path).clients}
    assert found["client-3"] == "contaminated"


def test_wild_replicates_of_one_client_do_not_average_the_others_away(
    tmp_path: Path,
) -> None:
    scarce = replace(REFINEMENT, replicates_lack=0.9, replicates_enough=1.0)
    settings = Settings(side="left", refinement=scarce)  # as if nobody had data enough
    plant(tmp_path / "in", 0.3, 2, main=0.3)
    before = refine(tmp_path / "in", tmp_path / "1", settings).refinement
    save_dense(tmp_path / "in" / "client-3" / "rep-2", 100 * drawn(2, 2, *SHAPE))
    after = refine(tmp_path / "in", tmp_path / "2", settings).refinement
    assert before is not None
    assert after is not None
    assert before.averaged_away > 0.02
    assert after.averaged_away < before.averaged_away + 0.1


# --- enough data


@pytest.mark.parametrize("main", [None, 0.5])
@pytest.mark.parametrize("count", [2, 4])
def test_what_two_replicates_have_in_common_is_what_is_no_error(
    main: float | None, count: int, tmp_path: Path
) -> None:
    giving = plant(tmp_path, 0.8, count, main)
    pairs, whole = [], []
    for adapter in giving:
        flat = np.stack([dense(r).ravel() for r in adapter.replicates])
        gram = flat @ flat.T
        pairs.append((gram.sum() - np.trace(gram)) / (count * (count - 1)))
        whole.append(np.trace(gram) / count if main is None else (dense(adapter) ** 2).sum())
    found = said(giving)
    assert found is not None
    wanted = float(np.median(np.array(pairs) / np.array(whole)))
    assert found.agreed == pytest.approx(wanted, rel=0.05)


def test_one_replicate_shares_its_data_with_the_adapter_and_agrees_with_nobody_else(
    tmp_path: Path,
) -> None:
    found = said(plant(tmp_path, 0.5, 1, main=0.5))
    assert found is not None
    assert found.agreed is None


def test_where_replicates_agree_nothing_is_averaged_away(tmp_path: Path) -> None:
    plant(tmp_path / "in", 0.3, 2, main=0.3)
    done = refine(tmp_path / "in", tmp_path / "out").refinement
    assert done is not None
    assert done.averaged_away == 0
    assert any("data enough" in w for w in done.warnings)
    assert all(c.unchanged for c in done.clients)
