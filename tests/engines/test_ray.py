"""The engine of Ray on a real cluster of two workers, one of which dies while it works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("ray", reason="needs the extra [ray]")

from clair_cli.engines import ENGINES
from clair_cli.errors import NonFinite, NoVerdict
from clair_cli.pipeline import detect, refine
from clair_cli.renderers import RENDERERS
from clair_cli.report import Report
from clair_cli.settings import Settings
from tests.helpers.adapters import CONFIG, factors, write_folder
from tests.helpers.cohorts import save_cohort
from tests.helpers.ray_cluster import workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
RAY = Settings(engine="ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with workers(2) as found:
        yield found


def told(report: Report) -> dict[str, Any]:
    """All fields of a report, but when and where it was made."""
    found: dict[str, Any] = json.loads(RENDERERS["json"](report))
    del found["run"]
    return found


def test_results_come_in_the_order_of_the_items(cluster: Any) -> None:
    def job(x: int) -> int:
        time.sleep(0.02 * (x % 3))
        return x * x

    assert list(ENGINES["ray"].map(job, range(20))) == [x * x for x in range(20)]


def test_both_workers_work(cluster: Any) -> None:
    def job(_: int) -> str:
        import ray

        time.sleep(0.3)
        return str(ray.get_runtime_context().get_node_id())

    assert len(set(ENGINES["ray"].map(job, range(8)))) == 2


def test_a_failing_job_surfaces_as_it_is_after_the_results_before_it(cluster: Any) -> None:
    def job(x: int) -> int:
        if x == 3:
            raise NonFinite("three")
        return x

    results = ENGINES["ray"].map(job, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(NonFinite, match=r"^three$") as caught:
        next(results)
    assert type(caught.value) is NonFinite


def test_items_are_asked_for_as_there_is_room(cluster: Any) -> None:
    """Two processors, so that four are on the way."""
    asked: list[int] = []

    def items() -> Iterator[int]:
        for k in range(50):
            asked.append(k)
            yield k

    results = ENGINES["ray"].map(lambda x: x, items())
    for k in range(10):
        assert next(results) == k
        assert len(asked) <= k + 4
    results.close()  # type: ignore[attr-defined]


def test_a_worker_killed_while_it_works_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    def job(x: int) -> int:
        if x == 2 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert list(ENGINES["ray"].map(job, range(6))) == list(range(6))
    assert killed.exists()


def test_a_job_that_kills_every_worker_ends_the_run_and_says_so(cluster: Any) -> None:
    def job(x: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return x

    with pytest.raises(NoVerdict, match="a task was lost 4 times"):
        list(ENGINES["ray"].map(job, [0]))


def save_wide(folder: Path, clients: int) -> None:
    """Clients of rank 8 in two modules of 120 x 96, whose common part is a third of them."""
    shapes = {f"layers.{k}.q_proj": (120, 96) for k in range(2)}
    common = factors(shapes, rank=4, seed=1000)
    for k in range(clients):
        own = factors(shapes, rank=4, seed=k)
        both = {key: torch.cat([common[key], own[key]], int("lora_B" in key)) for key in own}
        config = CONFIG | {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
        write_folder(folder / f"client-{k}", both, config)


@pytest.mark.parametrize("clients", [6, 160], ids=["stacked whole", "by sketches"])
def test_the_report_is_that_of_the_local_engine(clients: int, cluster: Any, tmp_path: Path) -> None:
    save_wide(tmp_path, clients)
    local = detect(tmp_path, Settings(threads=1))
    assert local.status == "complete"
    assert all(bool(m.sketch_error) == (clients == 160) for m in local.population.modules)
    assert told(detect(tmp_path, RAY)) == told(local)


def test_the_report_is_the_same_where_clients_fail(cluster: Any, tmp_path: Path) -> None:
    save_cohort(tmp_path, 9)
    file = tmp_path / "client-2" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[max(tensors)][0, 0] = torch.nan
    save_file(tensors, file)
    (tmp_path / "client-5" / "adapter_model.safetensors").write_bytes(b"garbage")
    local = detect(tmp_path, Settings(threads=1))
    assert {c.client for c in local.clients if c.verdict == "broken"} == {"client-2", "client-5"}
    assert told(detect(tmp_path, RAY)) == told(local)


def test_refined_adapters_are_the_same_bytes(cluster: Any, tmp_path: Path) -> None:
    save_cohort(tmp_path / "round", 6)
    for engine in ("local", "ray"):
        settings = Settings(engine=engine, threads=1, rank="auto", write_global=True)
        refine(tmp_path / "round", tmp_path / engine, settings)
    files = sorted((tmp_path / "local").rglob("*.safetensors"))
    assert len(files) == 7
    for file in files:
        other = tmp_path / "ray" / file.relative_to(tmp_path / "local")
        assert other.read_bytes() == file.read_bytes()


def test_a_machine_lost_while_it_works_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    save_cohort(tmp_path, 80)
    extra = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    lost: list[str] = []

    def on_progress(what: str, done: int, total: int) -> None:
        if what == "opening adapters" and done == 10 and not lost:
            cluster.remove_node(extra, allow_graceful=False)
            lost.append(what)

    report = detect(tmp_path, RAY, on_progress)
    assert lost
    assert told(report) == told(detect(tmp_path, Settings(threads=1)))


# --- the command


SLOW = """
import time
from clair_cli.detection import reading
def slow(*given):
    time.sleep(60)
slow.__module__ = "__main__"
reading.read_part = slow
"""


def command(*args: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "clair_cli.entry", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **more},
    )


KILL = """
import os, signal
from clair_cli.detection import reading
real = reading.read_part
def dies(*given):
    try:
        os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return real(*given)
    os.kill(os.getpid(), signal.SIGKILL)
dies.__module__ = "__main__"  # pickled as it is: workers have no such module
reading.read_part = dies
"""


def test_nothing_is_said_of_a_killed_worker(cluster: Any, tmp_path: Path) -> None:
    save_cohort(tmp_path / "round", 6)
    (tmp_path / "sitecustomize.py").write_text(f"MARK = {str(tmp_path / 'mark')!r}\n{KILL}")
    local = command("detect", tmp_path / "round", "-f", "csv")
    ray = command(
        "detect", tmp_path / "round", "--engine", "ray", "-f", "csv", PYTHONPATH=str(tmp_path)
    )
    heard, said = local.communicate(timeout=120), ray.communicate(timeout=120)
    assert (tmp_path / "mark").exists()
    assert (ray.returncode, said) == (0, heard)


def test_nothing_of_ray_is_said(cluster: Any, tmp_path: Path) -> None:
    save_cohort(tmp_path / "round", 6)
    done = [
        command("detect", tmp_path / "round", "--engine", engine, "-f", "csv")
        for engine in ("local", "ray")
    ]
    (local, heard), (out, said) = [process.communicate(timeout=120) for process in done]
    assert (done[1].returncode, out) == (0, local)
    assert said == heard


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_is_answered(
    number: int, code: int, word: str, cluster: Any, tmp_path: Path
) -> None:
    save_cohort(tmp_path / "round", 6)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SLOW)
    process = command(
        "refine",
        tmp_path / "round",
        "--out",
        tmp_path / "out",
        "--engine",
        "ray",
        PYTHONPATH=str(hook),
    )
    time.sleep(12)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (code, "")
    assert said == f"clair: {word}; nothing was left behind\n"
    assert not (tmp_path / "out").exists()
