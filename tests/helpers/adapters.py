"""Adapter folders on disk: quick ones from plain factors, and real ones that PEFT saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def factors(
    modules: Mapping[str, tuple[int, int]] | None = None,
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """lora_A (r, d_in) and lora_B (d_out, r) of each module, under PEFT's names."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for module, (d_out, d_in) in (modules or dict.fromkeys(MODULES, (6, 5))).items():
        found[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, d_in, generator=draw).to(dtype)
        found[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(d_out, rank, generator=draw).to(
            dtype
        )
    return found


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | bytes | None = CONFIG,
    name: str = "adapter_model.safetensors",
) -> Path:
    """A client's folder in PEFT's layout; `config` None leaves adapter_config.json out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(
        save(dict(factors() if tensors is None else tensors), {"format": "pt"})
    )
    if config is not None:
        data = config if isinstance(config, bytes) else json.dumps(config).encode()
        (folder / "adapter_config.json").write_bytes(data)
    return folder


def with_tensors(folder: Path, extra: dict[str, Tensor], seed: int = 0, **config: Any) -> Path:
    """A PEFT folder of plain factors and of `extra` tensors, under PEFT's prefix."""
    named = {PREFIX + name: tensor for name, tensor in extra.items()}
    return write_folder(folder, factors(seed=seed) | named, CONFIG | config)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_llama(seed: int = 0) -> Any:
    """A Llama with 2 layers of width 16: q 16x16, k and v 8x16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def tiny_gpt2(seed: int = 0) -> Any:
    """A GPT-2 with 2 layers of width 16, whose projections are Conv1D, stored (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model: Any = GPT2LMHeadModel(config)
    return model.eval()


def peft_model(base: Any, seed: int = 1, dtype: torch.dtype | None = None, **config: Any) -> Any:
    """`base` with a LoRA whose factors are all drawn at random, none left at zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(**config), autocast_adapter_dtype=dtype is None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def save_peft(model: Any, folder: Path) -> Path:
    """What save_pretrained writes; a named adapter lies one folder deeper, as PEFT puts it."""
    model.save_pretrained(str(folder))
    return folder


def clone(folder: Path, target: Path) -> Path:
    """A copy of a whole folder."""
    return Path(shutil.copytree(folder, target))
