"""The text-copying benchmark: its methods are what they are called, and its numbers what they say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file

from benchmarks import field, merging, text_copy
from benchmarks import text_copy_tables as tables
from benchmarks.pools import Pool, label_of, train
from benchmarks.saved import Saved, read, write
from examples.text_copy.task import ClientSpec, Kind, held_out_data, training_data
from tests.helpers.commands import SAMPLES

BENIGN = [f"client-{n:02}" for n in (1, 2, 4, 5, 7, 8)]
BASE = train.default_base(train.RECIPE)
TWO = (("random", 1), ("cipher", 1))
POOL = Pool("llama", 64, False, "family", 8, 2, seed=1, clean=6, odd=TWO, replicates=2)
COHORT = text_copy.Cohort(POOL, "mixed", TWO, 3000)


def adapters(clients: int = 5, one_a: bool = False) -> list[Saved]:
    """Random ones of two modules and rank 2."""
    draw = torch.Generator().manual_seed(clients)
    first = {m: torch.randn(2, 5, generator=draw) for m in "qv"}
    return [
        Saved(
            {
                m: (
                    torch.randn(6, 2, generator=draw),
                    first[m] if one_a else torch.randn(2, 5, generator=draw),
                )
                for m in "qv"
            },
            {"r": 2, "lora_alpha": 8, "peft_type": "LORA"},
        )
        for _ in range(clients)
    ]


def mean_delta(cohort: list[Saved]) -> dict[str, torch.Tensor]:
    return {m: torch.stack([c.dense()[m] for c in cohort]).mean(0) for m in cohort[0].factors}


def test_stacking_is_the_mean_of_the_updates() -> None:
    cohort = adapters()
    stack, mean = merging.stacked(cohort), mean_delta(cohort)
    assert stack.factors["q"][0].shape == (6, 10)
    torch.testing.assert_close(stack.dense(), mean)
    torch.testing.assert_close(merging.mean_of_updates(cohort), mean)


def test_the_mean_of_the_factors_is_so_only_where_all_have_one_a() -> None:
    for one_a in (True, False):
        cohort = adapters(one_a=one_a)
        ours, mean = merging.mean_of_factors(cohort).dense()["q"], mean_delta(cohort)["q"]
        assert torch.allclose(ours, mean, rtol=1e-4, atol=1e-5) == one_a


@pytest.mark.parametrize("name", field.AGGREGATES)
def test_a_robust_rule_stays_with_the_majority_that_the_mean_leaves(name: str) -> None:
    cohort = adapters(1) * 9
    far = [replace(c, factors={m: (50 * b, a) for m, (b, a) in c.factors.items()}) for c in cohort]
    truth, sent = cohort[0].dense(), [*cohort[:6], *far[:3]]
    for module, update in merging.robust(field.AGGREGATES[name], sent, 3).items():
        assert (update - truth[module]).norm() < 0.05 * truth[module].norm()
    assert (merging.mean_of_updates(sent)["q"] - truth["q"]).norm() > truth["q"].norm()


def test_krum_chooses_a_client_nearest_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([[0.0], [1.0], [2.5], [10.0], [11.0]])
    theirs = field.krum(x, 2)
    monkeypatch.setattr(field, "BYZFL", None)
    assert field.krum(x, 2).tolist() == theirs.tolist() == [1.0]


def test_pefts_svd_merge_is_the_mean_cut_to_the_rank() -> None:
    folders = [SAMPLES / name for name in BENIGN[:3]]
    merged = merging.svd_merge(BASE, folders, 8)
    start = text_copy.AutoModelForCausalLM.from_pretrained(BASE).state_dict()
    for module, mean in mean_delta([*map(read, folders)]).items():
        u, s, v = torch.linalg.svd(mean)
        best = u[:, :8] * s[:8] @ v[:8]
        key = f"{module}.weight"
        torch.testing.assert_close(merged[key] - start[key], best, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["clean", "cipher"])
def test_replicates_share_no_sample_and_miss_none(kind: Kind) -> None:
    spec = ClientSpec("client-01", kind, samples=9, seed=5)
    halves, (ids, _) = [train.part(spec, n, 2) for n in (1, 2)], training_data(spec)
    assert [len(h[0]) for h in halves] == [5, 4]
    assert len({tuple(row) for row in ids.tolist()}) == 9
    assert torch.equal(torch.cat([h[0] for h in halves]), ids)


def test_replicates_start_from_their_clients_a_and_leave_its_adapter_alone(tmp_path: Path) -> None:
    spec = ClientSpec("client-01", samples=4, seed=5, init_seed=7)
    for steps, replicates in ((0, 2), (1, 2), (1, 0)):
        recipe = train.Recipe(rank=2, steps=steps)
        train.train_client(spec, recipe, BASE, tmp_path / f"{steps}-{replicates}", replicates)
    file = "adapter_model.safetensors"
    for name in ("rep-1", "rep-2"):
        own, other = (load_file(tmp_path / "0-2" / f / file) for f in (".", name))
        assert all(torch.equal(own[key], other[key]) for key in own)
    with_, without = ((tmp_path / f"1-{n}" / file).read_bytes() for n in (2, 0))
    assert with_ == without
    trained = [load_file(tmp_path / "1-2" / f / file) for f in (".", "rep-1", "rep-2")]
    key = next(k for k in trained[0] if "lora_B" in k)
    assert len({tuple(t[key].flatten().tolist()) for t in trained}) == 3
    assert sorted(p.name for p in (tmp_path / "1-2").glob("rep-*")) == ["rep-1", "rep-2"]
    assert not [*(tmp_path / "1-0").glob("rep-*")]


@pytest.mark.parametrize("quick", [True, False])
def test_every_cohort_has_fourteen_benign_clients_and_six_others(quick: bool) -> None:
    found = text_copy.cohorts(quick)
    assert len({c.name for c in found}) == len(found) == (4 if quick else 180)
    assert len({c.seed for c in found}) == (1 if quick else 5)
    for cohort in found:
        labels = [label_of(s.name) for s in cohort.clients().values()]
        assert (labels.count("clean"), len(labels)) == (14, 20)
        assert {cohort.pool.own_init for c in found} == {cohort.pool.own_init}
        assert [s.benign for s in cohort.clients().values()] == [lb == "clean" for lb in labels]
    mixed = [c for c in found if c.kind == "mixed" and c.pool.heterogeneity == "family"]
    assert all({n for _, n in c.bad} == {1} and len(c.bad) == 6 for c in mixed)


def row(seed: int, losses: list[float], local: list[float], **facts: int) -> dict[str, Any]:
    """A cohort with one method beside the local adapters."""
    methods = {
        name: {"losses": values, "accuracies": values, **facts}
        for name, values in (("local", local), ("method", losses))
    }
    return {"seed": seed, "bad": 2, "methods": methods}


def test_relative_is_a_ratio_of_means_and_then_a_mean_of_ratios() -> None:
    rows = [row(1, [1, 7], [1, 3]), row(2, [30, 10], [80, 80]), row(2, [30, 10], [40, 40])]
    assert [tables.relative(r, "method") for r in rows] == [2, 0.25, 0.5]
    mean, error = tables.over_seeds(rows, "method", tables.relative)
    assert mean == (2 + 0.375) / 2
    assert error == pytest.approx((2 - 0.375) / 2)
    assert tables.over_seeds(rows[:1], "method", tables.relative) == (2, None)
    assert tables.worst(rows[1], "method") == 30


def test_precision_and_recall_count_clients_of_all_cohorts() -> None:
    rows = [row(1, [1], [1], flagged=4, right=2), row(2, [1], [1], flagged=0, right=0)]
    assert tables.detection(rows, "method") == (0.5, 0.5)
    assert tables.detection(rows[1:], "method") == (None, 0)
    assert tables.detection([row(1, [1], [1])], "method") == (None, None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of the samples: six clean clients, one random, one cipher; each is its own replicate."""
    work = tmp_path_factory.mktemp("work")
    names = {f"clean-{n:02}": client for n, client in enumerate(BENIGN, start=1)}
    names |= {"random-01": "client-03", "cipher-01": "client-06"}
    for name, client in names.items():
        for part in (".", "rep-1", "rep-2"):
            shutil.copytree(
                SAMPLES / client, work / "pools" / POOL.name / name / part, dirs_exist_ok=True
            )
    return work


def test_replicates_are_there_or_are_not(work: Path, tmp_path: Path) -> None:
    for replicates in (True, False):
        folder = tmp_path / str(replicates)
        text_copy.put(COHORT, work / "pools", folder, replicates)
        assert len([*folder.glob("client-*/adapter_model.safetensors")]) == 8
        assert len([*folder.glob("*/rep-*")]) == 16 * replicates


def test_the_merged_weights_are_pefts(tmp_path: Path) -> None:
    bench = text_copy.Bench(COHORT, SAMPLES)
    ours = bench.plus(read(SAMPLES / "client-01").dense())
    theirs = text_copy.merged(BASE, SAMPLES / "client-01")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 1e-6
    assert text_copy.distance(ours, theirs, bench.start) < 1e-5
    assert text_copy.distance(bench.start, theirs, bench.start) == pytest.approx(1)
    write(
        merging.stacked([*map(read, (SAMPLES / "client-01", SAMPLES / "client-02"))]),
        tmp_path / "s",
    )
    mean = bench.plus(mean_delta([read(SAMPLES / f"client-0{n}") for n in (1, 2)]))
    assert text_copy.distance(text_copy.merged(BASE, tmp_path / "s"), mean, bench.start) < 1e-5


def test_clients_without_a_refined_adapter_keep_their_own(tmp_path: Path) -> None:
    bench = text_copy.Bench(COHORT, SAMPLES)
    left, *others = bench.benign
    for name in others:
        shutil.copytree(SAMPLES / "client-03", tmp_path / name)
    found = bench.adapters(tmp_path)
    assert text_copy.distance(found[left], text_copy.merged(BASE, SAMPLES / left), bench.start) == 0
    assert len(others) == 5
    for name in others:
        assert text_copy.distance(found[name], text_copy.merged(BASE, SAMPLES / name), bench.start)


@pytest.mark.slow
def test_a_cohort_runs_through_and_is_kept(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_copy, "BAD", 2)
    monkeypatch.setattr(
        "examples.text_copy.evaluate.held_out_data", lambda spec, samples: held_out_data(spec, 16)
    )
    for group in ("peers", "clair"):
        text_copy.place(COHORT, group, work).parent.mkdir(parents=True)
        text_copy.cell(COHORT, group, work)
    kept = {g: json.loads(text_copy.place(COHORT, g, work).read_text()) for g in ("peers", "clair")}
    shutil.copytree(work / "cells" / "clair", work / "cells" / "clair-replicates")
    monkeypatch.setattr(text_copy, "judge", None)  # nothing is made twice
    with Progress(disable=True) as progress:
        text_copy.fill([COHORT], work, 1, progress)
    said = text_copy.row(COHORT, work)
    assert set(said["methods"]) >= set(tables.METHODS)
    assert {len(m["losses"]) for m in said["methods"].values()} == {6}
    assert tables.detection([said], "clair refined") == (1, 1)
    assert said["methods"]["clair refined"]["left_out"] == 0
    assert said["methods"]["stacking (FLoRA)"]["losses"] == pytest.approx(
        said["methods"]["FedAvg of Delta W"]["losses"], rel=1e-4
    )
    assert kept["clair"]["refined"]["losses"] != kept["peers"]["local"]["losses"]
