"""Adapters of mlx-lm and Flower on disk: quick ones from plain factors, and cohorts of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tests.helpers.adapters import factors, write_folder

MLX_CONFIG: dict[str, Any] = {
    "fine_tune_type": "lora",
    "lora_parameters": {"dropout": 0.0, "keys": None, "rank": 2, "scale": 20.0},
    "model": "org/tiny",
    "num_layers": 2,
}
LAYERS = {
    f"model.layers.{i}.{m}": shape
    for i in range(3)
    for m, shape in {
        "self_attn.q_proj": (16, 12),
        "self_attn.v_proj": (8, 12),
        "mlp.up_proj": (20, 12),
        "mlp.down_proj": (12, 20),
    }.items()
}
"""Shapes (d_out, d_in) of a cohort's modules."""


def write_mlx(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | bytes | None = MLX_CONFIG,
) -> Path:
    """A client's folder in mlx-lm's layout, by default with one linear layer and one of 3 experts."""
    if tensors is None:
        draw = torch.Generator().manual_seed(0)
        shapes = {"self_attn.q_proj": ((5, 2), (2, 6)), "mlp.up_proj": ((3, 2, 5), (3, 7, 2))}
        tensors = {
            f"model.layers.0.{module}.lora_{side}": torch.randn(shape, generator=draw)
            for module, pair in shapes.items()
            for side, shape in zip("ab", pair, strict=True)
        }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapters.safetensors").write_bytes(save(dict(tensors)))
    if config is not None:
        data = config if isinstance(config, bytes) else json.dumps(config).encode()
        (folder / "adapter_config.json").write_bytes(data)
    return folder


def write_flower(root: Path, rank: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    """root/client/round.npz, whose arrays are those of the PEFT adapter root/reference."""
    reference = write_folder(root / "reference")
    values = factors(rank=rank, seed=5, dtype=dtype)
    (root / "client").mkdir(parents=True)
    np.savez(root / "client" / "round.npz", *(t.numpy() for t in values.values()))
    assert len(load_file(reference / "adapter_model.safetensors")) == len(values)
    return root / "client"


def cohort(clients: int = 5, rank: int = 2) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Per client module -> up (d_out, r), down (r, d_in): alike, but for the last one."""
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    common = {m: (normal(o, rank), normal(rank, i)) for m, (o, i) in LAYERS.items()}
    own = [
        {
            m: (up + 0.2 * normal(*up.shape), down + 0.2 * normal(*down.shape))
            for m, (up, down) in common.items()
        }
        for _ in range(clients - 1)
    ]
    return [*own, {m: (normal(o, rank), normal(rank, i)) for m, (o, i) in LAYERS.items()}]
