"""`clair detect --device cuda` against what the card can do, for 20, 100 and 1 000 clients.

python -m benchmarks.cuda [--clients 20,100,1000] [--modules 8] [--rank 16] [--repeat 3]

Adapters are those of benchmarks.speed. Three floors are counted from their shapes and divided by rates
that are measured on the card in the same run: stored bytes over PCIe from pinned memory, bytes of device
memory, and operations of the products that all clients are compared by. Time is that of reading and
comparing the modules, as the report tells it, medians of processes that run in turn on both devices.
Without a card nothing is measured, and that is said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed import make_adapters, modules
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.sketches import sketch_size

NONE = "no CUDA device: nothing was measured"
STORED, COMPUTED = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
LARGE = 2**28
"""Bytes of a copy that a rate is measured by."""
SQUARE = 8192
"""Rows of the matrices whose product a rate is measured by."""
TIMES = 10


@dataclass(frozen=True, slots=True)
class Floors:
    """What cannot be left out: bytes over PCIe, bytes of device memory, operations; or their rates per
    second."""

    pcie: float
    memory: float
    operations: float

    def seconds(self, rates: Floors) -> Floors:
        """At these rates."""
        return Floors(
            self.pcie / rates.pcie,
            self.memory / rates.memory,
            self.operations / rates.operations,
        )

    @property
    def longest(self) -> float:
        """Copies and computations run beside each other: the slower of them is the floor."""
        return max(self.pcie, self.memory, self.operations)


def floors(clients: int, shapes: Sequence[tuple[int, int]], rank: int) -> Floors:
    """Of one pass over all modules (d_out, d_in) of the clients, all of this rank.

    Every stored number is copied, written, read, written in float32, and read by one product. Few
    clients are compared by the Gram matrices of all their columns; many by sketches: one addition per
    number, A A' of each, and the inner products of all pairs.
    """
    pcie = memory = operations = 0.0
    columns = clients * rank
    for d_out, d_in in shapes:
        numbers = columns * (d_out + d_in)
        pcie += STORED * numbers
        memory += (2 * STORED + 2 * COMPUTED) * numbers
        if columns <= DETECTION.max_columns:
            operations += columns**2 * (d_out + d_in)  # half of a Gram matrix, two per entry
        else:
            size = sketch_size(clients, (d_out, d_in))
            pairs = clients**2 * min(size, d_out) * min(size, d_in)
            operations += numbers + columns * rank * d_in + pairs
    return Floors(pcie, memory, operations)


def rates() -> Floors:
    """Of the card, per second: a pinned copy to it, a copy within it (read and written), a product in
    float32."""
    host = torch.empty(LARGE, dtype=torch.uint8).pin_memory()
    device = torch.empty(LARGE, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(device)
    matrix = torch.randn(SQUARE, SQUARE, device="cuda")
    return Floors(
        LARGE / _seconds(lambda: device.copy_(host, non_blocking=True)),
        2 * LARGE / _seconds(lambda: other.copy_(device)),
        2 * SQUARE**3 / _seconds(lambda: matrix @ matrix),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Of one time, out of TIMES in a row."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMES):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMES


def detected(root: Path, device: str) -> dict[str, Any]:
    """The report of a process on this device."""
    options = ["--device", device, "--fail-on", "never", "--format", "json"]
    command = [sys.executable, "-m", "clair_cli.entry", "detect", str(root), *options]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    report: dict[str, Any] = json.loads(found)
    return report


def reading(report: Mapping[str, Any]) -> float:
    """Seconds of reading and comparing the modules."""
    spent = {step["what"]: step["seconds"] for step in report["run"]["timings"]}
    return float(spent["reading modules"])


def verdicts(report: Mapping[str, Any]) -> dict[str, str]:
    return {c["id"]: c["verdict"] for c in report["clients"]}


def measured(clients: int, given: argparse.Namespace, card: Floors) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        make_adapters(Path(scratch), clients, given.modules, given.rank)
        pairs = [
            [detected(Path(scratch), device) for device in ("cpu", "cuda")]
            for _ in range(given.repeat)
        ]
    cpu, cuda = (median(reading(pair[i]) for pair in pairs) for i in (0, 1))
    shapes = [shape for _, shape in modules(given.modules)]
    floor = floors(clients, shapes, given.rank).seconds(card)
    same = all(verdicts(one) == verdicts(other) for one, other in pairs)
    return {"clients": clients, "cpu": cpu, "cuda": cuda, "floor": floor, "same": same}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    head = ("clients", "CPU, s", "CUDA, s", "PCIe, s", "memory, s", "operations, s")
    head += ("CUDA / the longest", "verdicts equal")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        floor = row["floor"]
        numbers = (row["cpu"], row["cuda"], floor.pcie, floor.memory, floor.operations)
        cells = [str(row["clients"]), *(f"{x:.3g}" for x in numbers)]
        cells += [f"{row['cuda'] / floor.longest:.3g}", "yes" if row["same"] else "NO"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="20,100,1000", help="how many, one after the other")
    parser.add_argument("--modules", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args(words)
    if not torch.cuda.is_available():
        print(NONE)
        return
    card = rates()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{card.pcie / 1e9:.1f} GB/s over PCIe, {card.memory / 1e9:.0f} GB/s of memory,")
    print(f"{card.operations / 1e12:.1f} tera-operations per second in float32\n")
    print(table([measured(clients, given, card) for clients in map(int, given.clients.split(","))]))


if __name__ == "__main__":
    main()
