"""The table of costs is made of sizes that are those of real files and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cluster import MODELS, RANK, as_bytes, as_time, computed, tables
from benchmarks.speed import SHAPES, make_adapters


def test_an_adapter_of_the_model_has_the_bytes_of_the_table(tmp_path: Path) -> None:
    make_adapters(tmp_path, 1, len(SHAPES), RANK)
    (file,) = tmp_path.rglob("*.safetensors")
    modules, size = MODELS["8B"]
    assert modules == 32 * len(SHAPES)
    assert file.stat().st_size * 32 == pytest.approx(size, rel=0.01)


def test_tables_grow_with_the_square_of_the_clients_and_all_else_with_them() -> None:
    few, many = tables([70, 140])
    assert many["squares"] == 4 * few["squares"] == 3 * 8 * 140**2
    assert many["all"] - many["squares"] < 2.5 * (few["all"] - few["squares"])


def test_one_line_for_each_model_and_number_of_clients() -> None:
    last = {"clients": 1000.0, "s": 1.0, "squares": 24e6, "all": 33e6}
    lines = computed({"open": 1.0, "read": 3.0}, [last])
    assert len(lines) == 8
    assert lines[1].startswith("| 1 000 | 8B | 84 GB | 5.6 min | 1 | 2 GB | 5.4 GB | 3.7 min |")


@pytest.mark.parametrize(
    ("seconds", "said"), [(33.4, "33 s"), (330, "5.5 min"), (36e3, "10 h"), (864e3, "10 days")]
)
def test_seconds_are_told_in_a_unit_that_fits(seconds: float, said: str) -> None:
    assert as_time(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(84e6, "84 MB"), (5.38e11, "540 GB"), (5.38e13, "54 TB"), (1.3e14, "130 TB")],
)
def test_bytes_are_told_in_a_unit_that_fits(count: float, said: str) -> None:
    assert as_bytes(count) == said
