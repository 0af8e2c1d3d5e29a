"""The names in a PEFT LoRA file: which tensors make up which update.

Delta W (d_out, d_in) = scale * lora_B @ lora_A with lora_A (r, d_in) and lora_B (d_out, r);
embeddings alike, under names of their own. Every other tensor is passed through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from clair_cli.cohort import TensorSpec
from clair_cli.errors import LimitExceeded, ShapeMismatch, Unsupported
from clair_cli.formats.safetensors_file import FLOATS
from clair_cli.settings import Settings

PREFIX = "base_model.model."
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^(?:module\.)+"
)
"""What torch.compile, FSDP and DDP put into names; `module` may be a name, but in front."""

FACTOR = re.compile(
    r"(.+)\.lora_(?:(A|B)(?:\.[^.]+)?\.weight|embedding_(A|B)(?:\.[^.]+)?)", re.DOTALL
)
INFIX = re.compile(r"(\.lora_[AB])\.[^.]+(\.(?:weight|bias))$|(\.lora_embedding_[AB])\.[^.]+$")
BIAS = re.compile(r".+\.lora_B(?:\.[^.]+)?\.bias", re.DOTALL)
EXPERTS = re.compile(r"(?:.*\.)?experts(?:\.base_layer)*", re.DOTALL)

REFUSED_KEYS = {
    "lora_magnitude_vector": "DoRA",
    "lora_diag": "KaSA",
    "lora_E": "AdaLoRA",
    "lora_a": "an mlx-lm or torchtune adapter",
    "lora_b": "an mlx-lm or torchtune adapter",
    "lora_down": "a kohya or LyCORIS adapter",
    "lora_up": "a kohya or LyCORIS adapter",
}


def canonical_key(key: str) -> str:
    """The name under which PEFT loads the tensor: no wrappers, no adapter name, its own prefix."""
    bare = WRAPPERS.sub("", key).removeprefix(PREFIX)
    return PREFIX + INFIX.sub(r"\1\2\3", bare)


def find_factors(
    tensors: Mapping[str, TensorSpec], where: str, settings: Settings
) -> dict[str, tuple[str, str]]:
    """Module name -> names of its up and down tensors, in file order.

    Every name is accounted for: ShapeMismatch, Unsupported or LimitExceeded for one that is neither
    half of a pair of matrices nor a tensor that can be passed through untouched.
    """
    keys: dict[str, str] = {}
    for key, spec in tensors.items():
        name = canonical_key(key)
        if name in keys:
            text = f"{spec.file}: tensors {keys[name]!r} and {key!r} both stand for {name!r}"
            raise ShapeMismatch(f"{text}; keep one adapter per file")
        keys[name] = key
    found: dict[str, dict[str, str]] = {}
    for name, key in keys.items():
        if match := FACTOR.fullmatch(name):
            module = match[1].removeprefix(PREFIX)
            _check_tensor(key, module, tensors[key], settings)
            found.setdefault(module, {})[match[2] or match[3]] = key
        else:
            _check_passed(key, name, tensors[key])
    if not found:
        remedy = "save it as a PEFT LoRA adapter, or read it with --as update or --base"
        raise Unsupported(f"{where}: no lora_A and lora_B tensors; {remedy}")
    return {module: _pair(module, sides, tensors) for module, sides in found.items()}


def _pair(
    module: str, sides: Mapping[str, str], tensors: Mapping[str, TensorSpec]
) -> tuple[str, str]:
    if len(sides) == 1:
        (key,), other = sides.values(), "B" if "A" in sides else "A"
        text = f"tensor {key!r} has no lora_{other} beside it"
        raise ShapeMismatch(f"{tensors[key].file}: {text}; save the adapter again, whole")
    return sides["B"], sides["A"]


def _check_passed(key: str, name: str, spec: TensorSpec) -> None:
    odd = [p for p in name.split(".") if p.startswith(("lora_", "hada_", "lokr_"))]
    if odd and not BIAS.fullmatch(name):
        kind = REFUSED_KEYS.get(odd[-1], "of a kind that is not plain LoRA")
        text = f"{spec.file}: tensor {key!r} belongs to {kind}"
        raise Unsupported(f"{text}; convert it with peft.convert_to_lora, or train plain LoRA")


def _check_tensor(key: str, module: str, spec: TensorSpec, settings: Settings) -> None:
    what = f"{spec.file}: tensor {key!r}"
    if len(spec.shape) < 2 or 0 in spec.shape:
        text = (
            f"{what} has shape {list(spec.shape)}, expected a matrix: an un-gathered ZeRO-3 shard"
        )
        raise ShapeMismatch(f"{text}; gather the weights before saving")
    if len(spec.shape) > 2:
        text = f"{what} has {len(spec.shape)} dimensions: LoRA of a convolution"
        raise Unsupported(f"{text}, which clair does not read; leave it out of target_modules")
    if EXPERTS.fullmatch(module):
        text = f"{what} holds one update per expert (target_parameters)"
        raise Unsupported(f"{text}; train plain LoRA on the experts' own modules")
    if spec.dtype not in FLOATS:
        raise Unsupported(f"{what} is {spec.dtype}; re-save it as float32")
    if max(spec.shape) > settings.max_dim:
        text = f"{what} has shape {list(spec.shape)}"
        raise LimitExceeded(f"{text}, the limit is {settings.max_dim} per dimension")
