"""The peers' rules do what their papers and their libraries do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import field
from benchmarks.saved import Saved, write


def cohort(seed: int = 0, bad: int = 5, clients: int = 14, d: int = 400) -> np.ndarray:
    """Clients around one mean, the last `bad` around another that is as long."""
    draw = np.random.default_rng(seed)
    x = 0.5 * draw.standard_normal((clients, d)) + draw.standard_normal(d)
    x[clients - bad :] += 2 * draw.standard_normal(d)
    return x


def saved(seed: int) -> Saved:
    draw = torch.Generator().manual_seed(seed)
    factors = {
        m: (torch.randn(6, 2, generator=draw), torch.randn(2, 5, generator=draw)) for m in "qv"
    }
    return Saved(factors, {"r": 2, "lora_alpha": 8, "peft_type": "LORA"})


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer is installed."""
    for library in ("MultiKrum", "HDBSCAN", "BYZFL"):
        monkeypatch.setattr(field, library, None)


def test_views():
    one, two = saved(1), saved(2)
    factors, delta = field.factors_view([one, two]), field.delta_view([one, two])
    assert factors.shape == (2, 2 * (6 * 2 + 2 * 5))
    assert delta.shape == (2, 2 * 6 * 5)
    b, a = two.factors["q"]
    np.testing.assert_array_equal(factors[1, :22], np.concatenate([a.flatten(), b.flatten()]))
    np.testing.assert_allclose(delta[1, :30], 4 * (b @ a).numpy().ravel(), rtol=1e-5)


@pytest.mark.parametrize("rule", field.RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_rule_answers(rule: field.Rule, dtype: type):
    x = cohort(1).astype(dtype)
    before = x.copy()
    scores, flagged = rule.judge(x, 5)
    np.testing.assert_array_equal(x, before)
    assert scores.shape == flagged.shape == (14,)
    assert flagged.dtype == bool
    assert np.isfinite(scores).all()
    if rule.needs_count:
        assert flagged.sum() == 5
        assert not rule.judge(x, 0)[1].any()
        assert scores[flagged].min() >= scores[~flagged].max()
    again = rule.judge(x, 5)
    np.testing.assert_array_equal(scores, again[0])
    np.testing.assert_array_equal(flagged, again[1])


@pytest.mark.parametrize("rule", field.RULES, ids=lambda r: r.name)
@pytest.mark.usefixtures("own")
def test_own_formula_is_the_library(rule: field.Rule, monkeypatch: pytest.MonkeyPatch):
    own = rule.judge(cohort(2), 5)
    monkeypatch.undo()
    scores, flagged = rule.judge(cohort(2), 5)
    np.testing.assert_allclose(own[0], scores, rtol=1e-9)
    np.testing.assert_array_equal(own[1], flagged)


@pytest.mark.parametrize(
    "name", ["Multi-Krum", "NNM + trimmed mean", "geometric median", "coordinate median", "DnC"]
)
@pytest.mark.usefixtures("own")
def test_easy_contamination_is_found(name: str):
    rule = next(r for r in field.RULES if r.name == name)
    assert rule.judge(cohort(3, bad=4), 4)[1].tolist() == [False] * 10 + [True] * 4


def test_krum_scores_by_hand():
    x = np.array([[0.0], [1.0], [3.0], [10.0]])
    assert field.krum_scores(x, 2).tolist() == [1 + 9, 1 + 4, 4 + 9, 49 + 81]


def test_krum_scores_are_krums():
    krum = pytest.importorskip("krum.primitives.aggregators.multikrum")
    x = cohort(4)
    theirs = krum.MultiKrum.score(torch.from_numpy(x), n=14, f=5)
    np.testing.assert_allclose(field.krum_scores(x, 14 - 5 - 2), theirs.numpy(), rtol=1e-9)


def test_multi_krum_keeps_whom_flower_keeps():
    flower = pytest.importorskip("flwr.serverapp.strategy.multikrum")
    from flwr.app import ArrayRecord, RecordDict

    x = cohort(5)
    replies = [RecordDict({"arrays": ArrayRecord([row])}) for row in x]
    kept = flower.select_multikrum(replies, num_malicious_nodes=5, num_nodes_to_select=9)
    ours = [r for r, bad in zip(replies, field.multi_krum(x, 5)[1], strict=True) if not bad]
    assert {id(r) for r in kept} == {id(r) for r in ours}


@pytest.mark.parametrize("f", [0, 1, 6])
def test_mixing_is_byzfls(f: int):
    if not field.BYZFL:
        pytest.skip("byzfl is not installed")
    x = cohort(6)
    np.testing.assert_allclose(
        field.nearest_neighbour_mixing(x, f), field.BYZFL.NNM(f)(x), rtol=1e-9, atol=1e-12
    )


@pytest.mark.usefixtures("own")
def test_mixing_and_trimming_by_hand():
    x = np.array([[0.0], [1.0], [3.0], [10.0]])
    assert field.nearest_neighbour_mixing(x, 2).ravel().tolist() == [0.5, 0.5, 2.0, 6.5]
    assert field.trimmed_mean(x, 1).tolist() == [2.0]


@pytest.mark.usefixtures("own")
def test_geometric_median_ends_in_the_minimum():
    x = cohort(7)
    centre = field.geometric_median(x, steps=500)
    pull = x - centre
    assert np.linalg.norm((pull / np.linalg.norm(pull, axis=1)[:, None]).sum(axis=0)) < 1e-6


def test_foolsgold_is_the_papers_algorithm():
    x = cohort(8, clients=9, bad=3)
    k = len(x)
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    cosine = [[float(unit[i] @ unit[j]) if i != j else 0.0 for j in range(k)] for i in range(k)]
    largest = [max(row) for row in cosine]
    weights = []
    for i in range(k):
        row = [
            cosine[i][j] * (largest[i] / largest[j] if largest[j] > largest[i] else 1)
            for j in range(k)
        ]
        weights.append(1 - max(row))
    weights = [min(w / max(weights), 0.99) for w in weights]
    expected = [min(max(np.log(w / (1 - w)) + 0.5, 0), 1) for w in weights]
    np.testing.assert_allclose(field.foolsgold_weights(x), expected, atol=1e-9)


def test_foolsgold_takes_the_likeness_of_clients_for_sybils():
    draw = np.random.default_rng(9)
    x = draw.standard_normal((8, 500))
    x[5:] = x[5] + 0.01 * draw.standard_normal((3, 500))
    assert field.foolsgold(x, 3)[1].tolist() == [False] * 5 + [True] * 3
    assert field.foolsgold(np.ones((4, 3)), 0)[0].tolist() == [0] * 4  # all alike: nobody differs


def test_dnc_is_the_singular_value_decomposition():
    x = cohort(10)
    centred = x - x.mean(axis=0)
    first = np.linalg.svd(centred)[2][0]
    np.testing.assert_allclose(field.divide_and_conquer(x, 5)[0], (centred @ first) ** 2)


@pytest.mark.parametrize("library", ["here", "sklearn", "hdbscan"])
def test_majority_cluster(library: str, monkeypatch: pytest.MonkeyPatch):
    """The same clients from the formula, from scikit-learn, and from hdbscan, which FLAME uses."""
    if library != "here":
        pytest.importorskip(library)
    for seed in range(30):
        draw = np.random.default_rng(seed)
        points = draw.standard_normal((int(draw.integers(4, 30)), 3))
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        monkeypatch.setattr(field, "HDBSCAN", None)
        kept = field.majority_cluster(distances)
        assert kept.sum() > len(points) / 2
        monkeypatch.undo()
        if library == "sklearn":
            assert field.majority_cluster(distances).tolist() == kept.tolist()
        if library == "hdbscan":
            from hdbscan import HDBSCAN

            model = HDBSCAN(
                min_cluster_size=len(points) // 2 + 1,
                min_samples=1,
                metric="precomputed",
                allow_single_cluster=True,
            )
            assert (model.fit_predict(distances) >= 0).tolist() == kept.tolist()


@pytest.mark.usefixtures("own")
def test_flame_keeps_the_tightest_majority():
    x = cohort(11, bad=4)
    scores, flagged = field.flame(x, 0)
    assert flagged[10:].all()
    assert not flagged.all()
    kept = x[~flagged] / np.linalg.norm(x[~flagged], axis=1)[:, None]
    mean = kept.mean(axis=0)
    cosine = x @ mean / np.linalg.norm(x, axis=1) / np.linalg.norm(mean)
    np.testing.assert_allclose(scores, 1 - cosine)


def test_norm_z_cannot_fire_in_small_cohorts():
    x = np.ones((12, 4))
    x[-1] *= 1e6
    assert field.norm_z(x, 1)[1].tolist() == [False] * 11 + [True]
    assert not field.norm_z(x[2:], 1)[1].any()
    assert field.norm_mad(x[2:], 1)[1].tolist() == [False] * 9 + [True]
    assert not field.norm_z(np.ones((5, 3)), 0)[1].any()


def test_three_sigma_by_hand():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    scores, flagged = field.three_sigma(x, 0)
    # the two with the lowest sum over two neighbours are 1 and 2
    np.testing.assert_allclose(scores, [1.5, 0.5, 0.5, 1.5, 98.5])
    assert flagged.tolist() == [False] * 4 + [True]
    assert not field.three_sigma(x, 0, limit=3)[1].any()


def test_adaptersentry(tmp_path: Path):
    pytest.importorskip("adaptersentry")
    for name in ("a", "b"):
        write(saved(ord(name)), tmp_path / name)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "adapter_model.safetensors").write_bytes(b"no tensors here")
    verdicts = field.adaptersentry(tmp_path)
    assert list(verdicts) == ["a", "b", "c"]
    assert {verdicts["a"], verdicts["b"]} <= {"allow", "review", "block"}
    assert verdicts["c"] == "failed"


def test_adaptersentry_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(field, "find_spec", lambda _: None)
    assert field.adaptersentry(tmp_path) is None
