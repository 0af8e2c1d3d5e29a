"""What a cluster takes off one machine, and what it does not: seconds and bytes, measured and computed.

python -m benchmarks.cluster --work DIR [--clients 200] [--modules 7] [--repeat 3]

Adapters have the shapes of Llama-3-8B at rank 16, as those of benchmarks.speed. Measured are: detect by
the local engine, by Ray with one and two workers of one processor each, and by Ray from an S3 server of
this machine, in turn; the seconds of the processor that opening a client and reading it take; and those
that the tables of one module take on one machine, by clients. The rest is computed from these.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from benchmarks.speed import SHAPES, make_adapters
from clair_cli.cohort import align
from clair_cli.detection import reading
from clair_cli.detection.sketches import sketch_size, sketched
from clair_cli.detection.stacks import ModuleStack, stack_sketches
from clair_cli.opening import open_entries
from clair_cli.pipeline import detect
from clair_cli.settings import Settings
from clair_cli.update import LowRankUpdate

RANK = 16
MODELS = {"8B": (224, 32 * sum(a + b for a, b in SHAPES.values()) * RANK * 2)}
"""Modules, and bytes of one client's adapter in bf16."""
WIDE = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192)}
WIDE |= {"gate": (28672, 8192), "up": (28672, 8192), "down": (8192, 28672)}
MODELS["70B"] = (560, 80 * sum(a + b for a, b in WIDE.values()) * RANK * 2)
COUNTS = (100, 1_000, 10_000, 100_000)
STORE = 200 * 2**20
CORES, HOUR = 16, 3600


@contextmanager
def cluster(count: int, environment: Mapping[str, str]) -> Iterator[None]:
    """A head that runs nothing, and so many workers of one processor."""
    import ray
    from ray.cluster_utils import Cluster

    quiet = {"RAY_USAGE_STATS_ENABLED": "0", **environment}
    with mock.patch.dict(os.environ, quiet):
        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(count):
                found.add_node(num_cpus=1, object_store_memory=STORE)
            found.wait_for_nodes()
            os.environ["RAY_ADDRESS"] = found.address
            yield
        finally:
            ray.shutdown()
            found.shutdown()


def timed(place: Path | str, engine: str) -> dict[str, float]:
    """Seconds of a detect, and of its steps."""
    began = time.perf_counter()
    report = detect(place, Settings(engine=engine, threads=1, fail_on="never"))
    steps = {t["what"]: t["seconds"] for t in report.run["timings"]}
    names = ("opening adapters", "reading modules")
    return {"all": time.perf_counter() - began, **{n: steps[n] for n in names}}


def runs(root: Path, repeat: int) -> dict[str, dict[str, float]]:
    """Medians of a detect by each engine, the cluster warm."""
    found: dict[str, list[dict[str, float]]] = {}

    def note(name: str, place: Path | str, engine: str) -> None:
        found.setdefault(name, []).append(timed(place, engine))

    for count in (1, 2):
        with cluster(count, {}):
            timed(root, "ray")  # workers load their libraries
            for _ in range(repeat):
                note("local", root, "local")
                note(f"ray, {count} worker{'s' * (count > 1)}", root, "ray")
    with served(root) as (url, environment), cluster(2, environment):
        timed(url, "ray")
        note("ray, 2 workers, S3", url, "ray")
    return {n: {k: median(r[k] for r in rows) for k in rows[0]} for n, rows in found.items()}


@contextmanager
def served(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The adapters behind an S3 server that is a process of Python, on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= dict.fromkeys(names, "testing")
    try:
        with mock.patch.dict(os.environ, environment):
            store = boto3.client("s3")
            store.create_bucket(Bucket="bench")
            for path in root.rglob("*.*"):
                store.upload_file(str(path), "bench", f"round/{path.relative_to(root)}")
            yield "s3://bench/round", environment
    finally:
        server.stop()


def per_gigabyte(root: Path) -> dict[str, float]:
    """Seconds of the processor to open (hash), and to read and sketch, a gigabyte of 10^9 bytes."""
    settings = Settings(threads=1, engine="local")
    began = time.process_time()
    cohort = align(open_entries(root, settings))
    opened = time.process_time() - began
    size = sum(a.size for a in cohort.clients) / 1e9
    watch = reading.Watch(range(len(cohort.clients)), 600.0)
    forms = [reading._Form.of(cohort, settings, m) for m in cohort.modules]
    began = time.process_time()
    for part in reading._parts(forms, [""] * len(cohort.clients), watch):
        assert reading.read_part(cohort, settings, "cpu", part).updates
    return {"open": opened / size, "read": (time.process_time() - began) / size}


def tables(counts: Sequence[int]) -> list[dict[str, float]]:
    """Seconds of the processor and bytes of the tables of one module, 4096 x 4096, by clients."""
    rows = []
    for count in counts:
        draw = torch.Generator().manual_seed(count)
        up, down = (torch.randn(s, generator=draw) for s in ((4096, RANK), (RANK, 4096)))
        size = sketch_size(count, (4096, 4096))
        one = sketched(LowRankUpdate(up, down), size, 0)
        began = time.process_time()
        stack = stack_sketches("m", [one] * count)
        seconds = time.process_time() - began
        squares = sum(t.nbytes for t in (stack.inner, stack.overlap, stack.rows))
        rows.append({"clients": count, "s": seconds, "squares": squares, "all": _bytes(stack)})
    return rows


def _bytes(stack: ModuleStack) -> int:
    held = (getattr(stack, f.name) for f in fields(stack))
    return sum(t.nbytes for t in held if isinstance(t, torch.Tensor))


def computed(rates: Mapping[str, float], rows: Sequence[Mapping[str, float]]) -> list[str]:
    """One line of the table for each model and number of clients, from tables measured of as
    many, or else from the largest."""
    lines = []
    for name, (modules, size) in MODELS.items():
        for count in COUNTS:
            last = next((row for row in rows if row["clients"] == count), rows[-1])
            more = count / last["clients"]
            workers = count * size / 1e9 * (rates["open"] + rates["read"])
            cells = [
                f"{count:,}".replace(",", " "),
                name,
                as_bytes(count * size),
                as_time(workers),
                f"{math.ceil(workers / (CORES * HOUR))}",
                as_bytes((last["all"] - last["squares"]) * more * modules),
                as_bytes(last["squares"] * more**2 * modules),
                as_time(last["s"] * more**2 * modules),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def as_bytes(count: float) -> str:
    """With two digits, in the unit that gives the fewest."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.2g} {unit}" if count < 100 else f"{round(count, -1):.0f} {unit}"
        count /= 1000
    return f"{count:.2g} TB" if count < 100 else f"{round(count, -1):.0f} TB"


def as_time(seconds: float) -> str:
    """With two digits, in the unit that gives the fewest."""
    for most, size, unit in ((100, 1, "s"), (6000, 60, "min"), (3e5, 3600, "h")):
        if seconds < most:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.2g} days"


def main() -> None:
    """Measure, compute, and print it as JSON and as lines of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--modules", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tables", default="100,1000,2000,4000", help="clients of one module")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.work) as scratch:
        root = Path(scratch) / "round"
        make_adapters(root, given.clients, given.modules, RANK)
        turns = [per_gigabyte(root) for _ in range(given.repeat)]
        rates = {name: median(turn[name] for turn in turns) for name in turns[0]}
        print(json.dumps(rates), flush=True)
        rows = tables([*map(int, given.tables.split(","))])
        print(json.dumps(rows, indent=1), flush=True)
        print("\n".join(computed(rates, rows)), flush=True)
        print(json.dumps(runs(root, given.repeat), indent=1))
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; python ", end="")
    print(f"{platform.python_version()}, torch {torch.__version__}; load {os.getloadavg()}")


if __name__ == "__main__":
    main()
