"""Cohorts of PEFT folders on disk, from dense updates, with further adapters of a client inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.helpers.adapters import PREFIX, write_folder
from tests.helpers.builders import factor

Array = NDArray[np.float64]
SHAPE = (24, 20)


def module(number: int) -> str:
    return f"layers.{number}.q_proj"


def save_dense(folder: Path, updates: Sequence[Array] | Array, rank: int | None = None) -> Path:
    """An adapter of one matrix per module, in float32, of full rank unless told otherwise."""
    tensors = {}
    n = min(updates[0].shape) if rank is None else rank
    for m, update in enumerate(updates):
        low = factor(torch.from_numpy(np.asarray(update)).double(), n)
        for name, side in (("lora_A", low.down), ("lora_B", low.up)):
            tensors[f"{PREFIX}{module(m)}.{name}.weight"] = side.float().contiguous()
    config = {"peft_type": "LORA", "r": n, "lora_alpha": n, "target_modules": ["q_proj"]}
    return write_folder(folder, tensors, config)


def drawn(seed: int, *size: int) -> Array:
    """Random matrices whose expected squared Frobenius norm is 1."""
    return np.random.default_rng(seed).standard_normal(size) / np.sqrt(np.prod(size[-2:]))


def truths(clients: int, modules: int = 2, own: float = 0.6, seed: int = 0) -> Array:
    """What each client should have learned, (K, modules, d_out, d_in): a mean and its own."""
    common = drawn(seed, 1, modules, *SHAPE)
    return np.asarray(common + own * drawn(seed + 1, clients, modules, *SHAPE))


def save_cohort(
    folder: Path, clients: int = 6, strangers: int = 0, copies: int = 0, seed: int = 0
) -> list[str]:
    """client-1 and so on: `strangers` last ones share nothing, `copies` before them are one and same."""
    updates = truths(clients, seed=seed)
    if strangers:
        updates[-strangers:] = 1.2 * drawn(seed + 2, strangers, 2, *SHAPE)
    if copies:
        last = clients - strangers
        updates[last - copies : last] = updates[last - copies]
    names = [f"client-{k + 1}" for k in range(clients)]
    for name, update in zip(names, updates, strict=True):
        save_dense(folder / name, update)
    return names
