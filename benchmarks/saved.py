"""A LoRA adapter as PEFT saved it: read whole, changed, written again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Saved:
    """`factors`: module -> lora_B (d_out, r), lora_A (r, d_in); `config`: adapter_config.json.

    The update is `scale * B @ A`, one scale for all modules.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    config: dict[str, Any]

    @property
    def scale(self) -> float:
        """lora_alpha over the rank, or over its root with rsLoRA."""
        rank = float(self.config["r"])
        return float(self.config["lora_alpha"]) / (
            rank**0.5 if self.config.get("use_rslora") else rank
        )

    def dense(self) -> dict[str, Tensor]:
        """module -> Delta W (d_out, d_in), exact."""
        return {m: self.scale * (b @ a) for m, (b, a) in self.factors.items()}


def read(folder: Path) -> Saved:
    """The adapter in `folder`; plain LoRA with one rank and one alpha."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = sorted(k.removesuffix(".lora_A.weight") for k in tensors if k.endswith("lora_A.weight"))
    return Saved(
        {
            n.removeprefix(PREFIX): (tensors[f"{n}.lora_B.weight"], tensors[f"{n}.lora_A.weight"])
            for n in names
        },
        json.loads((folder / "adapter_config.json").read_text()),
    )


def write(adapter: Saved, folder: Path) -> None:
    """Save `adapter` to the new folder `folder` under PEFT's names."""
    folder.mkdir(parents=True)
    tensors = {}
    for module, (b, a) in adapter.factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config, indent=2) + "\n")
