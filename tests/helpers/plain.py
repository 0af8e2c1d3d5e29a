"""Plain matrices on disk: state dicts as .npz and .safetensors, and the base model they came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file as load_safetensors
from safetensors.numpy import save_file as save_safetensors

Tensors = dict[str, "np.ndarray[Any, Any]"]
SUFFIXES = (".npz", ".safetensors")


def tensors(seed: int = 0, dtype: str = "f4") -> Tensors:
    """A small network's state: two matrices, a bias, a counter, a kernel of a convolution."""
    draw = np.random.default_rng(seed)
    return {
        "in.weight": draw.standard_normal((6, 5)).astype(dtype),
        "in.bias": draw.standard_normal(6).astype(dtype),
        "out.weight": draw.standard_normal((3, 6)).astype(dtype),
        "steps": np.array(7, dtype="i8"),
        "kernel": draw.standard_normal((2, 2, 3)).astype(dtype),
    }


def save(path: Path, values: Mapping[str, Any]) -> Path:
    """`values` at `path`, by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **dict(values))
    else:
        save_safetensors({k: np.ascontiguousarray(v) for k, v in values.items()}, path)
    return path


def load(path: Path) -> Tensors:
    """Every tensor of a file, by the libraries a user would take."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    return dict(load_safetensors(path))
