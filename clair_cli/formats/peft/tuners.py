"""PEFT tuners other than LoRA whose updates have a closed form: which tensors make which update.

Their tensors hold no low-rank update but those of their own form, so that all are written back as
plain LoRA, but for MiSS, whose block any update of the cohort fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clair_cli.cohort import TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, ShapeMismatch, Unsupported
from clair_cli.formats.containers import Contents, Described, not_judged
from clair_cli.formats.factors import stored_dtype
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.peft.config import LoraConfig, parse_config
from clair_cli.formats.peft.keys import PREFIX, WRAPPERS, owner
from clair_cli.formats.peft.whole import find_trained_whole
from clair_cli.formats.safetensors_file import FLOATS
from clair_cli.report import Reason
from clair_cli.settings import Settings


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors of one module by their roles, and its rank by the config."""

    name: str
    names: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    rank: int

    def shape(self, role: str, dimensions: int) -> tuple[int, ...]:
        """Of a tensor. Raises ShapeMismatch unless it has so many dimensions."""
        tensor = self.tensors[self.names[role]]
        if len(tensor.shape) != dimensions:
            expected = f"{dimensions} dimensions"
            raise ShapeMismatch(f"{self._has_shape(role)}, expected {expected}; save it again")
        return tensor.shape

    def expect(self, **shapes: tuple[int, ...]) -> None:
        """Raises ShapeMismatch where a tensor has another shape than the rest and the config say."""
        for role, shape in shapes.items():
            if self.tensors[self.names[role]].shape != shape:
                text = f"{self._has_shape(role)}, expected {list(shape)} for rank {self.rank}"
                raise ShapeMismatch(f"{text}; put the config of this very adapter beside it")

    def _has_shape(self, role: str) -> str:
        tensor = self.tensors[self.names[role]]
        return f"{tensor.file}: tensor {self.names[role]!r} has shape {list(tensor.shape)}"


# --- shapes: d_out, d_in and the rank of the factors that `rules` makes, or ShapeMismatch


def _loha_shape(m: Module) -> tuple[int, int, int]:
    r = m.rank
    if "t1" in m.names:
        kernel = m.shape("t1", 4)[2:]
        d_out, d_in = m.shape("w1_a", 2)[1], m.shape("w1_b", 2)[1]
        m.expect(w1_a=(r, d_out), w1_b=(r, d_in), w2_a=(r, d_out), w2_b=(r, d_in))
        m.expect(t1=(r, r, *kernel), t2=(r, r, *kernel))
        d_in *= math.prod(kernel)
    else:
        d_out, d_in = m.shape("w1_a", 2)[0], m.shape("w1_b", 2)[1]
        m.expect(w1_a=(d_out, r), w1_b=(r, d_in), w2_a=(d_out, r), w2_b=(r, d_in))
    return d_out, d_in, min(r * r, d_out, d_in)


def _lokr_shape(m: Module) -> tuple[int, int, int]:
    if "w1" in m.names:
        a, c = m.shape("w1", 2)
    else:
        a, c = m.shape("w1_a", 2)[0], m.shape("w1_b", 2)[1]
        m.expect(w1_a=(a, m.rank), w1_b=(m.rank, c))
    first = min(a, c) if "w1" in m.names else min(m.rank, a, c)
    b, d = _second_shape(m)
    second = min(b, d) if "w2" in m.names else min(m.rank, b, d)
    return a * b, c * d, first * second


def _second_shape(m: Module) -> tuple[int, int]:
    """d_out and d_in of w2, its kernel included."""
    if "w2" in m.names:
        shape = m.tensors[m.names["w2"]].shape
        if len(shape) == 3:
            text = "LoKr of a one-dimensional convolution, which PEFT does not apply as a product"
            where = f"{m.tensors[m.names['w2']].file}: {m.name!r}"
            raise Unsupported(f"{where} is {text}; leave it out of target_modules")
        first, *rest = m.shape("w2", 4 if len(shape) == 4 else 2)
        return first, math.prod(rest)
    if "t2" in m.names:
        kernel = m.shape("t2", 4)[2:]
        b, d = m.shape("w2_a", 2)[1], m.shape("w2_b", 2)[1]
        m.expect(w2_a=(m.rank, b), w2_b=(m.rank, d), t2=(m.rank, m.rank, *kernel))
        return b, d * math.prod(kernel)
    b, d = m.shape("w2_a", 2)[0], m.shape("w2_b", 2)[1]
    m.expect(w2_a=(b, m.rank), w2_b=(m.rank, d))
    return b, d


def _adalora_shape(m: Module) -> tuple[int, int, int]:
    d_out, d_in = m.shape("B", 2)[0], m.shape("A", 2)[1]
    m.expect(B=(d_out, m.rank), A=(m.rank, d_in), E=(m.rank, 1))
    return d_out, d_in, max(m.rank, 1)


def _delora_shape(m: Module) -> tuple[int, int, int]:
    d_out, d_in = m.shape("B", 2)[0], m.shape("A", 2)[1]
    m.expect(B=(d_out, m.rank), A=(m.rank, d_in), w_norm=(d_in,))
    m.expect(**{"lambda": (1,)})
    return d_out, d_in, m.rank


def _vera_shape(m: Module) -> tuple[int, int, int]:
    (d_out,), most, d_in = m.shape("b", 1), m.shape("B", 2)[0], m.shape("A", 2)[1]
    m.expect(d=(m.rank,), A=(m.rank, d_in), B=(max(most, d_out), m.rank))
    return d_out, d_in, m.rank


def _miss_shape(m: Module) -> tuple[int, int, int]:
    d_out = m.shape("block", 2)[1]
    m.expect(block=(m.rank, d_out))
    return d_out, m.rank, min(d_out, m.rank)


# --- the tuners


SHARED = re.compile(r"(?:base_model\.)?vera_([AB])(?:\.[^.]+)?")
"""What all modules of a VeRA adapter share."""
OTHERS = ("lora_", "hada_", "lokr_", "delora_", "miss_", "vera_")
COMMON = ("base_model_name_or_path", "auto_mapping", "auto_map", "trust_remote_code")


@dataclass(frozen=True, slots=True)
class Tuner:
    """One peft_type: `layouts` are the sets of tensors a module may have, after `prefix`.

    `fields` are what the config calls r, lora_alpha and the patterns of LoRA; `shapes` checks one
    module's tensors and gives d_out, d_in and the rank of its update; `note` is for the report.
    """

    prefix: str
    layouts: tuple[str, ...]
    fields: Mapping[str, str]
    shapes: Callable[[Module], tuple[int, int, int]]
    note: str = "refined adapters are written as plain LoRA"

    @property
    def roles(self) -> set[str]:
        """What the tensors of a module are called in any layout."""
        return {role for layout in self.layouts for role in layout.split()}


_ALPHA = {"r": "r", "lora_alpha": "alpha"}
_PATTERNS = {"rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern"}
_LOHA = "w1_a w1_b w2_a w2_b"
TUNERS: dict[str, Tuner] = {
    "LOHA": Tuner("hada_", (_LOHA, f"{_LOHA} t1 t2"), _ALPHA | _PATTERNS, _loha_shape),
    "LOKR": Tuner(
        "lokr_",
        tuple(f"{x} {y}" for x in ("w1", "w1_a w1_b") for y in ("w2", "w2_a w2_b", "w2_a w2_b t2")),
        _ALPHA | _PATTERNS,
        _lokr_shape,
    ),
    "ADALORA": Tuner(
        "lora_", ("B A E",), {"r": "init_r", "lora_alpha": "lora_alpha"}, _adalora_shape
    ),
    "DELORA": Tuner(
        "delora_",
        ("B A lambda w_norm",),
        {"r": "r", "rank_pattern": "rank_pattern"},
        _delora_shape,
    ),
    "VERA": Tuner(
        "vera_lambda_",
        ("b d",),
        {"r": "r"},
        _vera_shape,
        "every module is read as wide as vera_A; refined adapters are written as plain LoRA, which "
        "loads where that is so",
    ),
    "MISS": Tuner(
        "miss_",
        ("block",),
        {"r": "r"},
        _miss_shape,
        "compared by its blocks, which the input's sides repeat; norms are those of the blocks",
    ),
}
"""peft_type -> how it is read."""


# --- one adapter


def recognises(kind: str, contents: Contents) -> bool:
    """Whether the config says so: names of tensors alone do not tell AdaLoRA from LoRA."""
    return contents.config is not None and contents.config.get("peft_type") == kind


def describe(contents: Contents, settings: Settings) -> Described:
    """The updates of an adapter of one of TUNERS. Raises the kinds of AdapterError."""
    data = contents.config or {}
    kind = data["peft_type"]
    config = _config(kind, data, settings)
    modules = _modules(kind, contents)
    if wrapped := [name for name in modules if owner(name) != name]:
        text = f"{contents.where}: {wrapped[0]!r} is what plain LoRA, in which it would be written,"
        raise Unsupported(f"{text} calls a wrapped parameter; train plain LoRA")
    ranks = _pruned(data, modules) if kind == "ADALORA" else {}
    updates = {}
    for name, names in modules.items():
        rank = ranks.get(name, config.rank_of(name) or 0)
        found = Module(name, names, contents.tensors, rank)
        updates[name] = update_of(kind, found, config)
    notes = (*config.notes, *config.check_modules(modules))
    note = Reason("CLR115", f"{CONFIG}: {kind}: {TUNERS[kind].note}")
    full = find_trained_whole(contents.tensors, updates, data)
    notes = (*notes, note, *not_judged(contents.tensors, updates, full))
    return Described(updates, data, config.base, notes, {"peft_type": kind}, full)


def _config(kind: str, data: Mapping[str, Any], settings: Settings) -> LoraConfig:
    """What decides the scales, checked as a LoRA config of the fields that mean the same."""
    fields = TUNERS[kind].fields
    if data.get(fields["r"]) is None:
        raise ConfigInvalid(f"{CONFIG}: {fields['r']} is missing; expected the rank")
    if kind == "MISS" and data.get("init_weights") == "bat":
        text = f"{CONFIG}: init_weights 'bat': MiSS that multiplies the base weights"
        raise Unsupported(f"{text}; train it without, or train plain LoRA")
    same = {name: data[own] for name, own in fields.items() if data.get(own) is not None}
    common = {name: data[name] for name in COMMON if name in data}
    alpha = settings.alpha if "lora_alpha" in fields else 1.0
    try:
        return parse_config({"peft_type": "LORA"} | common | same, CONFIG, alpha)
    except ConfigInvalid as error:
        text = str(error)
        for name, own in fields.items():
            text = text.replace(f"{CONFIG}: {name}", f"{CONFIG}: {own}", 1)
        raise ConfigInvalid(text) from None


def _modules(kind: str, contents: Contents) -> dict[str, dict[str, str]]:
    """Module name -> role -> name of the tensor. Raises where a tensor is missing or out of place."""
    tuner, tensors = TUNERS[kind], contents.tensors
    found: dict[str, dict[str, str]] = {}
    shared: dict[str, str] = {}
    for key, spec in tensors.items():
        here = module_and_role(key, tuner)
        if kind == "VERA" and (match := SHARED.fullmatch(WRAPPERS.sub("", key))):
            roles, role = shared, match[1]
        elif here is not None:
            roles, role = found.setdefault(here[0], {}), here[1]
        else:
            _check_passed(key, spec, kind)
            continue
        if role in roles:
            text = f"{spec.file}: tensors {roles[role]!r} and {key!r} stand for the same"
            raise ShapeMismatch(f"{text}; keep one adapter per file")
        _check_tensor(key, spec, empty=kind == "ADALORA")
        roles[role] = key
    if not found:
        text = f"{contents.where}: no {tuner.prefix}* tensors, but {CONFIG} says peft_type {kind}"
        raise Unsupported(f"{text}; put the config of this very adapter beside it")
    for names in found.values():
        check_whole(names, tuner, tensors)
    if kind == "VERA":
        _check_shared(shared, contents)
    return {module: names | shared for module, names in found.items()}


def module_and_role(key: str, tuner: Tuner) -> tuple[str, str] | None:
    """Module and role of a tensor, without wrappers, prefix and adapter name."""
    bare = WRAPPERS.sub("", key).removeprefix(PREFIX)
    roles = "|".join(sorted(tuner.roles, key=len, reverse=True))
    match = re.fullmatch(rf"(.+)\.{tuner.prefix}({roles})(?:\.[^.]+)?", bare, re.DOTALL)
    return (match[1], match[2]) if match else None


def _check_passed(key: str, spec: TensorSpec, kind: str) -> None:
    if any(part.startswith(OTHERS) for part in key.split(".")):
        text = f"{spec.file}: tensor {key!r} is none of a {kind} adapter's"
        raise Unsupported(f"{text}; save the adapter again with PEFT")


def _check_tensor(key: str, spec: TensorSpec, empty: bool) -> None:
    what = f"{spec.file}: tensor {key!r}"
    if not spec.shape or (0 in spec.shape and not (empty and len(spec.shape) == 2)):
        text = f"{what} has shape {list(spec.shape)}: an un-gathered ZeRO-3 shard"
        raise ShapeMismatch(f"{text}; gather the weights before saving")
    if spec.dtype not in FLOATS:
        raise Unsupported(f"{what} is {spec.dtype}; re-save it as float32")


def check_whole(names: Mapping[str, str], tuner: Tuner, tensors: Mapping[str, TensorSpec]) -> None:
    """Raises ShapeMismatch, naming it, where a tensor lacks its partner."""
    layouts = sorted((set(layout.split()) for layout in tuner.layouts), key=len)
    first = next(iter(names.values()))
    text = f"{tensors[first].file}: tensor {first!r}"
    whole = next((layout for layout in layouts if layout >= names.keys()), None)
    if whole is None:
        roles = " and ".join(sorted(tuner.prefix + role for role in names))
        raise ShapeMismatch(f"{text}: {roles} do not belong together; save the adapter again")
    if missing := whole - names.keys():
        lacks = f"has no {tuner.prefix}{min(missing)} beside it"
        raise ShapeMismatch(f"{text} {lacks}; save the adapter again, whole")


def _check_shared(shared: Mapping[str, str], contents: Contents) -> None:
    for role in "AB":
        if role not in shared:
            text = f"{contents.where}: no vera_{role}: the projections were not saved"
            raise Unsupported(f"{text}; save the adapter again with save_projection=True")


def _pruned(data: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, int]:
    """What AdaLoRA has left of each module's ranks; the scale stays that of init_r."""
    kept = data.get("rank_pattern")
    if not isinstance(kept, dict | None):
        raise ConfigInvalid(
            f"{CONFIG}: rank_pattern: expected an object of lists of true and false"
        )
    found = {}
    for key, mask in (kept or {}).items():
        if not isinstance(mask, list) or not all(isinstance(x, bool) for x in mask):
            text = f"{CONFIG}: rank_pattern {key[:60]!r}: expected a list of true and false"
            raise ConfigInvalid(f"{text}; put the config of this very adapter beside it")
        here = module_and_role(key, TUNERS["ADALORA"])
        if here is not None and here[0] in modules:
            found[here[0]] = sum(mask)
    return found


def update_of(kind: str, found: Module, config: LoraConfig) -> UpdateSpec:
    """One module's update at the scale by `config`. Raises the kinds of AdapterError."""
    d_out, d_in, rank = TUNERS[kind].shapes(found)
    if kind == "ADALORA":  # PEFT divides by the rank before pruning
        scale = config.alpha / ((config.rank or 0) + 1e-5)
    else:
        scale = config.scale_of(found.name, found.rank) if kind in ("LOHA", "LOKR") else 1.0
    if scale == 0:
        raise ConfigInvalid(f"{CONFIG}: the scale of {found.name!r} underflows to 0")
    dtype = stored_dtype([found.tensors[name].dtype for name in found.names.values()])
    return UpdateSpec(d_out, d_in, rank, scale, dtype, found.names, kind.lower())
