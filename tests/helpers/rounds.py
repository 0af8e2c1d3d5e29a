"""Later rounds on disk: what was sent, and clients that are it and a change of their own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.commands import CLIENTS, CONFIG, CONTAMINATED, WEIGHTS, forked, samples, verdicts

HONEST = sorted({*CLIENTS} - CONTAMINATED)
Deltas = dict[str, Tensor]
"""Module, as PEFT names it -> Delta W (d_out, d_in) in float64."""


def config(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / CONFIG).read_text())
    return found


def deltas(adapter: Path) -> Deltas:
    """Every update of an adapter of plain LoRA, dense."""
    saved, said = load_file(adapter / WEIGHTS), config(adapter)
    found = {}
    for key in saved:
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            down, up = saved[key].double(), saved[f"{module}.lora_B.weight"].double()
            scale = said["lora_alpha"] / said["r"]
            found[module] = scale * up @ down
    return found


def save_sum(parts: list[tuple[float, Path]], out: Path, alpha: float | None = None) -> Path:
    """The weighted sum of adapters as one more, exactly: ranks add up, at alpha over rank as scale."""
    saved = [load_file(path / WEIGHTS) for _, path in parts]
    scales = [w * config(p)["lora_alpha"] / config(p)["r"] for w, p in parts]
    rank = sum(config(p)["r"] for _, p in parts)
    alpha = rank if alpha is None else alpha
    tensors = {}
    for key in saved[0]:
        if key.endswith("lora_A.weight"):
            tensors[key] = torch.cat([s[key] for s in saved])
        elif key.endswith("lora_B.weight"):
            sides = [s[key] * w for s, w in zip(saved, scales, strict=True)]
            tensors[key] = (torch.cat(sides, 1) * (rank / alpha)).contiguous()
    out.mkdir(parents=True)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    said = config(parts[0][1]) | {"r": rank, "lora_alpha": alpha}
    (out / CONFIG).write_text(json.dumps(said))
    return out


def save_round(first: Path, sent: Path, out: Path, share: float = 0.1) -> Path:
    """Every client of `first` as what was sent and a `share` of its own, each at another alpha."""
    for k, own in enumerate(sorted(p for p in first.iterdir() if (p / WEIGHTS).is_file())):
        save_sum([(1.0, sent), (share, own)], out / own.name, alpha=4.0 + k)
    return out


def clair(*args: object) -> CompletedProcess[str]:
    """The command, forked from a process that has torch loaded."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = forked(*args, stdout=out, stderr=err, timeout=120)
        return CompletedProcess(args, code, out.read_text(), err.read_text())


def detect(*args: object) -> tuple[int, dict[str, Any]]:
    done = clair("detect", *args, "-f", "json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(report: dict[str, Any], verdict: str) -> set[str]:
    return {c for c, v in verdicts(report).items() if v == verdict}


def codes(report: dict[str, Any]) -> set[str]:
    return {r["code"] for r in report["population"]["findings"]}


def refine(place: Path, out: Path, *options: object) -> dict[str, Any]:
    done = clair("refine", place, "--out", out, "--global", *options, "-q")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def make_rounds(folder: Path) -> Path:
    """first/, whose mean of the benign is sent/global/, and round/: that and a tenth of each client's
    own, two of which are contaminated."""
    first = samples(folder / "first")
    done = clair("refine", first, "--out", folder / "sent", "--global", "-q")
    assert done.returncode == 0, done.stderr
    save_round(first, folder / "sent" / "global", folder / "round")
    return folder
