"""What other projects would say about a cohort: robust aggregation rules as detectors.

The rules compare clients as flat vectors, X (K, d), one row per client: as servers flatten LoRA
factors (`factors_view`), or the exact updates (`delta_view`). A rule returns a score per client,
higher is more suspicious, and whom it would leave out. A rule that must know how many clients are
contaminated is told the truth and flags that many.

A peer's own code runs where it is installed; else the same formula from here, which the tests
compare with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.byzfl_alone import aggregators
from benchmarks.saved import Saved

Array = NDArray[np.floating]
Judgement = tuple[Array, NDArray[np.bool_]]
"""Scores (K,), flagged (K,)."""

try:
    from krum.primitives.aggregators.multikrum import MultiKrum
except ImportError:
    MultiKrum = None
try:
    from sklearn.cluster import HDBSCAN
except ImportError:
    HDBSCAN = None


BYZFL = aggregators()


@dataclass(frozen=True)
class Rule:
    """`judge(X (K, d), f)` -> scores (K,), flagged (K,); `library` is whose code runs.

    f is the true number of contaminated clients; rules with `needs_count` False ignore it.
    """

    name: str
    library: str
    needs_count: bool
    judge: Callable[[Array, int], Judgement]


def factors_view(cohort: list[Saved]) -> Array:
    """A and B of all modules as they lie in the files, (K, d): one rank for all clients."""
    return _stack([[m for b, a in c.factors.values() for m in (a, b)] for c in cohort])


def delta_view(cohort: list[Saved]) -> Array:
    """Delta W of all modules, exact, (K, d)."""
    return _stack([list(c.dense().values()) for c in cohort])


def _stack(cohort: list[list[torch.Tensor]]) -> Array:
    return torch.stack([torch.cat([m.float().flatten() for m in c]) for c in cohort]).numpy()


def _top(scores: Array, count: int) -> NDArray[np.bool_]:
    """The `count` highest."""
    flagged = np.zeros(len(scores), dtype=bool)
    flagged[np.argsort(-scores, kind="stable")[:count]] = True
    return flagged


def _gram(x: Array) -> Array:
    """Inner products of the rows, in float64, (K, K)."""
    wide = x.astype(np.float64)
    return wide @ wide.T


def _squared_distances(x: Array) -> Array:
    gram = _gram(x)
    square = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    np.fill_diagonal(square, 0)
    return np.maximum(square, 0)


def _cosines(x: Array) -> Array:
    gram = _gram(x)
    norm = np.sqrt(np.diag(gram))
    return gram / np.maximum(np.outer(norm, norm), np.finfo(float).tiny)


def _distance_to(x: Array, centre: Array) -> Array:
    return np.linalg.norm(x - centre, axis=1)


def krum_scores(x: Array, neighbours: int) -> Array:
    """Sum of the squared distances to the nearest others."""
    return np.sort(_squared_distances(x), axis=1)[:, 1 : neighbours + 1].sum(axis=1)


def multi_krum(x: Array, f: int) -> Judgement:
    """K - f - 2 neighbours; keeps the K - f lowest (Blanchard et al., NeurIPS 2017)."""
    k = len(x)
    neighbours = max(1, k - f - 2)
    if MultiKrum:
        rows = torch.from_numpy(x).double()
        scores = MultiKrum.score(rows, n=k, f=f, num_peers=neighbours).numpy()
    else:
        scores = krum_scores(x, neighbours)
    return scores, _top(scores, f)


def krum(x: Array, f: int) -> Array:
    """The client nearest to its K - f - 1 neighbours, (d,), as byzfl counts them."""
    return BYZFL.Krum(f)(x) if BYZFL else x[np.argmin(krum_scores(x, len(x) - f - 1))]


def nearest_neighbour_mixing(x: Array, f: int) -> Array:
    """Each row replaced by the mean of its K - f nearest, itself one of them, (K, d)."""
    nearest = np.argsort(_squared_distances(x), axis=1, kind="stable")[:, : len(x) - f]
    mixing = np.zeros((len(x), len(x)), dtype=x.dtype)
    np.put_along_axis(mixing, nearest, 1 / nearest.shape[1], axis=1)
    return mixing @ x


def trimmed_mean(x: Array, f: int) -> Array:
    """Mean of each coordinate without its f lowest and f highest values, (d,)."""
    if BYZFL:
        return BYZFL.TrMean(f)(x)
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def nnm_trimmed_mean(x: Array, f: int) -> Judgement:
    """Distance to the trimmed mean after mixing (Allouah et al., AISTATS 2023)."""
    f = min(f, (len(x) - 1) // 2)
    scores = _distance_to(x, trimmed_mean(nearest_neighbour_mixing(x, f), f))
    return scores, _top(scores, f)


def geometric_median(x: Array, steps: int = 3, floor: float = 0.1) -> Array:
    """Smoothed Weiszfeld steps from 0, (d,) (RFA: Pillutla et al., IEEE TSP 2022).

    Byzfl's settings: the first step is the mean of the directions, and so few steps are not the
    median yet.
    """
    if BYZFL:
        return BYZFL.GeometricMedian(nu=floor, T=steps)(x)
    centre = np.zeros_like(x[0])
    for _ in range(steps):
        weights = 1 / np.maximum(_distance_to(x, centre), floor)
        centre = (weights / weights.sum()) @ x
    return centre


def to_geometric_median(x: Array, f: int) -> Judgement:
    """Distance to the geometric median."""
    scores = _distance_to(x, geometric_median(x))
    return scores, _top(scores, f)


def coordinate_median(x: Array) -> Array:
    """Median of each coordinate, (d,) (Yin et al., ICML 2018)."""
    return BYZFL.Median()(x) if BYZFL else np.median(x, axis=0)


def to_coordinate_median(x: Array, f: int) -> Judgement:
    """Distance to the coordinate-wise median."""
    scores = _distance_to(x, coordinate_median(x))
    return scores, _top(scores, f)


def foolsgold_weights(x: Array) -> Array:
    """Weight of each client in one round, in [0, 1], (K,) (Fung et al., RAID 2020).

    Clients like each other are taken for sybils, so those that differ keep their weight. The paper
    adds up each client's updates over the rounds; a folder of adapters is one round.
    """
    cosine = _cosines(x) - np.eye(len(x))
    largest = cosine.max(axis=1)
    pardon = largest[:, None] < largest
    ratio = np.divide(largest[:, None], largest, out=np.ones_like(cosine), where=pardon)
    weights = np.clip(1 - (cosine * ratio).max(axis=1), 1e-15, 1)
    weights /= weights.max()
    weights = np.minimum(weights, 0.99)
    return np.clip(np.log(weights / (1 - weights)) + 0.5, 0, 1)


def foolsgold(x: Array, f: int) -> Judgement:
    """1 - weight; flags who has no weight left."""
    weights = foolsgold_weights(x)
    return 1 - weights, weights == 0


def divide_and_conquer(x: Array, f: int, coordinates: int = 10_000) -> Judgement:
    """Squared projection on the first singular direction of a random set of coordinates.

    Shejwalkar & Houmansadr, NDSS 2021, with their one round and c = 1: leaves the f highest out.
    """
    d = x.shape[1]
    drawn = np.random.default_rng(0).choice(d, min(coordinates, d), replace=False, shuffle=False)
    sample = x[:, drawn].astype(np.float64)
    values, vectors = np.linalg.eigh(_gram(sample - sample.mean(axis=0)))
    scores = values[-1] * vectors[:, -1] ** 2
    return scores, _top(scores, f)


def majority_cluster(distances: Array) -> NDArray[np.bool_]:
    """Whom HDBSCAN keeps of distances (K, K) with clusters of K // 2 + 1 or more, one allowed, (K,).

    Two clusters of more than half each cannot be, so it is the smallest single-linkage component,
    by mutual reachability, that holds so many. Hdbscan's min_samples=1, as FLAME has it, is the
    nearest other client; scikit-learn counts the client itself and calls that 2.
    """
    size = len(distances) // 2 + 1
    if HDBSCAN:
        model = HDBSCAN(
            min_cluster_size=size,
            min_samples=2,
            metric="precomputed",
            allow_single_cluster=True,
            copy=True,
        )
        kept = model.fit_predict(distances) == 0
        return kept if kept.any() else ~kept
    nearest = np.sort(distances, axis=1)[:, 1]
    reach = np.maximum(distances, np.maximum(nearest[:, None], nearest))
    component = np.arange(len(distances))
    rows, columns = np.triu_indices(len(distances), k=1)
    for limit in np.unique(reach[rows, columns]):
        joined = reach[rows, columns] == limit
        for i, j in zip(rows[joined], columns[joined], strict=True):
            component[component == component[j]] = component[i]
        largest = np.bincount(component).argmax()
        if (component == largest).sum() >= size:
            break
    return component == largest


def flame(x: Array, f: int) -> Judgement:
    """FLAME's filter (Nguyen et al., USENIX Security 2022): flags who is outside the cluster.

    The score is the cosine distance to the mean direction of the cluster.
    """
    cosine = _cosines(x)
    kept = majority_cluster(np.maximum(1 - cosine, 0))
    mean = kept / kept.sum()
    return 1 - cosine @ mean / np.sqrt(max(mean @ cosine @ mean, 1e-30)), ~kept


def norm_z(x: Array, f: int, limit: float = 3) -> Judgement:
    """|norm - mean| over the sample standard deviation, as chorus-fl does; mute for K <= 10."""
    norms = np.linalg.norm(x, axis=1)
    scores = np.abs(norms - norms.mean()) / max(norms.std(ddof=1), 1e-8)
    return scores, scores > limit


def norm_mad(x: Array, f: int, limit: float = 3) -> Judgement:
    """|norm - median| over 1.4826 MAD."""
    norms = np.linalg.norm(x, axis=1)
    off = np.abs(norms - np.median(norms))
    scores = off / max(1.4826 * np.median(off), 1e-8)
    return scores, scores > limit


def three_sigma(x: Array, f: int, limit: float = 1) -> Judgement:
    """FedML's "3 sigma": distance to the mean of the most central half, by their Krum scores.

    Flags above mean + `limit` sample standard deviations of all distances; FedML's default is 1,
    not 3. FedML looks at one tensor of the model only; this is the whole vector.
    """
    half = max(1, -(-len(x) // 2) - 1)
    central = np.argsort(krum_scores(x, half), kind="stable")[:half]
    scores = _distance_to(x, x[central].mean(axis=0))
    return scores, scores > scores.mean() + limit * scores.std(ddof=1)


def _whose(package: str, there: object) -> str:
    return f"{package} {version(package)}" if there else "own"


_byzfl_version = _whose("byzfl", BYZFL)
RULES: tuple[Rule, ...] = (
    Rule("Multi-Krum", _whose("krum", MultiKrum), True, multi_krum),
    Rule(
        "NNM + trimmed mean", f"own, {_byzfl_version}" if BYZFL else "own", True, nnm_trimmed_mean
    ),
    Rule("geometric median", _byzfl_version, True, to_geometric_median),
    Rule("coordinate median", _byzfl_version, True, to_coordinate_median),
    Rule("DnC", "own", True, divide_and_conquer),
    Rule("FoolsGold", "own", False, foolsgold),
    Rule("FLAME", _whose("scikit-learn", HDBSCAN), False, flame),
    Rule("norm z", "own", False, norm_z),
    Rule("norm z, MAD", "own", False, norm_mad),
    Rule("FedML 3-sigma, default", "own", False, three_sigma),
    Rule("FedML 3-sigma, 3", "own", False, partial(three_sigma, limit=3)),
)
"""NNM itself is always from here: byzfl's copies the cohort K - f times. The tests compare them."""

Aggregate = Callable[[Array, int], Array]
"""X (K, d) and the number of contaminated clients -> one update for all, (d,)."""
AGGREGATES: dict[str, Aggregate] = {
    "Krum": krum,
    "Multi-Krum": lambda x, f: x[~multi_krum(x, f)[1]].mean(axis=0),
    "coordinate median": lambda x, f: coordinate_median(x),
    "trimmed mean": trimmed_mean,
    "geometric median": lambda x, f: geometric_median(x, steps=100),
    "NNM + trimmed mean": lambda x, f: trimmed_mean(nearest_neighbour_mixing(x, f), f),
}
"""What a server would send out; the medians are not told f. More steps than byzfl's 3: the median."""


def adaptersentry(folder: Path) -> dict[str, str] | None:
    """Client -> AdapterSentry's action (allow, review, block) or "failed"; None if not installed.

    It judges each file of `folder`/<client>/adapter_model.safetensors alone, and names files by
    their hash: identical files get one verdict.
    """
    if find_spec("adaptersentry") is None:
        return None
    clients = {
        f.parent.name: "sha256:" + sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.glob("*/adapter_model.safetensors"))
    }
    with TemporaryDirectory() as out:
        command = [sys.executable, "-m", "adaptersentry", "batch", "--workers", "1", "--no-cache"]
        subprocess.run(
            [*command, "--input-dir", folder, "--output-dir", out],
            env={**os.environ, "HOME": out},  # it keeps a database of its runs there
            stdout=subprocess.DEVNULL,
            check=False,  # 1: some adapters could not be analysed
        )
        actions = sentry_actions(Path(out))
    return {client: actions.get(content, "failed") for client, content in clients.items()}


def sentry_actions(out: Path) -> dict[str, str]:
    """Hash of a file -> AdapterSentry's action, of what a batch has written to `out`."""
    results = [json.loads(f.read_text()) for f in out.glob("run_*/*.json")]
    return {
        r["artifact"]["content_hash"]: r["verdict"]["action"] for r in results if r.get("verdict")
    }
