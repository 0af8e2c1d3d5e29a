"""Adapters of PEFT's other tuners as PEFT saves them, and their true updates."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.adapters import MODULES, PREFIX, tiny_gpt2, tiny_llama, write_folder

Case = tuple[Any, dict[str, Any]]
"""A function that makes the base model, and what the config says beside peft_type."""

ATTENTION = ["q_proj", "k_proj", "v_proj"]
PROJECTIONS = [*ATTENTION, "o_proj", "gate_proj", "down_proj"]


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "LOHA": {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)},
    "LOKR": {"lokr_w1": (2, 1), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 5)},
    "ADALORA": {"lora_A": (2, 5), "lora_B": (6, 2), "lora_E": (2, 1)},
    "DELORA": {
        "delora_A": (2, 5),
        "delora_B": (6, 2),
        "delora_lambda": (1,),
        "delora_w_norm": (5,),
    },
    "VERA": {"vera_lambda_b": (6,), "vera_lambda_d": (2,)},
    "MISS": {"miss_block": (2, 6)},
}
"""The tensors of one module 6 x 5 of rank 2, without those that all modules share."""


def tuner_tensors(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors of an adapter of MODULES."""
    shapes = {f"{PREFIX}{m}.{k}": s for m in MODULES for k, s in SHAPES[kind].items()}
    if kind == "VERA":
        shapes |= {"base_model.vera_A": (2, 5), "base_model.vera_B": (6, 2)}
    draw = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=draw).to(dtype) for k, s in shapes.items()}


def tuner_config(kind: str) -> dict[str, Any]:
    """What its config must say."""
    rank = {"init_r": 2} if kind == "ADALORA" else {"r": 2}
    alpha = {"alpha": 5, "lora_alpha": 5}
    return {"peft_type": kind, "target_modules": ["q_proj", "v_proj"]} | rank | alpha


def write_tuner(folder: Path, kind: str, **fields: Any) -> Path:
    """A small adapter without the library; `fields` are of its config, Ellipsis for none."""
    config = {k: v for k, v in (tuner_config(kind) | fields).items() if v is not ...}
    return write_folder(folder, tuner_tensors(kind), config)


class Convolutions(nn.Module):
    """A 2-D and a 1-D convolution and a linear layer on images of 4 x 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 24, (3, 2))
        self.line = nn.Conv1d(24, 10, 3)
        self.head = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 4, 6, 6) -> (n, 6)."""
        return self.head(self.line(self.conv(x).mean(-1)).mean(-1))


def convolutions(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Convolutions().eval()


def wide() -> Any:
    """A Llama whose updates of rank r^2 are far from full."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False))
    return model.eval()


CASES: dict[str, Case] = {
    "loha": (wide, {"r": 3, "alpha": 5, "target_modules": PROJECTIONS}),
    "loha full": (tiny_llama, {"r": 6, "alpha": 5, "target_modules": PROJECTIONS}),
    "loha patterns": (
        tiny_llama,
        {
            "r": 2,
            "alpha": 5,
            "target_modules": ATTENTION,
            "rank_pattern": {"layers.0.self_attn.q_proj": 3, "v_proj": 1},
            "alpha_pattern": {"layers.1.self_attn.k_proj": 9.5},
        },
    ),
    "loha conv": (
        convolutions,
        {
            "r": 2,
            "alpha": 3,
            "target_modules": ["conv", "line", "head"],
            "use_effective_conv2d": True,
        },
    ),
    "loha conv flat": (
        convolutions,
        {"r": 2, "alpha": 3, "target_modules": ["conv", "line"]},
    ),
    "lokr": (wide, {"r": 2, "alpha": 3, "target_modules": PROJECTIONS}),
    "lokr both": (
        wide,
        {"r": 2, "alpha": 3, "target_modules": PROJECTIONS, "decompose_both": True},
    ),
    "lokr full": (tiny_llama, {"r": 8, "alpha": 3, "target_modules": PROJECTIONS}),
    "lokr factor": (
        wide,
        {"r": 3, "alpha": 3, "target_modules": PROJECTIONS, "decompose_factor": 2},
    ),
    "lokr conv": (
        convolutions,
        {"r": 2, "alpha": 3, "target_modules": ["conv", "line"], "use_effective_conv2d": True},
    ),
    "lokr conv full": (convolutions, {"r": 8, "alpha": 3, "target_modules": ["conv"]}),
    "adalora": (
        tiny_llama,
        {"init_r": 5, "lora_alpha": 7, "target_modules": PROJECTIONS, "total_step": 10},
    ),
    "adalora gpt2": (
        tiny_gpt2,
        {
            "init_r": 3,
            "lora_alpha": 7,
            "target_modules": ["c_attn"],
            "total_step": 10,
            "fan_in_fan_out": True,
        },
    ),
    "delora": (
        tiny_llama,
        {
            "r": 3,
            "delora_lambda": 5,
            "target_modules": PROJECTIONS,
            "rank_pattern": {"o_proj": 2},
        },
    ),
    "vera": (tiny_llama, {"r": 5, "target_modules": ATTENTION}),
    "miss": (tiny_llama, {"r": 4, "target_modules": PROJECTIONS}),
    "miss odd": (tiny_llama, {"r": 5, "target_modules": PROJECTIONS}),
    "miss mini": (
        tiny_llama,
        {"r": 4, "mini_r": 4, "init_weights": "mini", "target_modules": PROJECTIONS},
    ),
}
FLATTENED = "loha conv flat"
"""Its kernels are flattened on disk, and the file does not tell them from inputs."""
CONVERTED = [name for name in CASES if not name.startswith("miss")]


def tuned(name: str, seed: int = 1, **more: Any) -> Any:
    """The base model of a case with its adapter, all of whose parameters are drawn at random."""
    import peft

    make, config = CASES[name]
    kind = name.split()[0]
    named = {"loha": "LoHa", "lokr": "LoKr", "adalora": "AdaLora"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that PEFT turns by itself
        made = getattr(peft, f"{named.get(kind, kind.title())}Config")(**config | more)
        model = peft.get_peft_model(make(), made)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model.eval()


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """What save_pretrained writes."""
    model.to(dtype).save_pretrained(str(folder))
    return folder


def true_updates(model: Any, base: Any) -> dict[str, Tensor]:
    """Module -> merged minus base weight in float64, (d_out, d_in) with kernels flattened."""
    before = base.double().state_dict()
    after = copy.deepcopy(model).double().merge_and_unload().state_dict()
    turned = "GPT2" in type(base).__name__
    found = {}
    for key, weight in after.items():
        if not torch.equal(weight, before[key]):
            delta = weight - before[key]
            found[key.removesuffix(".weight")] = delta.T if turned else delta.flatten(1)
    return found


def output(model: Any) -> Tensor:
    """What a model says to a fixed input."""
    with torch.no_grad():
        if hasattr(model, "config") and hasattr(model.config, "vocab_size"):
            return model(torch.arange(8)[None]).logits
        return model(torch.linspace(-1, 1, 288).reshape(2, 4, 6, 6))
