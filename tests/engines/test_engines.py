"""The contract of every engine: results in order, a failing job surfaces, and the report
is the local engine's wherever and whenever its jobs run. Ray's own tests are in test_ray.py."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import here
from clair_cli.engines import ENGINES
from clair_cli.errors import ChangedWhileRead, UsageError
from clair_cli.formats import open_adapter
from clair_cli.formats.files import read_range
from clair_cli.pipeline import detect, refine
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report
from clair_cli.settings import Settings
from tests.helpers.cohorts import drawn, save_cohort, save_dense


class Elsewhere:
    """Every job gets copies, all items are made before the first is worked on, and they
    are worked on from the last one: as far from the local engine as an engine may be."""

    def map(
        self,
        job: Callable[[Any], Any],
        items: Iterable[Any],
        at: Callable[[Any], str] | None = None,
    ) -> Iterator[Any]:
        given = [pickle.dumps((job, item)) for item in items]
        done = {}
        for k in reversed(range(len(given))):
            own, item = pickle.loads(given[k])
            done[k] = pickle.dumps(own(item))
        return (pickle.loads(done[k]) for k in range(len(given)))

    def everywhere(self, job: Callable[[], object]) -> None:
        job()


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(ENGINES["local"].map(lambda x: x * x, range(20))) == [x * x for x in range(20)]


def test_a_failing_job_surfaces_after_the_results_before_it() -> None:
    results = ENGINES["local"].map(lambda x: 1 // (3 - x), range(5))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


# --- the report is the same wherever jobs run


def told(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RENDERERS["json"](report))
    del found["run"]
    return found


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(ENGINES, "ray", Elsewhere())
    return Settings(engine="ray", threads=1)


def spoil(folder: Path, *clients: str) -> None:
    """One number of the last tensor of each is NaN."""
    for client in clients:
        file = folder / client / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors[max(tensors)][0, 0] = torch.nan
        save_file(tensors, file)


def add_heads(folder: Path) -> None:
    for k, client in enumerate(sorted(folder.iterdir())):
        file = client / "adapter_model.safetensors"
        head = torch.from_numpy(np.float32(drawn(k, 3, 4)))
        save_file(load_file(file) | {"base_model.model.score.weight": head}, file)


@pytest.mark.parametrize("clients", [7, 150], ids=["stacked whole", "by sketches"])
@pytest.mark.parametrize("bad", [(), ("client-2", "client-7")], ids=["fine", "spoiled"])
def test_the_report_is_the_same(
    clients: int, bad: tuple[str, ...], elsewhere: Settings, tmp_path: Path
) -> None:
    save_cohort(tmp_path, clients, strangers=1)
    spoil(tmp_path, *bad)
    add_heads(tmp_path)
    local = detect(tmp_path, Settings(threads=1))
    assert sum(c.verdict == "broken" for c in local.clients) == len(bad)
    assert local.status == "complete"
    assert told(detect(tmp_path, elsewhere)) == told(local)


def test_the_report_is_the_same_since_what_was_sent(elsewhere: Settings, tmp_path: Path) -> None:
    save_cohort(tmp_path / "round", 7)
    save_dense(tmp_path / "sent", 0.1 * drawn(9, 2, 24, 20))
    sent = {"since": tmp_path / "sent"}
    found = detect(tmp_path / "round", replace(elsewhere, **sent))
    assert told(found) == told(detect(tmp_path / "round", Settings(threads=1, **sent)))


def test_refined_adapters_are_the_same(elsewhere: Settings, tmp_path: Path) -> None:
    save_cohort(tmp_path / "round", 7, strangers=1)
    for name, settings in (("here", Settings(threads=1)), ("there", elsewhere)):
        more = replace(settings, rank="auto", write_global=True)
        refine(tmp_path / "round", tmp_path / name, more)
    files = sorted((tmp_path / "here").rglob("*.safetensors"))
    assert len(files) == 7
    for file in files:
        other = tmp_path / "there" / file.relative_to(tmp_path / "here")
        assert other.read_bytes() == file.read_bytes()


# --- files of a file system that several machines share


def test_another_machine_has_another_number_for_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_cohort(tmp_path, 3)
    (file, *_) = open_adapter(tmp_path / "client-1").files.values()
    other = replace(file, identity=(file.identity[0] + 1, *file.identity[1:]))
    with pytest.raises(ChangedWhileRead):
        read_range(other, 0, 8)
    monkeypatch.setattr(here, "_name", ["another"])
    assert read_range(other, 0, 8) == read_range(file, 0, 8)


@pytest.mark.parametrize("field", [1, 2, 3], ids=["inode", "size", "time of writing"])
def test_all_else_must_be_the_same_there_as_well(
    field: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_cohort(tmp_path, 3)
    (file, *_) = open_adapter(tmp_path / "client-1").files.values()
    changed = list(file.identity)
    changed[field] += 1
    monkeypatch.setattr(here, "_name", ["another"])
    with pytest.raises(ChangedWhileRead):
        read_range(replace(file, identity=tuple(changed)), 0, 8)


# --- what is not there


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("ray", ["sample_adapters", "--engine", "ray"], "clair-cli[ray]"),
        ("fsspec", ["s3://bucket/round"], "clair-cli[remote]"),
        ("fsspec", ["memory://bucket/round", "--engine", "ray"], "clair-cli[remote]"),
    ],
)
def test_a_missing_extra_is_named(
    missing: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    (tmp_path / missing).mkdir()
    (tmp_path / missing / "__init__.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "clair_cli.entry", "detect", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert extra in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_cuda_is_for_the_local_engine(elsewhere: Settings, tmp_path: Path) -> None:
    save_cohort(tmp_path, 3)
    with pytest.raises(UsageError, match="--engine local"):
        detect(tmp_path, replace(elsewhere, device="cuda"))


def test_an_address_of_a_client_of_ray_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra [ray]")
    assert not ray.is_initialized()
    save_cohort(tmp_path, 3)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UsageError, match="on a machine of the cluster"):
        detect(tmp_path, Settings(engine="ray"))
