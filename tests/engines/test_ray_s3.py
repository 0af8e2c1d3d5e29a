"""A cohort behind an S3 server, read by this process, and by two workers, one of which dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto", reason="needs moto[server]")
pytest.importorskip("s3fs", reason="needs the extra [remote]")

from clair_cli.detection import reading
from clair_cli.errors import UsageError
from clair_cli.formats.remote import PREFIX
from clair_cli.pipeline import detect, refine
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report
from clair_cli.settings import Settings
from tests.helpers.cohorts import save_cohort
from tests.helpers.ray_cluster import workers
from tests.helpers.s3 import BUCKET, SECRET, serving, upload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
CLIENTS = 90
"""More than are stacked whole, and than one job reads."""


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with serving() as environment:
        yield environment


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, server: dict[str, str]) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("round")
    save_cohort(folder, CLIENTS, strangers=3)
    return folder, upload(folder, "many")


@pytest.fixture(scope="module")
def cluster(server: dict[str, str]) -> Iterator[Any]:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    with workers(2, server) as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    def fetched() -> set[str]:
        return {n for n in os.listdir(tempfile.gettempdir()) if n.startswith(PREFIX)}

    before = fetched()
    yield
    assert fetched() <= before


def told(report: Report) -> dict[str, Any]:
    """All of a report but when and where it was made, and from where."""
    found: dict[str, Any] = json.loads(RENDERERS["json"](report))
    del found["run"], found["inputs"]["root"]
    return found


def test_the_report_is_that_of_the_folder(cohort: tuple[Path, str]) -> None:
    folder, url = cohort
    report = detect(url, Settings(threads=1))
    assert report.inputs["root"] == url
    assert told(report) == told(detect(folder, Settings(threads=1)))


def test_a_cluster_makes_the_same_report(cluster: Any, cohort: tuple[Path, str]) -> None:
    folder, url = cohort
    assert told(detect(url, Settings(engine="ray"))) == told(detect(folder, Settings(threads=1)))


def test_a_cluster_writes_the_same_refined_adapters(
    cluster: Any, server: dict[str, str], tmp_path: Path
) -> None:
    save_cohort(tmp_path / "round", 6)
    url = upload(tmp_path / "round", "few")
    refine(url, tmp_path / "there", Settings(engine="ray", write_global=True))
    refine(tmp_path / "round", tmp_path / "here", Settings(threads=1, write_global=True))
    files = sorted((tmp_path / "here").rglob("*.safetensors"))
    assert len(files) == 7
    for file in files:
        other = tmp_path / "there" / file.relative_to(tmp_path / "here")
        assert other.read_bytes() == file.read_bytes()


def test_a_worker_killed_while_it_reads_costs_nothing(
    cluster: Any, cohort: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = cohort
    mark, real = tmp_path / "killed", reading.read_part

    def dies(*given: Any) -> Any:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        return real(*given)

    dies.__module__ = "__main__"  # pickled as it is
    monkeypatch.setattr(reading, "read_part", dies)
    report = detect(url, Settings(engine="ray"))
    monkeypatch.undo()
    assert mark.exists()
    assert told(report) == told(detect(folder, Settings(threads=1)))


def test_a_machine_lost_with_what_it_fetched_costs_nothing(
    cluster: Any, cohort: tuple[Path, str]
) -> None:
    folder, url = cohort
    extra = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    lost: list[str] = []

    def on_progress(what: str, done: int, total: int) -> None:
        if what == "opening adapters" and done == total and not lost:
            cluster.remove_node(extra, allow_graceful=False)
            lost.append(what)

    report = detect(url, Settings(engine="ray"), on_progress)
    assert lost
    assert told(report) == told(detect(folder, Settings(threads=1)))


def test_a_hostile_key_leads_nowhere(server: dict[str, str], tmp_path: Path) -> None:
    import boto3

    save_cohort(tmp_path / "round", 4)
    url = upload(tmp_path / "round", "hostile")
    store = boto3.client("s3")
    file = tmp_path / "round" / "client-1" / "adapter_model.safetensors"
    store.upload_file(str(file), BUCKET, "hostile/../../evil.safetensors")
    report = detect(url, Settings(threads=1))
    assert len(report.clients) == 4
    (finding,) = [f for f in report.population.findings if f.code == "CLR110"]
    assert "'../../evil.safetensors'" in finding.message


def test_the_command_prints_the_url_and_no_credentials(
    server: dict[str, str], cohort: tuple[Path, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "clair_cli.entry", "detect", cohort[1], "-f", "json", "-vv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    report = json.loads(done.stdout)
    assert report["inputs"]["root"] == cohort[1]
    assert SECRET not in done.stdout + done.stderr
    assert cohort[1] in report["run"]["command"]


def test_a_bucket_that_is_not_there_is_a_usage_error(server: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="s3://nobodys/x: ") as caught:
        detect("s3://nobodys/x")
    assert SECRET not in str(caught.value)
