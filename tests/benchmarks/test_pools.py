"""The pools of trained clients: who is in them, and that both architectures train and are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import pools
from benchmarks.pools import CONTAMINATED, HONEST, Pool, label_of
from clair_cli.formats import open_adapter

ALL = [*pools.pools(), *pools.quick_pools()]


@pytest.mark.parametrize("pool", ALL, ids=lambda p: p.name)
def test_a_pool_has_every_kind_and_one_seed_per_client(pool: Pool) -> None:
    specs = pool.specs()
    labels = [label_of(s.name) for s in specs]
    assert set(labels) == {"clean", *CONTAMINATED, *HONEST}
    assert labels.count("clean") == pool.clean
    assert len({s.seed for s in specs}) == len({s.name for s in specs}) == len(specs)
    assert len({s.init_seed for s in specs}) == (len(specs) if pool.own_init else 1)
    assert [s.benign for s in specs] == [name not in CONTAMINATED for name in labels]


def test_the_regimes_cover_what_is_promised() -> None:
    found = pools.pools()
    assert {(p.architecture, p.width) for p in found} >= {
        ("llama", 64),
        ("llama", 128),
        ("gpt2", 64),
    }
    assert {p.heterogeneity for p in found} == {"none", "family", "personal"}
    assert min(p.samples for p in found) == 16
    assert max(p.samples for p in found) == 500
    assert {p.own_init for p in found} == {False, True}


def test_another_shift_shares_no_seed() -> None:
    one, other = ({s.seed for p in pools.pools(shift) for s in p.specs()} for shift in (0, 1000))
    assert not one & other


def test_honest_oddities_differ_in_data_only() -> None:
    pool = ALL[0]
    samples = {label_of(s.name): s.samples for s in pool.specs()}
    assert samples["few"] < samples["clean"] == samples["short"] < samples["many"]


@pytest.mark.slow
def test_a_pool_trains_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    pool = replace(ALL[-1], clean=2, most=0)
    first = [spec.name for spec in pools.train_pool(pool, tmp_path, 1)]
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    again = [spec.name for spec in pools.train_pool(pool, tmp_path, 1)]
    assert first == again == ["clean-01", "clean-02"]
    assert len(files) == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == files
    assert len(open_adapter(tmp_path / pool.name / "clean-01").updates) == 14


@pytest.mark.slow
def test_gpt2_clients_are_read_with_their_conv1d_layers(tmp_path: Path) -> None:
    train = pools.train
    recipe = train.Recipe(architecture="gpt2", width=32, steps=2)
    train.make_cohort(tmp_path / "in", train.CohortPlan(clients=1), recipe, tmp_path / "base")
    adapter = open_adapter(tmp_path / "in" / "client-01")
    shapes = {m.rpartition("h.0.")[2]: (s.d_out, s.d_in) for m, s in adapter.updates.items()}
    assert len(adapter.updates) == 8
    assert shapes["attn.c_attn"] == (96, 32)
    assert shapes["mlp.c_fc"] == (128, 32)
    with pytest.raises(ValueError, match="gpt2"):
        train.ensure_base(tmp_path / "base", train.Recipe(width=32))
