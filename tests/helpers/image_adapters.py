"""LoRA files of image models on disk: by the layouts that kohya's trainers and diffusers document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tests.helpers.builders import factor
from tests.helpers.cohorts import drawn, truths

SHAPES = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": ((6, 5), ()),
    "lora_unet_down_blocks_0_resnets_0_conv1": ((4, 3), (3, 3)),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": ((7, 4), ()),
}
"""Module -> (d_out, in), kernel."""
TRAINING = {"ss_network_dim": "2", "ss_network_alpha": "1.0", "ss_base_model_version": "sd_v1"}
PLAIN = {"format": "pt"}
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def kohya_factors(
    shapes: Mapping[str, tuple[tuple[int, int], tuple[int, ...]]] = SHAPES,
    rank: int = 2,
    alpha: float | None = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    names: tuple[str, str] = ("lora_up", "lora_down"),
) -> dict[str, Tensor]:
    """lora_up, lora_down and a 0-dimensional alpha of each module."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for module, ((d_out, d_in), kernel) in shapes.items():
        up, down = (d_out, rank, *(1 for _ in kernel)), (rank, d_in, *kernel)
        for name, shape in zip(names, (up, down), strict=True):
            found[f"{module}.{name}.weight"] = torch.randn(shape, generator=draw).to(dtype)
        if alpha is not None:
            found[f"{module}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return found


def dense(tensors: Mapping[str, Tensor], module: str, up: str = "up", down: str = "down") -> Tensor:
    """alpha / r * up @ down of one module of a kohya file, kernels flattened, in float64."""
    b = tensors[f"{module}.lora_{up}.weight"].double().flatten(1)
    a = tensors[f"{module}.lora_{down}.weight"].double().flatten(1)
    alpha = float(tensors.get(f"{module}.alpha", torch.tensor(len(a))))
    return alpha / len(a) * b @ a


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """One .safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(dict(tensors), dict(metadata)))
    return path


def write_kohya(path: Path, tensors: Mapping[str, Tensor] | None = None) -> Path:
    """A flat file of sd-scripts, with what it says about its training."""
    return write_file(path, kohya_factors() if tensors is None else tensors, TRAINING)


def diffusers_factors(
    modules: Mapping[str, tuple[int, int]] | None = None, rank: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """lora.down (r, in) and lora.up (out, r) of each module of a unet."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for module, (d_out, d_in) in (modules or {ATTENTION: (6, 5), "conv_in": (4, 3)}).items():
        found[f"unet.{module}.lora.down.weight"] = torch.randn(rank, d_in, generator=draw)
        found[f"unet.{module}.lora.up.weight"] = torch.randn(d_out, rank, generator=draw)
    return found


def lora_metadata(**fields: Any) -> dict[str, str]:
    """The metadata of a file whose unet was trained with these fields of a LoraConfig."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3} | fields
    data = json.dumps({f"unet.{name}": value for name, value in config.items()})
    return {"format": "pt", "lora_adapter_metadata": data}


def write_diffusers(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A client's folder as StableDiffusionPipeline.save_lora_weights leaves it."""
    chosen = diffusers_factors() if tensors is None else tensors
    said = lora_metadata() if metadata is None else metadata
    write_file(folder / "pytorch_lora_weights.safetensors", chosen, said)
    return folder


def kohya_cohort(folder: Path, clients: int = 6, strangers: int = 1, rank: int = 8) -> list[str]:
    """client-1.safetensors and so on, flat, of which the last `strangers` share nothing."""
    updates = truths(clients)
    updates[-strangers:] = 1.2 * drawn(2, strangers, *updates.shape[1:])
    names = [f"client-{k + 1}" for k in range(clients)]
    for name, client in zip(names, updates, strict=True):
        tensors = {}
        for m, update in enumerate(client):
            low = factor(torch.from_numpy(update).double(), rank)
            module = f"lora_unet_down_blocks_{m}_attentions_0_proj_in"
            tensors[f"{module}.lora_up.weight"] = low.up.float()[:, :, None, None].contiguous()
            tensors[f"{module}.lora_down.weight"] = low.down.float()[:, :, None, None].contiguous()
            tensors[f"{module}.alpha"] = torch.tensor(float(rank))
        write_file(folder / f"{name}.safetensors", tensors, TRAINING)
    return names
