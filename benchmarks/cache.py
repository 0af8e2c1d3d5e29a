"""What `clair detect --cache` saves: a second run, one client more, the rest of an interrupted scan.

python -m benchmarks.cache [--clients 100] [--modules 14] [--repeat 3] [--drop] [--sizes]

Adapters are those of `benchmarks.speed`: shapes of Llama-3-8B, bf16, rank 16. Runs are made in turn:
without a cache; with an empty one; again; with one client more; and after one that was killed when half
of what it keeps was there. Every report must be the one without a cache. Bytes are all that a process
reads, less those of its start-up. With --drop no file is in the memory of the system when a run begins.
With --sizes: what sketches of a few sizes cost and miss, beside those of all multiples of 8.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed import make_adapters
from clair_cli.detection.sketches import ROOM, SIZES, STEP, sketch_size, sketched
from clair_cli.detection.stacks import stack_module, stack_sketches
from clair_cli.update import LowRankUpdate

RUN = """
import resource, sys, time
began, code, log, args = time.perf_counter(), 0, sys.argv[1], sys.argv[2:]
import torch, clair_cli.pipeline, clair_cli.cli.detect, clair_cli.detection.judging
import clair_cli.detection.reading, clair_cli.detection.reporting
if args:
    from clair_cli.cli import run
    code = run(args)
used = resource.getrusage(resource.RUSAGE_SELF)
read = next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
with open(log, "w") as file:
    print(time.perf_counter() - began, used.ru_utime + used.ru_stime, read, file=file)
sys.exit(code)
"""
SETTLED = 2.1
"""Seconds after which the hash of a file is kept."""


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock and of the processor, MB read, and seconds of opening and reading alone."""

    wall: float
    cpu: float
    read: float
    opening: float = 0.0
    reading: float = 0.0


def measured(scratch: Path, *args: object) -> tuple[Cost, dict[str, Any]]:
    """A run of clair, and its report without what may differ; of no arguments, the start-up alone."""
    log = scratch / "log"
    command = [sys.executable, "-c", RUN, str(log), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    wall, cpu, read = map(float, log.read_text().split())
    if not args:
        return Cost(wall, cpu, read / 1e6), {}
    report = json.loads(done.stdout)
    spent = {t["what"]: t["seconds"] for t in report.pop("run")["timings"]}
    return (
        Cost(wall, cpu, read / 1e6, spent["opening adapters"], spent["reading modules"]),
        report,
    )


def forget(*folders: Path) -> None:
    """Files below the folders are no longer in the memory of the system."""
    os.sync()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


def kept(cache: Path) -> int:
    """How many entries there are."""
    return sum(1 for _ in cache.glob("??/[0-9a-f]*"))


def killed_at(half: int, scratch: Path, cache: Path, *args: object) -> None:
    """A run that is killed once so many entries are there."""
    command = [sys.executable, "-c", RUN, str(scratch / "log"), *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while kept(cache) < half and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()


def turn(given: argparse.Namespace, scratch: Path, root: Path, more: Path) -> dict[str, Cost]:
    """All runs once."""
    cache = scratch / "cache"
    options = ("--fail-on", "never", "-f", "json", "--threads", given.threads, "--device", "cpu")
    base = ("detect", root, *options)
    cached = (*base, "--cache", cache)
    shutil.rmtree(cache, ignore_errors=True)
    costs: dict[str, Cost] = {}
    reports: dict[str, dict[str, Any]] = {}

    def run(name: str, *args: object) -> None:
        if given.drop:
            forget(root, *([cache] if cache.is_dir() else []))
        costs[name], reports[name] = measured(scratch, *args)

    costs["start-up"] = measured(scratch)[0]
    run("without", *base)
    run("empty cache", *cached)
    entries = kept(cache)
    run("again", *cached)
    more.rename(root / more.name)
    run("one client more", *cached)
    run("one client more, without", *base)
    (root / more.name).rename(more)
    shutil.rmtree(cache)
    killed_at(entries // 2, scratch, cache, *cached)
    share = kept(cache) / entries
    run("after a kill", *cached)
    print(f"killed with {share:.0%} of the entries", flush=True)
    assert (
        reports["without"] == reports["empty cache"] == reports["again"] == reports["after a kill"]
    )
    assert reports["one client more"] == reports["one client more, without"]
    return costs


def table(turns: Sequence[dict[str, Cost]]) -> str:
    """Medians over the turns, as Markdown."""
    lines = [
        "| run | opening, s | reading, s | all, s | processor, s | MB read |",
        "|---|---|---|---|---|---|",
    ]
    for name in turns[0]:
        one = [t[name] for t in turns]
        start = [t["start-up"] for t in turns]
        less = 0.0 if name == "start-up" else median(c.read for c in start)
        cells = [
            f"{median(c.opening for c in one):.2f}",
            f"{median(c.reading for c in one):.2f}",
            f"{median(c.wall for c in one):.1f}",
            f"{median(c.cpu for c in one):.1f}",
            f"{median(c.read for c in one) - less:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


COUNTS = (100, 104, 105, 226, 227, 387, 388, 809, 810)
"""Of clients, on both sides of every change."""
SHAPE = (4096, 4096)
ALIKE = 60
"""Clients of which every two are compared exactly, too."""


def before(clients: int) -> int:
    """The size of sketches when it was any multiple of STEP."""
    return min(max(math.isqrt(ROOM // clients) // STEP * STEP, SIZES[0]), SIZES[-1])


def drawn(client: int, rank: int) -> LowRankUpdate:
    """Half of it is everybody's."""
    own, common = torch.Generator().manual_seed(client + 1), torch.Generator().manual_seed(0)
    up, down = (
        torch.randn(d, rank, generator=own) + torch.randn(d, rank, generator=common) for d in SHAPE
    )
    return LowRankUpdate(up, down.T.contiguous(), 1 / SHAPE[0])


def missed(size: int, rank: int) -> float:
    """The root mean square error of an inner product of two clients, of their norms."""
    updates = [drawn(k, rank) for k in range(ALIKE)]
    exact = stack_module("m", updates, 10**6).inner
    found = stack_sketches("m", [sketched(u, size, 0) for u in updates]).inner
    norms = exact.diagonal().sqrt()
    off = (found - exact) / norms[:, None] / norms
    return float(off[~torch.eye(ALIKE, dtype=torch.bool)].square().mean().sqrt())


def sizes(rank: int, repeat: int) -> str:
    """Milliseconds of the processor that a client's share of one module's tables takes, and errors."""
    lines = [
        "| clients | size before | now | ms before | ms now | error before | error now |",
        "|---|---|---|---|---|---|---|",
    ]
    errors: dict[int, float] = {}
    for clients in COUNTS:
        pair = (before(clients), sketch_size(clients, SHAPE))
        spent: dict[int, list[float]] = {size: [] for size in pair}
        pool = {size: [sketched(drawn(k, rank), size, 0) for k in range(8)] for size in spent}
        for size in list(spent) * repeat:
            began = time.process_time()
            stack_sketches("m", [pool[size][k % 8] for k in range(clients)])
            spent[size].append(1e3 * (time.process_time() - began) / clients)
        errors |= {size: missed(size, rank) for size in spent if size not in errors}
        cells = [clients, *pair, *(f"{min(spent[size]):.2f}" for size in pair)]
        cells += [f"{errors[size]:.1e}" for size in pair]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--modules", type=int, default=14)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    given = parser.parse_args()
    if given.sizes:
        torch.set_num_threads(given.threads)
        print(sizes(given.rank, given.repeat))
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root, more = scratch / "adapters", scratch / "client-9999"
        make_adapters(root, given.clients, given.modules, given.rank)
        make_adapters(scratch / "other", 1, given.modules, given.rank)
        (scratch / "other" / "client-0001").rename(more)
        size = sum(p.stat().st_size for p in root.rglob("*.safetensors"))
        time.sleep(SETTLED)
        turns: list[dict[str, Cost]] = []
        for _ in range(given.repeat):
            turns.append(turn(given, scratch, root, more))
            print(table(turns), flush=True)
        cache = sum(p.stat().st_size for p in (scratch / "cache").glob("??/*"))
    print(f"adapters {size / 1e6:.0f} MB, cache {cache / 1e6:.0f} MB, {vars(given)}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"python {platform.python_version()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
