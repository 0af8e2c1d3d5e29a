"""The sample adapters as the arrays of a round: what was sent, and what each client sends back."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

SAMPLES = Path(__file__).parents[2] / "sample_adapters"
TRUTH = SAMPLES.parent / "examples" / "text_copy" / "sample_truth.json"
CONFIG = SAMPLES / "client-01" / "adapter_config.json"
BAD = frozenset(json.loads(TRUTH.read_text())["contaminated"])
Tensors = dict[str, NDArray[np.float32]]
"""Under PEFT's names."""


def clients() -> dict[str, Tensors]:
    """Each sample's tensors."""
    folders = sorted(SAMPLES.glob("client-*"))
    return {f.name: load_file(f / "adapter_model.safetensors") for f in folders}


def start() -> Tensors:
    """An adapter that adds nothing, of the samples' shapes."""
    first = clients()["client-01"]
    return {k: np.zeros_like(v) if "lora_B" in k else v for k, v in first.items()}


def trained_on(
    sent: Tensors, names: list[str], bad: frozenset[str], seed: int = 0
) -> dict[str, Tensors]:
    """A later round from `sent`: the honest change B alike, with noise of their own."""
    draw = np.random.default_rng(seed)
    sides = [k for k in sent if "lora_B" in k]
    size = {k: 0.1 * max(float(np.abs(sent[k]).mean()), 0.01) for k in sides}
    common = {k: size[k] * draw.standard_normal(sent[k].shape) for k in sides}
    found = {}
    for name in names:
        own = {k: size[k] * draw.standard_normal(sent[k].shape) for k in sides}
        change = own if name in bad else {k: common[k] + 0.4 * own[k] for k in sides}
        moved = {k: (sent[k] + change[k]).astype(np.float32) for k in sides}
        found[name] = {**sent, **moved}
    return found


def npy(values: NDArray[np.generic], pickled: bool = False) -> bytes:
    """A whole .npy file."""
    file = BytesIO()
    np.save(file, values, allow_pickle=pickled)
    return file.getvalue()


def as_files(tensors: Tensors) -> dict[str, bytes]:
    return {name: npy(values) for name, values in tensors.items()}


def as_arrays(files: dict[str, bytes]) -> Tensors:
    return {name: np.load(BytesIO(data)) for name, data in files.items()}


def dense(tensors: Tensors, scale: float = 2.0) -> NDArray[np.float64]:
    """All updates in one row."""
    modules = sorted(k.removesuffix(".lora_A.weight") for k in tensors if "lora_A" in k)
    pairs = [(tensors[f"{m}.lora_B.weight"], tensors[f"{m}.lora_A.weight"]) for m in modules]
    return np.concatenate([scale * (b.astype(float) @ a).ravel() for b, a in pairs])
