"""Time and memory of `clair detect` and `clair refine`, beside floors that are linear in clients.

python -m benchmarks.speed --clients 20,50,100 --modules 8 [--rank 16] [--width 4096] [--cold]

Adapters have the shapes of Llama-3-8B (bf16). Benign clients are a common update plus directions of
their own and noise, three in twenty are contaminated, so that a run does what a run does. There are
two floors, each a process of its own with the same threads. That of detect reads every tensor once,
hashes it and converts it to float32. That of refine also writes the same bytes with fsync. All are
run in turn. Seconds of the processor are told beside those of the clock, which says little on a
busy machine. Start-up is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
WIDTH = 4096
PREFIX = "base_model.model.model.layers"


Shapes = Mapping[str, tuple[int, int]]
"""Name of a layer's module -> (d_out, d_in)."""


def modules(
    count: int, width: int = WIDTH, layer: Shapes = SHAPES
) -> list[tuple[str, tuple[int, int]]]:
    """The first so many modules, layer by layer; those of another `width` are as slender."""
    shapes = [(n, (a * width // WIDTH, b * width // WIDTH)) for n, (a, b) in layer.items()]
    return [
        (f"{i // len(shapes)}.{n}", s) for i in range(count) for n, s in [shapes[i % len(shapes)]]
    ]


def make_adapters(
    root: Path, clients: int, count: int, rank: int, width: int = WIDTH, layer: Shapes = SHAPES
) -> list[str]:
    """`clients` PEFT folders of `count` modules below `root`: the names of those that are contaminated,
    the last 15 %."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.split(".")[1] for name in layer],
        "base_model_name_or_path": "llama-3-8b-shapes",
    }
    bad = max(1, round(0.15 * clients))
    wanted = modules(count, width, layer)
    common = [_common(i, shape, rank) for i, (_, shape) in enumerate(wanted)]
    names = [f"client-{k + 1:04d}" for k in range(clients)]
    for k, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        tensors = make_tensors(k, common, wanted, k >= clients - bad)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return names[clients - bad :]


WEIGHTS = "adapter_model.safetensors"
Common = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _common(i: int, shape: tuple[int, int], rank: int) -> Common:
    """A (r, d_in), B (d_out, r) of a falling spectrum, and four directions that all vary in."""
    draw = torch.Generator().manual_seed(i + 1)
    down = torch.randn(rank, shape[1], generator=draw) / shape[1] ** 0.5
    up = torch.randn(shape[0], rank, generator=draw) * torch.logspace(0, -1, rank)
    return down, up, torch.randn(shape[0], 4, generator=draw)


def make_tensors(
    client: int,
    common: Sequence[Common],
    wanted: Sequence[tuple[str, tuple[int, int]]],
    bad: bool,
) -> dict[str, torch.Tensor]:
    """One client's factors in bf16: shared A up to noise; B common, with its own part and noise."""
    tensors, draw = {}, torch.Generator().manual_seed(1000 + client)
    for (name, (d_out, d_in)), (base, shared, varying) in zip(wanted, common, strict=True):
        rank, falling = len(base), torch.logspace(0, -1, len(base))
        down = base + 0.1 * torch.randn(rank, d_in, generator=draw) / d_in**0.5
        up = torch.randn(d_out, rank, generator=draw) * falling if bad else shared
        up = up + 0.125 * varying @ torch.randn(4, rank, generator=draw)
        up = up + 0.3 * falling * torch.randn(d_out, rank, generator=draw)
        tensors[f"{PREFIX}.{name}.lora_A.weight"] = down.bfloat16()
        tensors[f"{PREFIX}.{name}.lora_B.weight"] = (0.01 * up).bfloat16()
    return tensors


FLOOR = """
import hashlib, os, sys, time, torch
from pathlib import Path
from safetensors.torch import load
root, threads, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(threads)
began, spent = time.perf_counter(), time.process_time()
for path in sorted(root.glob("*/adapter_model.safetensors")):
    data = path.read_bytes()
    hashlib.sha256(data).digest()
    for tensor in load(data).values():
        tensor.float()
    if out:
        with open(Path(out) / path.parent.name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
print(time.perf_counter() - began, time.process_time() - spent)
"""
START_UP = """
import os
from clair_cli import entry
entry.prepare()
import torch, clair_cli.pipeline, clair_cli.cli.refine, clair_cli.refinement.sparing
os._exit(0)
"""
SAMPLES = Path(__file__).resolve().parent.parent / "sample_adapters"
CLAIR = [sys.executable, "-m", "clair_cli.entry"]


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock and of the processor, and GB of memory at most."""

    wall: float
    cpu: float
    memory: float = 0.0


def run(command: list[str]) -> tuple[Cost, str]:
    """The cost of a process that must end with 0 or 1, and its stdout."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    spent = usage.ru_utime + usage.ru_stime
    return Cost(time.perf_counter() - began, spent, usage.ru_maxrss / 2**20), output


def floor(root: Path, threads: int, out: str) -> Cost:
    """Of reading, hashing and converting, and of writing below `out` where it is given."""
    output = run([sys.executable, "-c", FLOOR, str(root), str(threads), out])[1]
    return Cost(*map(float, output.split()))


def evict(root: Path) -> None:
    """Ask the system to forget what it holds of the files, so that the next read is from the disk."""
    for path in root.glob("*/adapter_model.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(root: Path, scratch: Path, given: argparse.Namespace) -> dict[str, object]:
    """Floors, detect and refine in turn: medians of the costs, and of the ratios turn by turn."""
    options = ["--threads", str(given.threads), "--fail-on", "never", "--device", given.device]
    rows: dict[str, list[Cost]] = {n: [] for n in ("start", "read", "write", "detect", "refine")}
    ready = (lambda: evict(root)) if given.cold else (lambda: None)
    for _ in range(given.repeat):
        rows["start"].append(run([sys.executable, "-c", START_UP])[0])
        ready()
        rows["read"].append(floor(root, given.threads, ""))
        ready()
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            rows["write"].append(floor(root, given.threads, out))
        ready()
        rows["detect"].append(run([*CLAIR, "detect", str(root), *options])[0])
        ready()
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            command = [*CLAIR, "refine", str(root), "--out", f"{out}/refined", *options]
            rows["refine"].append(run(command)[0])
    found: dict[str, object] = {}
    for kind in ("wall", "cpu"):
        seconds = {n: [getattr(c, kind) for c in costs] for n, costs in rows.items()}
        found |= {f"{n}_{kind}_s": round(median(s), 3) for n, s in seconds.items()}
        for name, base in (("detect", "read"), ("refine", "write")):
            turns = zip(seconds[name], seconds["start"], seconds[base], strict=True)
            ratios = [(s - start) / least for s, start, least in turns]
            found[f"{name}_{kind}_ratio"] = round(median(ratios), 2)
    return found | {f"{n}_gb": max(c.memory for c in rows[n]) for n in ("detect", "refine")}


def start_up(turns: int) -> dict[str, list[float]]:
    """Seconds of the clock of `import torch`, in turn with detect on the sample; the sorted ratios."""
    torch_alone = [sys.executable, "-c", "import torch"]
    detect = [*CLAIR, "detect", str(SAMPLES), "--threads", "1"]
    pairs = [[run(command)[0].wall for command in (torch_alone, detect)] for _ in range(turns)]
    return {
        "torch": [round(t, 2) for t, _ in pairs],
        "detect": [round(d, 2) for _, d in pairs],
        "ratio": sorted(round(d / t, 2) for t, d in pairs),
    }


def exponents(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Slopes of log seconds, less start-up, against log clients, by least squares."""
    clients = np.log([row["clients"] for row in rows])
    found = {}
    for name in ("read", "write", "detect", "refine"):
        less = [row["start_cpu_s"] if name in ("detect", "refine") else 0 for row in rows]
        seconds = [max(r[f"{name}_cpu_s"] - s, 1e-3) for r, s in zip(rows, less, strict=True)]
        found[name] = round(float(np.polyfit(clients, np.log(seconds), 1)[0]), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="20,50,100", help="how many, one after the other")
    parser.add_argument("--modules", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--cold", action="store_true", help="Read from the disk every time.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--start-up", type=int, metavar="N", help="of the sample alone, N times")
    given = parser.parse_args()
    if given.start_up:
        print(json.dumps(start_up(given.start_up)))
        return
    rows: list[dict[str, Any]] = []
    for clients in map(int, given.clients.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "adapters"
            make_adapters(root, clients, given.modules, given.rank, given.width)
            rows.append({"clients": clients} | measure(root, Path(scratch), given))
        print(json.dumps(rows[-1]), flush=True)
    result = vars(given) | {"exponents": exponents(rows) if len(rows) > 1 else None}
    result["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    result["versions"] = f"python {platform.python_version()}, torch {torch.__version__}"
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
