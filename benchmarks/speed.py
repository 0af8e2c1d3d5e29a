"""How long `clair detect` takes and how much memory, beside the floor of reading and two Gram matrices.

python -m benchmarks.speed --clients 20 --layers 32 [--rank 16] [--threads 2] [--repeat 3]

Adapters have the shapes of Llama-3-8B (all 7 linear layers, bf16). Benign clients are a common update
plus their own noise, three in twenty are contaminated, so that a run does what a run does. The floor,
in one process and with the same threads: read the same tensors, convert them to float32, form B'B and
A A' of every module over all clients. Both are run in turn and the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

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
PREFIX = "base_model.model.model.layers"


def make_adapters(root: Path, clients: int, layers: int, rank: int) -> None:
    """`clients` PEFT folders below `root`; the last 15 % are contaminated."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.split(".")[1] for name in SHAPES],
        "base_model_name_or_path": "llama-3-8b-shapes",
    }
    bad = max(1, round(0.15 * clients))
    for k in range(clients):
        folder = root / f"client-{k + 1:02d}"
        folder.mkdir(parents=True)
        save_file(make_tensors(k, layers, rank, k >= clients - bad), folder / WEIGHTS)
        (folder / "adapter_config.json").write_text(json.dumps(config))


WEIGHTS = "adapter_model.safetensors"


def make_tensors(client: int, layers: int, rank: int, bad: bool) -> dict[str, torch.Tensor]:
    """One client's factors in bf16: shared A up to noise, B common up to noise unless bad."""
    tensors = {}
    for layer in range(layers):
        for i, (name, (d_out, d_in)) in enumerate(SHAPES.items()):
            common = torch.Generator().manual_seed(1000 * layer + i)
            own = torch.Generator().manual_seed(10**6 * (client + 1) + 1000 * layer + i)
            down = torch.randn(rank, d_in, generator=common) / d_in**0.5
            down += 0.2 * torch.randn(rank, d_in, generator=own) / d_in**0.5
            up = torch.randn(d_out, rank, generator=own if bad else common)
            up += 0.5 * torch.randn(d_out, rank, generator=own)
            key = f"{PREFIX}.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = down.bfloat16()
            tensors[f"{key}.lora_B.weight"] = (0.01 * up).bfloat16()
    return tensors


FLOOR = """
import sys, time, torch
from pathlib import Path
from safetensors import safe_open
root, threads = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
began = time.perf_counter()
files = [safe_open(p, "pt") for p in sorted(root.glob("*/adapter_model.safetensors"))]
sums = 0.0
for key in [k for k in files[0].keys() if "lora_B" in k]:
    b = torch.cat([f.get_tensor(key).float() for f in files], dim=1)
    a = torch.cat([f.get_tensor(key.replace("lora_B", "lora_A")).float() for f in files])
    sums += float((b.T @ b)[0, 0]) + float((a @ a.T)[0, 0])
print(time.perf_counter() - began)
"""


def run(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, peak RSS in GB and stdout of a process that must end with 0 or 1."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20, output


def measure(root: Path, threads: int, repeat: int, device: str) -> dict[str, object]:
    """Pairs of runs in turn: medians, and the ratio with start-up (`clair` on nothing) taken off."""
    detect = [sys.executable, "-m", "clair_cli.entry", "detect", str(root)]
    detect += ["--threads", str(threads), "--fail-on", "never", "--device", device]
    start_up = median(
        run([sys.executable, "-c", "import torch, clair_cli.pipeline, clair_cli.cli"])[0]
        for _ in range(3)
    )
    rows = []
    for _ in range(repeat):
        floor = float(run([sys.executable, "-c", FLOOR, str(root), str(threads)])[2])
        seconds, memory, output = run(detect)
        rows.append((seconds, floor, (seconds - start_up) / floor, memory))
    return {
        "detect_s": median(r[0] for r in rows),
        "floor_s": median(r[1] for r in rows),
        "start_up_s": start_up,
        "ratio_less_start_up": median(r[2] for r in rows),
        "ratios": [round(r[2], 3) for r in rows],
        "peak_rss_gb": max(r[3] for r in rows),
        "last_line": output.strip().splitlines()[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of clair detect")
    parser.add_argument("--keep", type=Path, help="make the adapters here, or reuse those that are")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = given.keep or Path(scratch) / "adapters"
        if not root.exists():
            make_adapters(root, given.clients, given.layers, given.rank)
        result = (
            vars(given) | {"keep": None} | measure(root, given.threads, given.repeat, given.device)
        )
    result["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    result["versions"] = f"python {platform.python_version()}, torch {torch.__version__}"
    result["own_peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    main()
