"""The names in a PEFT LoRA file: which tensors make up which update.

Delta W (d_out, d_in) = scale * lora_B @ lora_A with lora_A (r, d_in) and lora_B (d_out, r);
embeddings alike, under names of their own. Every other tensor is passed through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from clair_cli.cohort import TensorSpec
from clair_cli.errors import LimitExceeded, ShapeMismatch, Unsupported
from clair_cli.formats.safetensors_file import FLOATS
from clair_cli.settings import Settings

PREFIX = "base_model.model."
WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
    r"|(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, FSDP and DDP put into names; `module` may be a name, but in front."""

NAME = r"(?!lora_)[^.]+"
"""Of an adapter, between the factor's name and its ending."""
FACTOR_NAME = re.compile(
    rf"(.+)\.lora_(?:(A|B)(?:\.{NAME})?\.weight|embedding_(A|B)(?:\.{NAME})?|(magnitude_vector))",
    re.DOTALL,
)
INFIX = re.compile(
    rf"(\.lora_[AB])\.{NAME}(\.(?:weight|bias))$|(\.lora_embedding_[AB])\.{NAME}$"
    r"|(\.lora_magnitude_vector)(?:\.[^.]+){1,2}$"
)
BIAS = re.compile(rf"(.+)\.lora_B(?:\.{NAME})?\.bias", re.DOTALL)
UNUSED = re.compile(r".+\.lora_(?:velora_embed|monteclora_sampler)(?:\..+)?", re.DOTALL)
"""Of VeLoRA and MonteCLoRA: they matter while training alone."""
EXPERT = re.compile(r"\[\d+\]$")
WRAPPED = re.compile(r"(?:\.base_layer)+(?:\.out_proj)?(?=\[\d+\]$|$)")
"""Wrapped parameters of one module lie in each other, and an attention's out_proj in the attention."""

REFUSED_KEYS = {
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
    return PREFIX + INFIX.sub(r"\1\2\3\4", bare)


def owner(module: str) -> str:
    """The module of the base model that PEFT has wrapped, of an update or of a tensor's module."""
    return EXPERT.sub("", WRAPPED.sub("", module))


class Parameters:
    """The config's target_parameters, looked up by the module that each may be in."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.everywhere: list[tuple[int, str]] = []
        self.within: dict[str, list[tuple[int, str]]] = {}
        for place, name in enumerate(dict.fromkeys(names)):
            module, dot, last = name.rpartition(".")
            found = self.within.setdefault(module, []) if dot else self.everywhere
            found.append((place, last))

    def of(self, whole: str) -> tuple[str, ...]:
        """The last parts of those that may be in the module `whole`, in the order of the config.

        A name without a dot may be in every module, another one in those that end in what it names.
        """
        found = list(self.everywhere)
        if self.within:
            starts = [0, *(i + 1 for i, c in enumerate(whole) if c == ".")]
            for start in starts:
                found += self.within.get(whole[start:], ())
        return tuple(dict.fromkeys(last for _, last in sorted(found)))

    def names_of(self, module: str) -> tuple[str, ...]:
        """What PEFT may call `module` where it looks up patterns; several where the file does not tell.

        That is the wrapped module, or those parameters that may be in it.
        """
        whole = owner(module)
        return tuple(f"{whole}.{last}" for last in self.of(whole)) or (whole,)


def find_factors(
    tensors: Mapping[str, TensorSpec], where: str, settings: Settings
) -> dict[str, dict[str, str]]:
    """Module name -> names of its tensors "B", "A", and of DoRA "m", in file order.

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
        if match := FACTOR_NAME.fullmatch(name):
            module, side = match[1].removeprefix(PREFIX), match[2] or match[3] or "m"
            _check_tensor(key, side, tensors[key], settings)
            found.setdefault(module, {})[side] = key
        else:
            _check_passed(key, name, tensors[key])
    if not found:
        remedy = "save it as a PEFT LoRA adapter, or read it with --as update or --base"
        raise Unsupported(f"{where}: no lora_A and lora_B tensors; {remedy}")
    for sides in found.values():
        _check_pair(sides, tensors)
    return found


def _check_pair(sides: Mapping[str, str], tensors: Mapping[str, TensorSpec]) -> None:
    for other in {"A", "B"} - sides.keys():
        key = next(iter(sides.values()))
        text = f"tensor {key!r} has no lora_{other} beside it"
        raise ShapeMismatch(f"{tensors[key].file}: {text}; save the adapter again, whole")


def _check_passed(key: str, name: str, spec: TensorSpec) -> None:
    odd = [p for p in name.split(".") if p.startswith(("lora_", "hada_", "lokr_"))]
    if odd and not BIAS.fullmatch(name) and not UNUSED.fullmatch(name):
        kind = REFUSED_KEYS.get(odd[-1], "an adapter that is not plain LoRA")
        text = f"{spec.file}: tensor {key!r} belongs to {kind}"
        raise Unsupported(f"{text}; convert it with peft.convert_to_lora, or train plain LoRA")


def _check_tensor(key: str, side: str, spec: TensorSpec, settings: Settings) -> None:
    what = f"{spec.file}: tensor {key!r}"
    if len(spec.shape) < 1 + (side != "m") or 0 in spec.shape:
        text = (
            f"{what} has shape {list(spec.shape)}, expected a matrix: an un-gathered ZeRO-3 shard"
        )
        raise ShapeMismatch(f"{text}; gather the weights before saving")
    if spec.dtype not in FLOATS:
        raise Unsupported(f"{what} is {spec.dtype}; re-save it as float32")
    if max(spec.shape[0], math.prod(spec.shape[1:])) > settings.max_dim:
        text = f"{what} has shape {list(spec.shape)}"
        raise LimitExceeded(f"{text}, the limit is {settings.max_dim} per dimension")
