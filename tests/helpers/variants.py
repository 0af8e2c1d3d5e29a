"""Small models and LoRA configs of every kind that PEFT trains, and what each adapter does to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clair_cli.update import LowRankUpdate
from tests.helpers.adapters import peft_model, save_peft, tiny_gpt2, tiny_llama


class Convolutions(nn.Module):
    """A 1-D, a 2-D and a 3-D convolution of one volume."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3, padding=1)
        self.two = nn.Conv2d(4, 6, (3, 2))
        self.three = nn.Conv3d(4, 6, (1, 2, 3))
        self.parted = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is (batch, 4, 5, 5, 5)."""
        found = [self.one(x[..., 0, 0]), self.two(x[..., 0]), self.three(x), self.parted(x[..., 0])]
        made: Tensor = self.head(torch.stack([f.flatten(2).mean(2) for f in found]).sum(0))
        return made


class Attention(nn.Module):
    """torch's own attention, whose q, k and v are one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is (batch, length, 8)."""
        made: Tensor = self.head(self.attn(x, x, x)[0])
        return made


def seeded(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same weights on every call."""

    def build() -> Any:
        torch.manual_seed(0)
        return make().eval()

    return build


def tiny_mixtral() -> Any:
    """One layer, 4 experts of width 12: gate_up_proj (4, 24, 8), down_proj (4, 8, 12)."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=16,
    )
    return MixtralForCausalLM(config)


def tiny_gpt_oss() -> Any:
    """One layer, 3 experts whose weights are stored (expert, in, out)."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=16,
        layer_types=["full_attention"],
        pad_token_id=0,
    )
    model = GptOssForCausalLM(config)
    for parameter in model.parameters():  # its experts begin empty
        nn.init.normal_(parameter, std=0.2)
    return model


def tied_llama() -> Any:
    """Its head is its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def untied_gpt2() -> Any:
    """What is added to its embedding is not added to its head."""
    model = tiny_gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def replicated() -> Any:
    """The tiny Llama with its second layer twice, each with weights of its own."""
    from peft.tuners.tuners_utils import replicate_layers

    model = tiny_llama()
    replicate_layers(model, [[0, 2], [1, 2]])
    layers = model.model.layers
    layers[2].load_state_dict(
        {k: v.clone() for k, v in layers[2].state_dict().items()}, assign=True
    )
    return model


def tokens() -> Tensor:
    return torch.arange(12)[None]


def volume() -> Tensor:
    return torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(5))


def sequence() -> Tensor:
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True, slots=True)
class Variant:
    """A base, the LoRA on it, an input; `parameters` are the experts' by the module in the file."""

    config: Mapping[str, Any]
    base: Callable[[], Any] = tiny_llama
    given: Callable[[], Tensor] = tokens
    parameters: Mapping[str, str] = field(default_factory=dict)
    bare: Callable[[], Any] | None = None
    """The base with all layers that the adapter has."""

    def adapted(self, **more: Any) -> Any:
        """The base with a LoRA of random factors."""
        return peft_model(self.base(), **{"r": 4, "lora_alpha": 6, **self.config, **more})

    def saved(self, folder: Path, **more: Any) -> Path:
        """What PEFT saves of it."""
        return save_peft(self.adapted(**more), folder)

    def output(self, model: Any) -> Tensor:
        """What `model` makes of the input."""
        with torch.no_grad():
            made = model(self.given())
        found: Tensor = getattr(made, "logits", made)
        return found

    def loaded(self, folder: Path) -> Any:
        """The base with the adapter in `folder`, by PEFT."""
        from peft import PeftModel

        return PeftModel.from_pretrained(self.base(), str(folder)).eval()

    def weight(self, model: Any, module: str) -> Tensor:
        """The weight that an update belongs to, as a (d_out, d_in) view of it."""
        expert = re.search(r"\[(\d+)\]$", module)
        module = module.removesuffix(expert[0] if expert else "")
        place = model.get_submodule(re.sub(r"\.base_layer", "", module))
        name = type(place).__name__
        if parameter := self.parameters.get(module):
            whole = getattr(place, parameter).data
            found = whole if expert is None else whole[int(expert[1])]
            return found.T if getattr(place, "is_transposed", False) else found
        weight = place.in_proj_weight.data if name == "MultiheadAttention" else place.weight.data
        return weight.T if name in ("Embedding", "Conv1D") else weight.reshape(len(weight), -1)

    def added(self, updates: Mapping[str, LowRankUpdate]) -> Any:
        """The base with the updates in its weights."""
        model = (self.bare or self.base)()
        for module, update in updates.items():
            self.weight(model, module).add_(update.dense())
        return model


MOE = "model.layers.0.mlp.experts"
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
NESTED = {f"{MOE}.base_layer": "gate_up_proj", MOE: "down_proj"}
VARIANTS: dict[str, Variant] = {
    "plain": Variant({"target_modules": ["q_proj", "v_proj"]}),
    "regex": Variant({"target_modules": r".*layers\.1.*_proj"}),
    "patterns": Variant(
        {
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 3, "v_proj": 1},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "v_proj": 7},
        }
    ),
    "rslora": Variant({"target_modules": ["q_proj"], "use_rslora": True}),
    "conv1d of gpt2": Variant(
        {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}, untied_gpt2
    ),
    "embedding and head": Variant({"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "convolutions": Variant(
        {"target_modules": ["one", "two", "three", "head"]}, seeded(Convolutions), volume
    ),
    "bias": Variant({"target_modules": ["head"], "bias": "all"}, seeded(Convolutions), volume),
    "modules_to_save": Variant({"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
    "token rows": Variant({"target_modules": ["v_proj"], "trainable_token_indices": [1, 3]}),
    "layer_replication": Variant(
        {"target_modules": ["v_proj"], "layer_replication": [[0, 2], [1, 2]]}, bare=replicated
    ),
    "gaussian": Variant({"target_modules": ["v_proj"], "init_lora_weights": "gaussian"}),
    "orthogonal": Variant({"target_modules": ["v_proj"], "init_lora_weights": "orthogonal"}),
    "mica": Variant({"target_modules": ["v_proj"], "init_lora_weights": "mica"}),
    "eva": Variant({"target_modules": ["v_proj"], "init_lora_weights": "eva"}),
    "experts": Variant(
        {"target_parameters": BOTH, "target_modules": []}, seeded(tiny_mixtral), parameters=NESTED
    ),
    "one parameter of experts": Variant(
        {"target_parameters": BOTH[1:], "target_modules": ["q_proj"]},
        seeded(tiny_mixtral),
        parameters={MOE: "down_proj"},
    ),
    "experts stored turned": Variant(
        {"target_parameters": BOTH, "target_modules": ["q_proj"], "use_rslora": True},
        seeded(tiny_gpt_oss),
        parameters=NESTED,
    ),
    "a matrix as parameter": Variant(
        {"target_parameters": ["q_proj.weight"], "target_modules": []},
        parameters={f"model.layers.{i}.self_attn.q_proj": "weight" for i in range(2)},
    ),
    "tied weights": Variant(
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        seeded(tied_llama),
    ),
}
